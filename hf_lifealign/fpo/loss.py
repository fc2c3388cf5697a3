"""The focal preference loss and its gate, as pure functions of the reward margin."""

import torch
import torch.nn.functional as F


def focal_weight(margin: torch.Tensor, gamma: float) -> torch.Tensor:
    r"""Gate of the focal preference loss: how much of a pair is left to learn.

    LifeAlign (arXiv 2509.17183), FPO: ``(1 - p)^gamma`` with ``p = sigmoid(margin)``. Near 0 the pair is mastered,
    at ``p = 0.5`` it is new (0.25 for ``gamma = 2``), towards 1 it was forgotten.

    Args:
        margin (`torch.Tensor` of any shape):
            Reward margin ``beta * ((logp_chosen - ref_chosen) - (logp_rejected - ref_rejected))``, in nats times beta.
        gamma (`float`):
            Focusing exponent, at least 0.

    Returns:
        `torch.Tensor` of the same shape, in [0, 1].
    """
    # (1 - p)^gamma in log space: 1 - p itself underflows long before gamma * log(1 - p) leaves the float range.
    return torch.exp(gamma * F.logsigmoid(-margin))


def focal_preference_loss(margin: torch.Tensor, gamma: float) -> torch.Tensor:
    r"""Focal preference loss of each pair.

    LifeAlign (arXiv 2509.17183), FPO: ``-(1 - p)^gamma * log p`` with ``p = sigmoid(margin)``. The gate is part of
    the graph, so that ``dL/dmargin = -(1 - p)^gamma * [(1 - p) - gamma * p * log p]``. ``gamma = 0`` is DPO's
    sigmoid loss.

    Args:
        margin (`torch.Tensor` of any shape):
            Reward margin, see [`focal_weight`].
        gamma (`float`):
            Focusing exponent, at least 0.

    Returns:
        `torch.Tensor` of the same shape, non-negative. Value and gradient are finite for ``|margin| <= 1e4`` in
        float32.
    """
    return -focal_weight(margin, gamma) * F.logsigmoid(margin)
