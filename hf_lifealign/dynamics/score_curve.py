"""The score of one training, as the strategy `rehearsal_priming` leaves it in a file."""

import logging
import math
from pathlib import Path
from typing import Any

from hf_lifealign._files import read_json

logger = logging.getLogger(__name__)


def read_curve(file: Path) -> dict[str, Any] | None:
    """Reads a file of steps, scores and ends of their intervals: `"steps"`, `"scores"`, `"low"`, `"high"`, each `(n,)`.

    Args:
        file (`Path`): an existing file; it may have come with what was published, and is not trusted.

    Returns:
        what it holds, with finite steps and scores; or `None`, with a warning, if it holds no such curve.
    """
    try:
        content = read_json(file)
        _refuse_unsound(content)
    except ValueError as error:
        logger.warning(
            f"{file.name} does not hold the curve of a score ({error}). It is left out: restore it from where it came."
        )
        return None
    found: dict[str, Any] = content
    return found


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _refuse_unsound(content: Any) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"it is a {type(content).__name__}, not an object")
    for key in ("steps", "scores"):
        column = content.get(key)
        if not isinstance(column, list) or not all(map(is_number, column)):
            raise ValueError(f"its {key!r} are no list of finite numbers")
    for key in ("scores", "low", "high"):
        column = content.get(key, content["steps"])
        if not isinstance(column, list) or len(column) != len(content["steps"]):
            raise ValueError(f"its {key!r} are not as many as its steps")
