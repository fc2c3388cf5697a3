"""What a sweep over user weights has measured: the points of a front, its scale, reference point and figures.

Nothing here needs torch. Hypervolume and inner product are in z-scores of the rewards, so that no objective's unit
decides; the scale and the reference point are fixed before anything is generated, see [`Scale`].
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_lifealign.metrics.pareto_front import controllability_per_objective, hypervolume, mean_inner_product

FORMAT = 1
# The reference point of a hypervolume where none is given: this many standard deviations below the mean of each
# reward on the set that the statistics are of. Fixed here, so that it cannot be chosen after looking at the arms.
REFERENCE_Z = -3.0
OWN, BASE = "own", "base"


@dataclass(frozen=True)
class Scale:
    """By which rewards become z-scores, and the reference point of the hypervolume; the same for all compared arms.

    Args:
        mean, std (`list[float]` of length `objectives`): of each reward, in its unit; from the first arm's statistics.
        reference (`list[float]` of length `objectives`): reference point as z-scores.
    """

    mean: list[float]
    std: list[float]
    reference: list[float]

    @classmethod
    def of(cls, mean: Sequence[float], std: Sequence[float], reference_point: Sequence[float] | None = None) -> "Scale":
        """A scale with the default reference point, or one that is given in the units of the rewards.

        Raises:
            ValueError: for a reference point of another length, or for a reward that never varied.
        """
        mean, std = [float(m) for m in mean], [float(s) for s in std]
        if reference_point is None:
            return cls(mean, std, [REFERENCE_Z] * len(mean))
        if len(reference_point) != len(mean):
            raise ValueError(
                f"You gave a reference point of {len(reference_point)} numbers for {len(mean)} objectives. Give one "
                "for each, in the unit of its reward."
            )
        for k, deviation in enumerate(std):
            if deviation == 0:
                raise ValueError(
                    f"You gave a reference point, and the reward {k} never varied on the offline set, so that it has "
                    "no scale. Leave the reference point out."
                )
        return cls(mean, std, [(p - m) / s for p, m, s in zip(reference_point, mean, std, strict=True)])

    def z(self, rewards: NDArray[np.float64]) -> NDArray[np.float64]:
        """Z-scores of rewards, `np.ndarray` of shape `(..., objectives)`; 0 for a reward that never varied."""
        mean, std = np.array(self.mean), np.array(self.std)
        return np.where(std > 0, (rewards - mean) / np.where(std > 0, std, 1.0), 0.0)

    def reference_point(self) -> list[float]:
        """The reference point in the units of the rewards."""
        return [m + z * s for m, s, z in zip(self.mean, self.std, self.reference, strict=True)]


@dataclass(frozen=True)
class FrontPoint:
    """What the answers to all prompts under one preference are worth.

    Args:
        label (`str`): the weights as text, `"own"` for the preference-weight-net's choice, or `"base"`.
        weights (`list[float]`, *optional*): user weights; for `"own"` the mean of the net's; none for `"base"`.
        rewards (`np.ndarray` of shape `(prompts, objectives)`): in their units; NaN where a reward returned None.
        lengths (`list[int]`): tokens of each answer, its end included.
        nll (`list[float]`): negative log-likelihood of each answer under the base, in nats.
        distinct (`list[float]`): distinct-1 and distinct-2 of all answers, see [`distinct_n`].
    """

    label: str
    weights: list[float] | None
    rewards: NDArray[np.float64]
    lengths: list[int]
    nll: list[float]
    distinct: list[float]

    @property
    def rated(self) -> NDArray[np.float64]:
        """The rewards of the answers that every reward function rated.

        Raises:
            ValueError: if there is none.
        """
        whole = self.rewards[np.isfinite(self.rewards).all(axis=-1)]
        if not len(whole):
            raise ValueError(f"At the preference {self.label} not one answer was rated by every reward function.")
        return whole

    def mean(self) -> NDArray[np.float64]:
        """Mean rewards, `np.ndarray` of shape `(objectives,)`, in their units."""
        return self.rated.mean(axis=0)

    def standard_error(self) -> NDArray[np.float64]:
        """Standard error of [`mean`] over prompts; 0 for a single prompt."""
        whole = self.rated
        return whole.std(axis=0, ddof=1) / math.sqrt(len(whole)) if len(whole) > 1 else np.zeros(whole.shape[1])

    def to_json(self, scale: Scale) -> dict[str, Any]:
        """Everything that is known of the point."""
        tokens = sum(self.lengths)
        per_token = sum(self.nll) / max(tokens, 1)
        return {
            "label": self.label,
            "weights": self.weights,
            "mean": self.mean().tolist(),
            "z": scale.z(self.mean()).tolist(),
            "standard_error": self.standard_error().tolist(),
            "rated": len(self.rated),
            "mean_length": tokens / len(self.lengths),
            "distinct_1": self.distinct[0],
            "distinct_2": self.distinct[1],
            "nll_per_token": per_token,
            "perplexity": math.exp(min(per_token, 700.0)),
            "rewards": [[None if r != r else r for r in row] for row in self.rewards.tolist()],
            "lengths": self.lengths,
            "nll": self.nll,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "FrontPoint":
        """Reads what [`to_json`] gave."""
        rewards = np.array([[math.nan if r is None else r for r in row] for row in content["rewards"]], dtype=float)
        distinct = [content["distinct_1"], content["distinct_2"]]
        return cls(content["label"], content["weights"], rewards, content["lengths"], content["nll"], distinct)


@dataclass(frozen=True)
class Front:
    """The front of one arm.

    Args:
        name (`str`): of the arm.
        objectives (`list[str]`): their names.
        scale ([`Scale`]): shared by all arms that are compared.
        points (`list[FrontPoint]`): one for each user weight, in their order.
        own, base (`FrontPoint`, *optional*): the net's own choice, and the base without adapter and preference.
        settings (`dict`): what all arms of a comparison share: seed, decoding, digest of the prompts.
    """

    name: str
    objectives: list[str]
    scale: Scale
    points: list[FrontPoint]
    own: FrontPoint | None
    base: FrontPoint | None
    settings: dict[str, Any]

    def weights(self) -> NDArray[np.float64]:
        """User weights, `np.ndarray` of shape `(points, objectives)`."""
        return np.array([point.weights for point in self.points], dtype=float)

    def rewards(self) -> NDArray[np.float64]:
        """Z-scored rewards, `np.ndarray` of shape `(points, prompts, objectives)`; NaN where one is missing."""
        return self.scale.z(np.stack([point.rewards for point in self.points]))

    def means(self) -> NDArray[np.float64]:
        """Mean z-scored rewards, `np.ndarray` of shape `(points, objectives)`."""
        return self.scale.z(np.stack([point.mean() for point in self.points]))

    def figures(self) -> dict[str, Any]:
        """Hypervolume, mean inner product (both of z-scores) and controllability.

        Controllability is `None` for an objective whose rewards or weights do not vary; so is its mean if all are.
        """
        means, weights = self.means(), self.weights()
        each = controllability_per_objective(weights, means)
        known = [value for value in each if value is not None]
        return {
            "hypervolume": hypervolume(means, self.scale.reference),
            "inner_product": mean_inner_product(weights, means),
            "controllability": sum(known) / len(known) if known else None,
            "controllability_per_objective": each,
        }

    def to_json(self) -> dict[str, Any]:
        """The front for a file; it holds no text of prompts or answers."""
        return {
            "name": self.name,
            "objectives": self.objectives,
            "scale": {"mean": self.scale.mean, "std": self.scale.std},
            "reference_z": self.scale.reference,
            "reference_point": self.scale.reference_point(),
            "settings": self.settings,
            "figures": self.figures(),
            "points": [point.to_json(self.scale) for point in self.points],
            "own": None if self.own is None else self.own.to_json(self.scale),
            "base": None if self.base is None else self.base.to_json(self.scale),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Front":
        """Reads what [`to_json`] gave."""
        scale = Scale(content["scale"]["mean"], content["scale"]["std"], content["reference_z"])
        own, base = (None if content[k] is None else FrontPoint.from_json(content[k]) for k in (OWN, BASE))
        points = [FrontPoint.from_json(point) for point in content["points"]]
        return cls(content["name"], content["objectives"], scale, points, own, base, content["settings"])


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct-n: different n-grams of words over all n-grams, of all texts together (Li et al. 2016, section 5.2).

    Returns:
        `float` in [0, 1]; 0 where there is no n-gram.
    """
    grams: list[tuple[str, ...]] = []
    for text in texts:
        words = re.findall(r"\w+", text.lower())
        grams += zip(*(words[i:] for i in range(n)), strict=False)
    return len(set(grams)) / len(grams) if grams else 0.0
