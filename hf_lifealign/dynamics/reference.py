"""How much likelier a model finds the aligned answers that come with probes than the non-aligned ones."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from hf_lifealign.dynamics.likelihood import logps_of
from hf_lifealign.dynamics.samples import Probe


@dataclass(frozen=True)
class ReferenceMargin:
    """The margin at one step.

    Args:
        margin (`float`): mean over the probes, in nats.
        low, high (`float`): 95 % interval, by a bootstrap over probes.
        probes (`int`): that have both answers.
    """

    margin: float
    low: float
    high: float
    probes: int

    def to_json(self) -> dict[str, Any]:
        """All figures by their names."""
        return asdict(self)


class ReferenceAnswers:
    r"""
    The aligned and the non-aligned answers of a data set to probes, as preference rows have them, and the margin of
    their log-likelihoods: ``mean over probes of log p(aligned) - log p(non-aligned)``, over the first tokens of each.

    This is a proxy that needs no judge and no samples. It is not the score S: the answers are the data set's and not
    the model's, and the margin can grow while the model says neither.

    Args:
        probes (`list[Probe]`): those without both answers are left out.
        prompt_ids (`list` of lists of int): their tokens.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): of the model.
        tokens (`int`): of each answer that count.
        replicates (`int`), seed (`int`): of the bootstrap.
    """

    def __init__(
        self,
        probes: Sequence[Probe],
        prompt_ids: Sequence[Sequence[int]],
        tokenizer: Any,
        tokens: int,
        replicates: int = 1000,
        seed: int = 0,
    ):
        both = [i for i, probe in enumerate(probes) if probe.aligned and probe.other]
        self.prompt_ids = [list(prompt_ids[i]) for i in both]
        self.answer_ids = [
            [self._ids(tokenizer, text)[:tokens] for text in (probes[i].aligned, probes[i].other)] for i in both
        ]
        self.replicates, self.seed = replicates, seed

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @staticmethod
    def _ids(tokenizer: Any, text: str) -> list[int]:
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        return ids if tokenizer.eos_token_id is None else [*ids, int(tokenizer.eos_token_id)]

    @torch.no_grad()
    def measure(self, model: Any) -> ReferenceMargin | None:
        """The margin now, of a model in evaluation mode; `None` if no probe has both answers."""
        if not self.prompt_ids:
            return None
        margins = np.array([a - b for a, b in logps_of(model, self.prompt_ids, self.answer_ids)], dtype=np.float64)
        draws = np.random.default_rng(self.seed).integers(margins.size, size=(self.replicates, margins.size))
        low, high = np.quantile(margins[draws].mean(axis=1), [0.025, 0.975])
        return ReferenceMargin(float(margins.mean()), float(low), float(high), int(margins.size))
