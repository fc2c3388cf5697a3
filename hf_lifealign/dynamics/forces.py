r"""The two forces in a training step, as pure functions of logits (arXiv 2605.18309, theorem 2.7).

The gradient of the score S is the gated contrast of the theorem, so that every force is an inner product of it with a
change of the parameters, and the kernel K is never formed. The negative log-likelihood of a token is
``-z_y + logsumexp(z)``: a step on the first term is the driving force, one on the second the rebound.

Two faults of the printed paper are not repeated: the sign of the pi- term in its appendix (eq. 12, 26, 27), and weights
and posteriors of different states in eq. 8.
"""

from collections.abc import Sequence

import torch

# Label of a token that is not learnt, as everywhere in transformers.
IGNORED = -100


def split_nll(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    The negative log-likelihood of labels as a driving and a rebound term, whose sum it is.

    Logits are centred, ``z - mean(z)``: the split depends on what is added to all logits of a token, the sum does not,
    and so both terms are the same whatever a model adds.

    Args:
        logits (`torch.Tensor` of shape `(..., tokens, vocabulary)`): for each token those that predict it.
        labels (`torch.Tensor` of shape `(..., tokens)`): token ids, -100 where a token is not learnt.

    Returns:
        Sums over the learnt tokens, in nats, two scalar `torch.Tensor` in float32 (float64 for float64 logits): the
        driving term ``-sum z_y`` and the rebound term ``sum logsumexp(z)``.
    """
    learnt = labels != IGNORED
    z = logits[learnt]
    z = z if z.dtype == torch.float64 else z.float()
    mean = z.mean(-1)
    chosen = z.gather(-1, labels[learnt].unsqueeze(-1)).squeeze(-1)
    return -(chosen - mean).sum(), (torch.logsumexp(z, dim=-1) - mean).sum()


def leave_one_out_weights(labels: Sequence[Sequence[float]]) -> list[list[float]]:
    r"""
    Weights of the log-likelihoods of samples in an unbiased estimate of grad S (score function with a leave-one-out
    baseline): ``grad S = sum_x sum_i w_xi grad log pi(y_i | x)`` with ``w_xi = (a_i - mean_{j != i} a_j) / (P n)``.

    Args:
        labels (`list` of `P` lists): for each prompt how aligned each of its `n` samples is, in [0, 1].

    Returns:
        `list` of `P` lists. Prompts with a single sample have no baseline, and weigh nothing.
    """
    # P counts the prompts that say something, so that a prompt without a baseline does not shrink the estimate
    told = sum(len(row) > 1 for row in labels)
    weights = []
    for row in labels:
        n, total = len(row), sum(row)
        weights.append([(a - (total - a) / (n - 1)) / (told * n) if n > 1 else 0.0 for a in row])
    return weights


def importance_weights(labels: Sequence[Sequence[float]], log_weights: Sequence[Sequence[float]]) -> list[list[float]]:
    r"""
    As [`leave_one_out_weights`] for samples of an earlier model, self-normalised for each prompt: ``w_xi = n / (n - 1)
    u_i (a_i - S_x) / (P sum_j u_j)`` with ``u = exp(log_weights)`` and ``S_x`` the weighted mean of the labels.

    Args:
        labels (`list` of `P` lists): as there.
        log_weights (`list` of `P` lists): log-likelihood of each sample now, less that when it was drawn.
    """
    told = sum(len(row) > 1 for row in labels)
    weights = []
    for row, logs in zip(labels, log_weights, strict=True):
        if len(row) < 2:
            weights.append([0.0] * len(row))
            continue
        u = torch.softmax(torch.tensor(list(logs), dtype=torch.float64), dim=0)
        a = torch.tensor(list(row), dtype=torch.float64)
        # n / (n - 1) makes it the leave-one-out estimate where all weights are one
        share = u * (a - (u * a).sum()) * (len(row) / (len(row) - 1)) / told
        weights.append(share.tolist())
    return weights
