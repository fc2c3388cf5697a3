"""What a judge is, and what all judges of this package share."""

from collections.abc import Callable, Sequence

Judge = Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[float]]
"""Maps prompts, answers and references, all texts, to one number in [0, 1] for each answer; 1 is aligned."""


def judge_name(judge: object) -> str:
    """By what a judge is called in messages: the name of a function, the settings of an object."""
    name = getattr(judge, "__name__", None)
    if isinstance(name, str):
        return name
    if type(judge).__repr__ is object.__repr__:
        return type(judge).__name__
    return repr(judge)


def check_threshold(threshold: float | None) -> None:
    """Refuses a threshold of probabilities that cannot tell answers apart.

    Raises:
        ValueError: if it is neither `None` nor between 0 and 1.
    """
    if threshold is None:
        return
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold < 1:
        raise ValueError(
            f"You set threshold={threshold!r}. Set a probability above 0 and below 1, or None for the probability "
            "itself."
        )


def check_count(name: str, value: int) -> None:
    """Refuses what is no number of things.

    Raises:
        ValueError: if it is not a whole number of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"You set {name}={value!r}. Set a whole number of at least 1.")


def thresholded(probabilities: Sequence[float], threshold: float | None) -> list[float]:
    """1.0 where a probability reaches the threshold and 0.0 elsewhere; the probabilities themselves without one."""
    if threshold is None:
        return [float(probability) for probability in probabilities]
    return [1.0 if probability >= threshold else 0.0 for probability in probabilities]
