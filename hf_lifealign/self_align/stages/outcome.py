"""What a stage comes to: rows, what was dropped and why, and when it gives up."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol


class Progress(Protocol):
    """Is told how far a stage has come."""

    def __call__(self, accepted: int, target: int) -> None: ...


@dataclass
class Outcome:
    """Rows of a stage.

    Args:
        rows (`list[dict]`): that were accepted.
        dropped (`list[dict]`): each with its raw `text` and its `reason`.
        asides (`list[dict]`): what belongs to a row, and is never trained on: notes.
        told (`dict`): further figures, as JSON.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    asides: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)

    def drop(self, text: str, reason: str, **where: Any) -> None:
        """Notes a text that is not kept."""
        self.dropped.append({"text": text, "reason": reason, **where})

    def reasons(self, **where: Any) -> dict[str, int]:
        """How often each reason came, the commonest first; of those whose other fields are as given."""
        found = Counter(
            row["reason"] for row in self.dropped if all(row.get(key) == value for key, value in where.items())
        )
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


class GaveUpError(RuntimeError):
    """A stage did not reach its target within its cap.

    Args:
        what (`str`): the part that gave up.
        accepted, target (`int`): how far it came.
        generations (`int`): that it made.
        outcome ([`Outcome`]): up to there.
    """

    def __init__(self, what: str, accepted: int, target: int, generations: int, outcome: Outcome, **where: Any):
        self.outcome = outcome
        reasons = ", ".join(f"{reason} {count}" for reason, count in outcome.reasons(**where).items()) or "none"
        super().__init__(
            f"{what} gave up: {accepted} of {target} accepted after {generations} generations. Dropped: {reasons}. "
            "Look at the dropped texts; then ask for less, allow more generations_per_prompt, or set another model."
        )
