"""Probes, and what a model answered to them: the samples by which a score is measured and followed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hf_lifealign.prompts import Prompt
from hf_lifealign.stream.rows import text_of

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Probe:
    """A prompt by whose answers alignment is judged.

    Args:
        prompt (`str` or `list[dict]`): plain or conversational.
        reference (`str`): what the judge may compare with; empty if there is nothing.
        aligned, other (`str`): an aligned and a non-aligned answer to it, where a data set has both; see
            [`~hf_lifealign.dynamics.reference.ReferenceAnswers`].
    """

    prompt: Prompt
    reference: str = ""
    aligned: str = ""
    other: str = ""


def read_probes(probes: "Sequence[Any] | Dataset | str", split: str = "test", limit: int | None = None) -> list[Probe]:
    """Probes from whatever holds prompts.

    Args:
        probes (`str`, `list` or [`~datasets.Dataset`]): prompts, rows with `prompt` (and `reference`, or `chosen`, the
            answer to compare with; with `rejected` beside it, an aligned and a non-aligned answer), or the name of a
            file, a folder with a file for each split, or a Hub id.
        split (`str`): which split of folders and Hub ids.
        limit (`int`, *optional*): only the first so many.

    Raises:
        ValueError: if there are none, or a row has no prompt.
    """
    if isinstance(probes, str):
        from hf_lifealign.stream.tables import load_rows

        probes = load_rows(probes, split)
    found = []
    for i, row in enumerate(probes):
        if isinstance(row, Probe):
            found.append(row)
        elif isinstance(row, dict) and "prompt" in row:
            chosen, rejected = text_of(row.get("chosen") or ""), text_of(row.get("rejected") or "")
            found.append(Probe(row["prompt"], text_of(row.get("reference") or "") or chosen, chosen, rejected))
        elif isinstance(row, str | list):
            found.append(Probe(row))
        else:
            raise ValueError(f"Probe {i} is {str(row)[:80]!r}. Give prompts, or rows with a 'prompt'.")
        if limit is not None and len(found) == limit:
            break
    if not found:
        raise ValueError("You gave no probes. Give at least one prompt; a score is worth reading from about 16 on.")
    if len({isinstance(probe.prompt, str) for probe in found}) > 1:
        raise ValueError("Some of your probes are texts and some are conversations. Give one form.")
    return found


@dataclass
class Samples:
    """Answers of one state of a model to all probes, and how likely they were to it.

    Args:
        step (`int`): optimizer steps before they were drawn.
        prompt_ids (`list` of `P` lists of int): tokens of the probes.
        completion_ids (`list` of `P` lists of `n` lists of int): tokens of the answers, their end included.
        labels (`list` of `P` lists of `n` float): how aligned each is, in [0, 1], as judged.
        logps (`list` of `P` lists of `n` float): log-likelihoods when they were drawn, in nats.
    """

    step: int
    prompt_ids: list[list[int]]
    completion_ids: list[list[list[int]]]
    labels: list[list[float]] = field(default_factory=list)
    logps: list[list[float]] = field(default_factory=list)

    def log_weights(self, logps: Sequence[Sequence[float]]) -> list[list[float]]:
        """Log-likelihoods of another state of the model, less those when they were drawn."""
        return [[a - b for a, b in zip(*rows, strict=True)] for rows in zip(logps, self.logps, strict=True)]

    def half(self, which: int) -> "Samples":
        """Every second answer to each probe, from the first (0) or the second (1) on: two halves that share no answer
        and no label."""

        def cut(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
            return [list(row[which::2]) for row in rows]

        return Samples(self.step, self.prompt_ids, cut(self.completion_ids), cut(self.labels), cut(self.logps))

    def one_sided(self) -> str | None:
        """Why no force can be estimated from these labels, or `None`."""
        values = [label for row in self.labels for label in row]
        if max(values) == min(values):
            side = "aligned" if values[0] > 0.5 else "non-aligned"
            return f"all {len(values)} samples are {side}: there is nothing to tell apart"
        if not any(len(row) > 1 and max(row) > min(row) for row in self.labels):
            return "no probe has both aligned and non-aligned samples"
        return None
