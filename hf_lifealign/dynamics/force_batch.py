"""Training rows on which forces are measured: the same ones throughout, in updates as the trainer makes them."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer

from hf_lifealign.dynamics.forces import IGNORED, split_nll
from hf_lifealign.dynamics.likelihood import add_gradient
from hf_lifealign.dynamics.measuring import forward_arguments
from hf_lifealign.dynamics.updates import Tensors, norm
from hf_lifealign.fpo.extra_loss import ExtraLossMixin
from hf_lifealign.prompt_pool import pools_of
from hf_lifealign.prompt_pool.training import PromptPoolMixin

# Logits that are held at once in a forward and two backwards, in bytes.
_LOGITS = 128 * 1024**2
DRIVE, REBOUND, TOTAL = "drive", "rebound", "total"
# Updates for whose rows a force batch has room: the mean square of fewer gradients is hardly a second moment, and
# dividing by it makes drive and rebound explode.
UPDATES, FEW_UPDATES = 6, 4
# What a configuration calls the plain negative log-likelihood; TRL reads the second as the first.
_PLAIN = ("nll", "chunked_nll", None)
# A piece of a batch: losses by name, summed over so many tokens or rows.
Terms = tuple[dict[str, torch.Tensor], float]


class NotEstimableError(Exception):
    """Why a force cannot be measured, as a sentence for log and report."""


@dataclass
class Gradients:
    """Gradients of the training loss on a force batch, means over updates as the trainer makes them.

    Args:
        parts (`dict[str, list[torch.Tensor]]`): `"drive"` and `"rebound"` of a loss that is a likelihood, or
            `"total"` of any other; clipped as the trainer does.
        second (`list[torch.Tensor]`): mean square of the whole gradient of an update, which is what Adam's second
            moment tends to.
        loss (`float`): the loss, in nats for each learnt token where it is a likelihood.
        rows (`int`): rows of the batch.
        updates (`int`): that they make.
    """

    parts: dict[str, Tensors]
    second: Tensors
    loss: float
    rows: int
    updates: int = 1


class ForceBatch:
    """A fixed sample of training rows, in whole updates: what is left over beside at least one is dropped, since an
    update of fewer rows has another gradient.

    Args:
        rows (`list`): of the training set, as the trainer's collator takes them.
        collate (`Callable`): the trainer's collator.
        batch_size (`int`): rows that are collated together.
        accumulate (`int`): so many of these make an update.
        max_norm (`float`, *optional*): to which the trainer clips the gradient of an update.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        collate: Callable[[list[Any]], Any],
        batch_size: int,
        accumulate: int = 1,
        max_norm: float | None = None,
    ):
        self.collate, self.max_norm = collate, max_norm
        self.batch_size, self.accumulate = max(1, batch_size), max(1, accumulate)
        over = len(rows) % (self.batch_size * self.accumulate)
        self.rows = list(rows[: len(rows) - over]) or list(rows)

    @classmethod
    def of(cls, dataloader: Any, count: int, seed: int, args: Any = None) -> "ForceBatch":
        """Rows of a trainer's data loader, chosen by a seed of their own; its own order is not touched.

        Args:
            dataloader (`DataLoader`): of the trainer.
            count (`int`): how many rows at least; more where 6 updates need more, and fewer where there are no more.
            seed (`int`): which.
            args (`TrainingArguments`, *optional*): by which an update is made of batches.

        Raises:
            NotEstimableError: if its rows cannot be chosen.
        """
        dataset: Any = getattr(dataloader, "dataset", None)
        length = _length(dataset)
        if length is None or not hasattr(dataset, "__getitem__"):
            raise NotEstimableError("the training data is a stream, of which no fixed batch can be chosen")
        if not length or not isinstance(dataset[0], Mapping):
            raise NotEstimableError("the training data has no rows of its own before training")
        inner = getattr(dataloader, "batch_sampler", None)
        size = getattr(dataloader, "batch_size", None) or getattr(inner, "batch_size", None) or 8
        accumulate = getattr(args, "gradient_accumulation_steps", 1) * getattr(args, "world_size", 1)
        count = max(count, UPDATES * int(size) * accumulate)
        order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))[:count].tolist()
        # not sorted: rows that lie together are often alike, and those of an update are not
        rows = [dataset[i] for i in order]
        return cls(rows, dataloader.collate_fn, int(size), accumulate, getattr(args, "max_grad_norm", None))

    def updates(self, device: torch.device) -> Iterator[list[tuple[dict[str, Any], int]]]:
        """Collated batches with their rows, as many together as make an update."""
        per_update = self.batch_size * self.accumulate
        for start in range(0, len(self.rows), per_update):
            rows = self.rows[start : start + per_update]
            found = []
            for first in range(0, len(rows), self.batch_size):
                part = rows[first : first + self.batch_size]
                batch = self.collate(part)
                found.append(
                    ({k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}, len(part))
                )
            yield found

    def first(self) -> dict[str, Any]:
        """A collated row, by which the kind of loss is known."""
        found: dict[str, Any] = self.collate(self.rows[:1])
        return found


def _length(dataset: Any) -> int | None:
    """Rows of a data set; `None` if it cannot tell."""
    try:
        return len(dataset)
    except (TypeError, AttributeError, NotImplementedError):  # of what has a length by name alone
        return None


def is_likelihood(batch: dict[str, Any]) -> bool:
    """Whether a training batch is one of a next-token likelihood, as of SFT."""
    return "input_ids" in batch and "labels" in batch and batch["labels"].shape == batch["input_ids"].shape


