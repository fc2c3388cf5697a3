"""What is kept between two measurements: the anchor's samples, where the parameters were, and grad S there."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hf_lifealign._files import read_json, replacing, write_json
from hf_lifealign.dynamics.rehearsal import logit
from hf_lifealign.dynamics.samples import Samples
from hf_lifealign.dynamics.updates import Tensors, difference, inner_product
from hf_lifealign.metrics.alignment_dynamics import alignment_score

# It holds answers. The leading underscore keeps it out of what a trainer uploads of a model, but not out of checkpoints
# that are uploaded whole (hub_strategy "checkpoint" and "all_checkpoints"), of which the callback warns.
STATE, TENSORS = "_alignment_dynamics.json", "_alignment_dynamics.safetensors"
# What a checkpoint calls the tensors of an anchor.
_KEPT = ("parameters", "gradient", "half_a", "half_b")


@dataclass
class Anchor:
    """One anchor, from which the score is followed until the next.

    Args:
        samples ([`Samples`]): drawn from the model there.
        score (`float`): S there.
        forces (`dict[str, float]`): `drive`, `rebound`, `net` there, in logit S for each step; empty where they are not
            estimable.
        parameters (`list[torch.Tensor]`, *optional*): a copy of the trained parameters there.
        gradient (`list[torch.Tensor]`, *optional*): grad S there, by all samples.
        halves (pair of `list[torch.Tensor]`, *optional*): grad S by each half of the samples; see [`Samples.half`].
            Their predictions are held against what the other half measures.
    """

    samples: Samples
    score: float
    forces: dict[str, float] = field(default_factory=dict)
    parameters: Tensors | None = None
    gradient: Tensors | None = None
    halves: tuple[Tensors | None, Tensors | None] = (None, None)

    @property
    def step(self) -> int:
        """Optimizer steps before it."""
        return self.samples.step

    @property
    def gate(self) -> float:
        """S (1 - S), by which a change of S becomes one of logit S."""
        return self.score * (1 - self.score)

    def attributed(self, parameters: Sequence[torch.Tensor], gradient: Tensors | None = None) -> float | None:
        """Change of S that the real change of the parameters since the anchor explains: ``<grad S, d theta>``.

        Args:
            parameters (`list[torch.Tensor]`): now.
            gradient (`list[torch.Tensor]`, *optional*): grad S to attribute by; the anchor's by default.
        """
        given = self.gradient if gradient is None else gradient
        if given is None or self.parameters is None:
            return None
        return inner_product(given, difference(parameters, self.parameters))

    def cross(self, parameters: Sequence[torch.Tensor], logps: Sequence[Sequence[float]]) -> list[list[float | None]]:
        """Change of log-odds since the anchor, predicted by one half of the samples and measured on the other, both
        ways: ``[[predicted by A, measured on B], [predicted by B, measured on A]]``. `None` where it is not estimable.

        On the same samples both sides share all that is by chance in the samples and in their labels, and agree
        whatever the labels mean: of labels that are drawn by lot, grad S still foretells how their own weighted mean
        changes. The halves have nothing in common but the model and the judge.

        What is measured is the change of the log-odds of the half's score, self-normalised for each probe, as its
        gradient is: among few samples that is less noisy than weights that are not.

        Args:
            parameters (`list[torch.Tensor]`): now.
            logps (`P` lists of `n` float): log-likelihoods of the samples now.
        """
        if self.parameters is None or self.halves == (None, None):
            return []
        change = difference(parameters, self.parameters)
        predicted: list[float | None] = []
        measured: list[float | None] = []
        for which, gradient in enumerate(self.halves):
            half = self.samples.half(which)
            weights = half.log_weights([list(row[which::2]) for row in logps])
            before, now = (alignment_score(half.labels, logs, replicates=2).score for logs in (None, weights))
            gate = before * (1 - before)
            predicted.append(inner_product(gradient, change) / gate if gradient is not None and gate > 0 else None)
            moved = logit(now) - logit(before)
            measured.append(moved if math.isfinite(moved) else None)
        return [[predicted[0], measured[1]], [predicted[1], measured[0]]]

    def release(self) -> None:
        """Lets go of all tensors, for which the next anchor needs the memory."""
        self.parameters = self.gradient = None
        self.halves = (None, None)

    # Checkpoints

    def save(self, folder: Path) -> None:
        """Writes the anchor into a checkpoint."""
        tensors: dict[str, torch.Tensor] = {}
        kept = (self.parameters, self.gradient, *self.halves)
        for name, part in zip(_KEPT, kept, strict=True):
            tensors |= {f"{name}.{i}": t.detach().cpu().contiguous() for i, t in enumerate(part or ())}
        with replacing(folder / TENSORS) as partial:
            save_file(tensors, partial)
        content = {"samples": asdict(self.samples), "score": self.score, "forces": self.forces}
        write_json(folder / STATE, content)

    @classmethod
    def load(cls, folder: Path, parameters: Sequence[torch.Tensor]) -> "Anchor | None":
        """Reads what [`save`] wrote; `None` if the checkpoint holds none for these parameters."""
        if not (folder / STATE).is_file() or not (folder / TENSORS).is_file():
            return None
        content, tensors = read_json(folder / STATE), load_file(folder / TENSORS)
        found: dict[str, Tensors | None] = {}
        for name in _KEPT:
            part = [tensors[f"{name}.{i}"] for i in range(len(parameters)) if f"{name}.{i}" in tensors]
            shapes = [tuple(t.shape) for t in part] == [tuple(p.shape) for p in parameters]
            found[name] = [t.to(p.device) for t, p in zip(part, parameters, strict=True)] if part and shapes else None
        return cls(
            Samples(**content["samples"]), content["score"], content["forces"], found["parameters"], found["gradient"],
            (found["half_a"], found["half_b"]),
        )  # fmt: skip


def to_json(estimate: Any) -> dict[str, Any]:
    """An estimate without what is missing."""
    return {key: value for key, value in estimate.to_json().items() if value is not None}
