"""What is kept between two measurements: the anchor's samples, where the parameters were, and grad S there."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hf_lifealign._files import read_json, replacing, write_json
from hf_lifealign.dynamics.samples import Samples
from hf_lifealign.dynamics.updates import Tensors, difference, inner_product

# The leading underscore keeps it out of what a trainer uploads: it holds answers.
STATE, TENSORS = "_alignment_dynamics.json", "_alignment_dynamics.safetensors"


@dataclass
class Anchor:
    """One anchor, from which the score is followed until the next.

    Args:
        samples ([`Samples`]): drawn from the model there.
        score (`float`): S there.
        forces (`dict[str, float]`): `drive`, `rebound`, `net` there, in logit S for each step; empty where they are not
            estimable.
        parameters (`list[torch.Tensor]`, *optional*): a copy of the trained parameters there.
        gradient (`list[torch.Tensor]`, *optional*): grad S there.
    """

    samples: Samples
    score: float
    forces: dict[str, float] = field(default_factory=dict)
    parameters: Tensors | None = None
    gradient: Tensors | None = None

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

    # Checkpoints

    def save(self, folder: Path) -> None:
        """Writes the anchor into a checkpoint."""
        tensors: dict[str, torch.Tensor] = {}
        for name, part in (("parameters", self.parameters), ("gradient", self.gradient)):
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
        for name in ("parameters", "gradient"):
            part = [tensors[f"{name}.{i}"] for i in range(len(parameters)) if f"{name}.{i}" in tensors]
            shapes = [tuple(t.shape) for t in part] == [tuple(p.shape) for p in parameters]
            found[name] = [t.to(p.device) for t, p in zip(part, parameters, strict=True)] if part and shapes else None
        return cls(Samples(**content["samples"]), content["score"], content["forces"], **found)


def to_json(estimate: Any) -> dict[str, Any]:
    """An estimate without what is missing."""
    return {key: value for key, value in estimate.to_json().items() if value is not None}
