"""A measurement as the flat numbers that a trainer logs."""

from typing import Any

_SCORES = {"score": "score", "low": "score_low", "high": "score_high", "ess": "ess"}
_ATTRIBUTED = {"score": "attributed", "log_odds": "attributed_log_odds", "residual": "residual"}


def flat(entry: dict[str, Any]) -> dict[str, float]:
    """The numbers of a measurement under `dynamics/`.

    Args:
        entry (`dict`): a line of `dynamics.jsonl`.
    """
    found: dict[str, Any] = {name: entry.get("score", {}).get(key) for key, name in _SCORES.items()}
    found["rescored"] = entry.get("rescored", {}).get("score")
    found["log_odds_change"] = entry.get("log_odds_change", {}).get("value")
    found |= {name: entry.get("attribution", {}).get(key) for key, name in _ATTRIBUTED.items()}
    found |= {key: entry.get("forces", {}).get(key) for key in ("drive", "rebound", "net", "total")}
    found |= entry.get("narrowness", {})
    found["reference_margin"] = entry.get("reference_margin", {}).get("margin")
    found["gradient_norm"] = entry.get("gradient_norm")
    found["seconds"] = entry["seconds"]
    return {f"dynamics/{name}": float(value) for name, value in found.items() if value is not None}