def is_plain_likelihood(args: Any, trainer: Any = None) -> bool:
    """Whether a trainer learns such batches by their negative log-likelihood, and by nothing else: only that splits
    into drive and rebound.

    Args:
        args (`TrainingArguments`): of the trainer.
        trainer ([`~transformers.Trainer`], *optional*): without it a loss that was given as a function is not seen.
    """
    if getattr(args, "label_smoothing_factor", 0) or getattr(args, "loss_type", None) not in _PLAIN:
        return False
    if trainer is None:
        return True
    if getattr(trainer, "compute_loss_func", None) is not None or getattr(trainer, "aux_loss_enabled", False):
        return False
    known = [Trainer.compute_loss]
    # a trainer of TRL has been imported; others do without it
    if "trl.trainer.sft_trainer" in sys.modules:
        known.append(sys.modules["trl.trainer.sft_trainer"].SFTTrainer.compute_loss)
    if "compute_loss" in vars(trainer) or bool(getattr(trainer, "extra_losses", None)) or pools_of(trainer.model):
        return False
    # these seams add nothing where there are neither extra losses nor prompt pools
    seams = (ExtraLossMixin, PromptPoolMixin)
    own: Any = next(kind for kind in type(trainer).__mro__ if "compute_loss" in vars(kind) and kind not in seams)
    return own.compute_loss in known


def split_gradients(model: Any, parameters: Sequence[torch.Tensor], batch: ForceBatch) -> Gradients:
    """Gradients of the driving and the rebound term of the mean negative log-likelihood of a token.

    Raises:
        NotEstimableError: if nothing in the batch is learnt.
    """

    def terms(inputs: dict[str, Any], rows: int) -> Iterator[Terms]:
        vocabulary = int(model.config.get_text_config().vocab_size)
        count, width = inputs["input_ids"].shape
        together = max(1, _LOGITS // (4 * vocabulary * width))
        for start in range(0, count, together):
            piece = {
                k: v[start : start + together]
                for k, v in inputs.items()
                if isinstance(v, torch.Tensor) and v.shape[:1] == (count,)
            }
            logits = model(**forward_arguments(model, piece), use_cache=False).logits
            labels = piece["labels"][:, 1:]
            drive, rebound = split_nll(logits[:, :-1], labels)
            yield {DRIVE: drive, REBOUND: rebound}, int((labels != IGNORED).sum())

    return _gradients(model, parameters, batch, (DRIVE, REBOUND), terms)


def trainer_loss(trainer: Any) -> Callable[[Any, dict[str, Any]], torch.Tensor]:
    """A trainer's own loss, without what it notes for its logs."""

    def loss_of(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        kept: dict[str, Any] = getattr(trainer, "_metrics", {})
        metrics = {mode: {k: list(v) for k, v in found.items()} for mode, found in kept.items()}
        try:
            loss: torch.Tensor = trainer.compute_loss(model, inputs)
            return loss
        finally:
            for mode, found in metrics.items():
                kept[mode].clear()
                kept[mode].update(found)

    return loss_of


def loss_gradients(
    model: Any,
    parameters: Sequence[torch.Tensor],
    batch: ForceBatch,
    loss_of: Callable[[Any, dict[str, Any]], torch.Tensor],
) -> Gradients:
    """Gradients of a trainer's own loss, which is the mean over the rows it is given."""

    def terms(inputs: dict[str, Any], rows: int) -> Iterator[Terms]:
        yield {TOTAL: loss_of(model, inputs) * rows}, rows

    return _gradients(model, parameters, batch, (TOTAL,), terms)


def _gradients(
    model: Any,
    parameters: Sequence[torch.Tensor],
    batch: ForceBatch,
    names: tuple[str, ...],
    terms: Callable[[dict[str, Any], int], Iterator[Terms]],
) -> Gradients:
    def zeros() -> Tensors:
        return [torch.zeros_like(p, dtype=torch.float32) for p in parameters]

    means, second = {name: zeros() for name in names}, zeros()
    parts = {name: zeros() for name in names}
    loss, count, updates = 0.0, 0.0, 0
    for batches in batch.updates(next(model.parameters()).device):
        weight = 0.0
        for part in (part for tensors in parts.values() for part in tensors):
            part.zero_()
        with torch.enable_grad():
            for inputs, rows in batches:
                for losses, units in terms(inputs, rows):
                    if units:
                        for name, value in losses.items():
                            add_gradient(parts[name], value, parameters, retain_graph=name != names[-1])
                            loss += float(value.detach())
                        weight += units
        if not weight:
            continue
        clip = 1.0
        if batch.max_norm:
            clip = min(1.0, batch.max_norm / (_norm_of_sum(list(parts.values())) / weight + 1e-6))
        for name in names:
            for mean, part in zip(means[name], parts[name], strict=True):
                mean.add_(part, alpha=clip / weight)
        for square, pieces in zip(second, zip(*parts.values(), strict=True), strict=True):
            whole = sum(pieces[1:], pieces[0])
            square.addcmul_(whole, whole, value=(clip / weight) ** 2)
        count += weight
        updates += 1
    if not updates:
        raise NotEstimableError("not a token of the force batch is learnt")
    for tensors in (*means.values(), second):
        for tensor in tensors:
            tensor /= updates
    return Gradients(means, second, loss / count, len(batch.rows), updates)


def _norm_of_sum(parts: list[Tensors]) -> float:
    """Euclidean norm of the sum of some gradients, one parameter at a time: the sum is never held as a whole."""
    return float(sum(norm([sum(tensors[1:], tensors[0])]) ** 2 for tensors in zip(*parts, strict=True)) ** 0.5)
