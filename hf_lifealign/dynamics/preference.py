r"""How surely a model prefers what a task taught it to prefer: a score without judge and samples.

Ours, in no paper. The score is the preference accuracy made smooth, so that it has a gradient:
``S = mean over pairs of sigmoid(m / scale)``, `m` the margin of a pair in nats against the untouched base,
``(log p(chosen) - log p(rejected)) - (log p_base(chosen) - log p_base(rejected))``. It has the same place in the
dynamics as the score of arXiv 2605.18309 (eq. 2), for answers that are either the chosen or the rejected one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_lifealign.dynamics.likelihood import weighted_gradient
from hf_lifealign.dynamics.measuring import sums_over_groups
from hf_lifealign.dynamics.updates import Tensors
from hf_lifealign.lifelong.scoring import EncodedPair, score_pairs
from hf_lifealign.metrics.alignment_dynamics import ScoreEstimate

_Array = NDArray[np.float64]


def preferences(margins: Sequence[float], scale: float) -> _Array:
    """``sigmoid(m / scale)`` of each margin; towards a scale of 0 it is whether the pair is ranked right.

    Args:
        margins (`P` floats): in nats.
        scale (`float`): in nats, above 0.
    """
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * np.asarray(margins, dtype=np.float64) / scale)))


def margin_scale(margins: Sequence[float]) -> float:
    """The median size of margins, so that a score tells alike of large and of small ones; 1 nat where it is 0."""
    return float(np.median(np.abs(np.asarray(margins, dtype=np.float64)))) or 1.0


@dataclass(frozen=True)
class PairMargins:
    """Margins of all pairs at one state of a model.

    Args:
        margins (`list[float]`): in nats, against the base.
    """

    margins: list[float]

    def one_sided(self) -> str | None:
        """Why no force can be estimated: there is always one, if only of size 0."""
        return None


def whole_pairs(pairs: Sequence[EncodedPair]) -> list[int]:
    """Numbers of the pairs that a cut has left a prompt and two completions."""
    return [i for i, p in enumerate(pairs) if not p.is_empty and p.chosen_start and p.rejected_start]


class PreferenceMeter:
    """Measures the preference score of some pairs, and the forces on it.

    Args:
        pairs (`list[EncodedPair]`): of [`encode_pairs`], at least one; none without a completion.
        reference (`list` of pairs of float): log-likelihoods of chosen and rejected under the untouched base, in nats.
        pad_token_id (`int`): any valid token id.
        scale (`float`): of the margins, in nats.
        before (`list[float]`, *optional*): earlier margins of the same pairs. The standard error is then that of the
            difference, which is much smaller than that of the score of other pairs.
        batch_size (`int`): pairs that are scored together.
        pair_packing (`str`): "auto" or "off", as in [`FPOConfig`].

    Raises:
        ValueError: if there is no pair, or the numbers do not fit it.
    """

    def __init__(
        self,
        pairs: Sequence[EncodedPair],
        reference: Sequence[tuple[float, float]],
        pad_token_id: int = 0,
        scale: float = 1.0,
        before: Sequence[float] | None = None,
        batch_size: int = 8,
        pair_packing: str = "auto",
    ):
        if not pairs or len(whole_pairs(pairs)) < len(pairs):
            raise ValueError(
                "A preference score needs pairs, each with a prompt and two completions; leave out others."
            )
        if len(reference) != len(pairs) or (before is not None and len(before) != len(pairs)):
            raise ValueError(f"There are {len(pairs)} pairs. Give as many reference values and earlier margins.")
        if not scale > 0:
            raise ValueError(f"You set scale={scale}. Give more than 0 nats.")
        self.pairs, self.scale, self.before = list(pairs), scale, before
        self.pad_token_id, self.batch_size, self.pair_packing = pad_token_id, batch_size, pair_packing
        self.reference = [chosen - rejected for chosen, rejected in reference]

    def draw(self, model: Any, step: int) -> PairMargins:
        """Margins now; nothing is drawn, so that `step` makes no difference."""
        scored = score_pairs(model, self.pairs, self.pad_token_id, self.batch_size, pair_packing=self.pair_packing)
        return PairMargins([c - r - base for (c, r), base in zip(scored, self.reference, strict=True)])

    def anchored(self, measured: PairMargins) -> ScoreEstimate:
        """The score at these margins. The interval is over the pairs."""
        now = preferences(measured.margins, self.scale)
        score, spread = float(now.mean()), _standard_error(now)
        paired = spread if self.before is None else _standard_error(now - preferences(self.before, self.scale))
        low, high = max(score - 1.96 * spread, 0.0), min(score + 1.96 * spread, 1.0)
        return ScoreEstimate(score, low, high, paired, now.size, now.size, 1.0, None)

    def forces(
        self, model: Any, parameters: Sequence[torch.Tensor], measured: PairMargins, steps: Sequence[Tensors]
    ) -> list[tuple[float, float]]:
        """Change of the score by each of some steps of the parameters, to first order, and its standard error, at the
        margins of the model as it is. The error is by the spread over groups of pairs; NaN with a single pair."""
        now = preferences(measured.margins, self.scale)
        slopes = now * (1 - now) / self.scale / now.size

        def gradient(chosen: Sequence[int]) -> Tensors:
            prompts, answers, weights = [], [], []
            for i in chosen:
                pair = self.pairs[i]
                prompts += [pair.chosen[: pair.chosen_start], pair.rejected[: pair.rejected_start]]
                answers += [[pair.chosen[pair.chosen_start :]], [pair.rejected[pair.rejected_start :]]]
                weights += [[float(slopes[i])], [-float(slopes[i])]]
            return weighted_gradient(model, parameters, prompts, answers, weights)

        return sums_over_groups(len(self.pairs), gradient, steps)


def _standard_error(values: _Array) -> float:
    return float(values.std(ddof=1) / values.size**0.5) if values.size > 1 else 0.0
