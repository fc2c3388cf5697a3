"""The linear Bradley-Terry model: its objective and the exact maximum, nothing of text or of models."""

import torch
import torch.nn.functional as F

_MOST_STEPS = 200
_GRADIENT = 1e-10


def bradley_terry_objective(u: torch.Tensor, differences: torch.Tensor, l2: float) -> torch.Tensor:
    """Mean log-likelihood of the preferences, less the penalty: `mean log sigmoid(differences u) - l2/2 |u|^2`.

    The model is that of Bradley & Terry (1952, "Rank analysis of incomplete block designs: I", Biometrika 39), in which
    `P(chosen before rejected) = sigmoid(r(chosen) - r(rejected))`, with a linear reward `r(e) = u . e`.

    Args:
        u (`torch.Tensor`): head, of shape `(dimension,)`.
        differences (`torch.Tensor`): `e_chosen - e_rejected`, of shape `(pairs, dimension)`.
        l2 (`float`): strength of the penalty.

    Returns:
        `torch.Tensor`: a scalar, concave in `u`.
    """
    return F.logsigmoid(differences @ u).mean() - l2 / 2 * u.square().sum()


def bradley_terry_fit(chosen: torch.Tensor, rejected: torch.Tensor, l2: float) -> torch.Tensor:
    """The head that maximises [`bradley_terry_objective`], by Newton's method in float64.

    The objective is strictly concave for `l2 > 0`, so there is one maximum, found from zero without chance. It has
    `|u| <= max|difference| / l2`, with `u -> mean difference / (2 l2)` for a strong penalty.

    Args:
        chosen (`torch.Tensor`): embeddings of the preferred answers, of shape `(pairs, dimension)`.
        rejected (`torch.Tensor`): those of the others, of the same shape.
        l2 (`float`): strength of the penalty, above 0.

    Returns:
        `torch.Tensor`: the head, float64 of shape `(dimension,)`, on the CPU.

    Raises:
        ValueError: if there are no pairs, shapes differ, a number is not finite, `l2` is not above 0, or in every pair
            both sides are the same.
        RuntimeError: if the maximum is not reached.
    """
    differences = _differences(chosen, rejected, l2)
    pairs, dimension = differences.shape
    u = torch.zeros(dimension, dtype=torch.float64)
    value = bradley_terry_objective(u, differences, l2)
    gradient = _gradient(u, differences, l2)
    for _ in range(_MOST_STEPS):
        if float(gradient.abs().max()) <= _GRADIENT:
            return u
        likely = torch.sigmoid(differences @ u)
        curvature = differences.T @ (differences * (likely * (1 - likely) / pairs).unsqueeze(-1))
        curvature.diagonal().add_(l2)
        step = torch.cholesky_solve(gradient.unsqueeze(-1), torch.linalg.cholesky(curvature)).squeeze(-1)
        u, value, moved = _line_search(u, step, gradient, value, differences, l2)
        gradient = _gradient(u, differences, l2)
        if not moved:
            break
    # rounding ends the search before the bound where the penalty is very weak or the embeddings are very long
    if float(gradient.abs().max()) > 1e-6 * max(1.0, float(differences.abs().max())):
        raise RuntimeError(
            f"The Bradley-Terry fit of {pairs} pairs did not reach its maximum (largest gradient "
            f"{float(gradient.abs().max()):.1e}). Set a larger l2 than {l2}."
        )
    return u


def _gradient(u: torch.Tensor, differences: torch.Tensor, l2: float) -> torch.Tensor:
    """Gradient of the objective, of shape `(dimension,)`."""
    return differences.T @ torch.sigmoid(-(differences @ u)) / len(differences) - l2 * u


def _line_search(
    u: torch.Tensor,
    step: torch.Tensor,
    gradient: torch.Tensor,
    value: torch.Tensor,
    differences: torch.Tensor,
    l2: float,
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Halves a Newton step until it gains enough (Armijo); the point, its value, and whether it moved."""
    promised = float(gradient @ step)
    length = 1.0
    while length > 1e-10:
        tried = u + length * step
        gained = bradley_terry_objective(tried, differences, l2)
        if float(gained) >= float(value) + 1e-4 * length * promised:
            return tried, gained, True
        length /= 2
    return u, value, False


def _differences(chosen: torch.Tensor, rejected: torch.Tensor, l2: float) -> torch.Tensor:
    """`chosen - rejected` in float64 on the CPU, checked."""
    if chosen.ndim != 2 or chosen.shape != rejected.shape:
        raise ValueError(
            f"You gave embeddings of shape {tuple(chosen.shape)} (chosen) and {tuple(rejected.shape)} (rejected). Both "
            "have to be (pairs, dimension)."
        )
    if 0 in chosen.shape:
        raise ValueError(f"You gave {len(chosen)} pairs of dimension {chosen.shape[1]}. Give at least one pair.")
    if isinstance(l2, bool) or not 0 < l2 < float("inf"):
        raise ValueError(
            f"You set l2={l2!r}. Set a number above 0: without a penalty, pairs that a plane can separate have no "
            "maximum."
        )
    differences = chosen.detach().to("cpu", torch.float64) - rejected.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(differences).all()):
        raise ValueError("An embedding is not finite. Look for NaN or infinity in the embedding model.")
    if not bool(differences.any()):
        raise ValueError("In every pair both sides have the same embedding, so that nothing can be learnt from them.")
    return differences
