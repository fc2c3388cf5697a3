"""The metrics as `evaluate` modules, found by name and loaded without a network."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluate import EvaluationModule

METRICS = (
    "bwt",
    "forgetting",
    "average_performance",
    "last_performance",
    "forward_transfer",
    "hypervolume",
    "pareto_inner_product",
    "controllability",
    "alignment_score",
    "priming_ratio",
)

__all__ = ["METRICS", "load_metric", "metric_path"]


def metric_path(name: str) -> str:
    """Folder of a shipped metric, to be handed to `evaluate.load` or uploaded as a Space.

    Args:
        name (`str`): one of [`METRICS`].

    Raises:
        ValueError: if no metric of that name is shipped.
    """
    if name not in METRICS:
        raise ValueError(f"hf_lifealign ships no metric {name!r}. Use one of {', '.join(METRICS)}.")
    return str(Path(__file__).resolve().parent / name)


def load_metric(name: str, **kwargs: Any) -> "EvaluationModule":
    """Load a shipped metric as an `evaluate` module; needs no network.

    Args:
        name (`str`): one of [`METRICS`].
        **kwargs: passed to `evaluate.load`, e.g. `cache_dir` or `keep_in_memory`.

    Raises:
        ValueError: if no metric of that name is shipped.
    """
    path = metric_path(name)
    import evaluate  # seconds, since it brings transformers along: paid by those who load a metric

    return evaluate.load(path, **kwargs)
