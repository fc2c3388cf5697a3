"""TRL's fused head on packed rows: the same numbers, with each prompt computed once and nothing padded."""

import functools
import logging
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import is_peft_model
from trl.trainer.utils import add_fused_lm_head

from hf_lifealign.packing.layout import EncodedPair, PackedRows, lay_out
from hf_lifealign.packing.mask import attention_mask
from hf_lifealign.packing.rows import cheapest_rows
from hf_lifealign.packing.support import even_width

logger = logging.getLogger(__name__)

# What a log-probability of a token may differ by between the plain and the packed path, as a share of 1 + its size.
TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1.5e-1}
# Models that have been seen to keep to mask and positions.
_CHECKED: "weakref.WeakSet[torch.nn.Module]" = weakref.WeakSet()
_FIELDS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


class PackedPathError(RuntimeError):
    """The packed path gives other log-probabilities than the plain one."""


def read_pairs(input_ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> list[EncodedPair] | None:
    """The pairs of a padded batch of [`~trl.DPOTrainer`]: its chosen sequences come first, the rejected ones follow.

    Args:
        input_ids, mask, labels (`torch.Tensor` of shape `(2 * pairs, tokens)`): labels are -100 where nothing is
            scored.

    Returns:
        `list[EncodedPair]`, or `None` if the batch is of another form: padded on the left, or with gaps in a
        completion.
    """
    rows, length = input_ids.shape
    if rows % 2 or mask.shape != input_ids.shape or labels.shape != input_ids.shape:
        return None
    places = torch.arange(length, device=mask.device)
    counts = mask.sum(dim=1)
    scored = labels != -100
    starts = torch.where(scored.any(dim=1), scored.int().argmax(dim=1), counts)
    held = mask.bool() == (places < counts[:, None])
    whole = scored == ((places >= starts[:, None]) & (places < counts[:, None]))
    if not bool((held & whole).all()):
        return None
    ids, ends, begins = input_ids.tolist(), counts.tolist(), starts.tolist()
    sequences = [row[:end] for row, end in zip(ids, ends, strict=True)]
    half = rows // 2
    return [EncodedPair(sequences[i], sequences[half + i], begins[i], begins[half + i]) for i in range(half)]


class PackedForward:
    """Runs the fused head of a model on packed rows.

    Args:
        model ([`~transformers.PreTrainedModel`]): with TRL's fused head.
        inner (`Callable`): its forward, with TRL's fused head.
        limit (`int`, *optional*): most tokens of a row that holds more than one pair.
    """

    def __init__(self, model: Any, inner: Callable[..., Any], limit: int | None):
        self.model, self.inner = model, inner
        self.choose = functools.partial(cheapest_rows, even=even_width(model), limit=limit)
        self._told = False

    def __call__(self, *args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
        if not fused_lm_head or labels is None:
            told = {} if labels is None else {"labels": labels}
            return self.inner(*args, fused_lm_head=fused_lm_head, **told, **kwargs)
        pairs = self._pairs(args, labels, kwargs)
        if pairs is None:
            return self.inner(*args, fused_lm_head=True, labels=labels, **kwargs)
        rows = lay_out(pairs, self.choose).to(kwargs["input_ids"].device)
        if not len(rows.targets):
            return self.inner(*args, fused_lm_head=True, labels=labels, **kwargs)
        return _unpacked(self._checked(pairs, rows), rows, labels)

    @torch.no_grad()
    def log_probs(self, pairs: list[EncodedPair]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Log-probabilities of the completion tokens of pairs, chosen and rejected, each of shape `(tokens,)`."""
        rows = lay_out(pairs, self.choose).to(next(self.model.parameters()).device)
        if not len(rows.targets):
            return [(torch.zeros(0), torch.zeros(0)) for _ in pairs]
        found = self._checked(pairs, rows).log_probs[0]
        # a side's tokens lie one behind the other, in the order of the sequence
        order = torch.argsort(rows.sides, stable=True)
        sizes = torch.bincount(rows.sides, minlength=2 * len(pairs)).tolist()
        parts = found[order].split(sizes)
        return list(zip(parts[: len(pairs)], parts[len(pairs) :], strict=True))

    def _checked(self, pairs: list[EncodedPair], rows: PackedRows) -> Any:
        if self.model not in _CHECKED:
            self._check(pairs)
            _CHECKED.add(self.model)
        return self._run(rows)

    def _pairs(self, args: tuple[Any, ...], labels: torch.Tensor, kwargs: dict[str, Any]) -> list[EncodedPair] | None:
        # PEFT hands on what it was not given as None
        given = {name for name, value in kwargs.items() if value is not None}
        others = sorted(given - {"input_ids", "attention_mask", "use_cache", "return_dict"})
        reason = None
        if args or others or not {"input_ids", "attention_mask"} <= given:
            reason = f"the batch has {', '.join(others) or 'no input_ids and attention_mask by name'}"
            found = None
        else:
            found = read_pairs(kwargs["input_ids"], kwargs["attention_mask"], labels)
            reason = None if found is not None else "the batch is not padded on the right as DPOTrainer pads pairs"
        if reason is not None and not self._told:
            self._told = True
            logger.warning(f"Pairs are not packed: {reason}.")
        return found

    def _run(self, rows: PackedRows) -> Any:
        implementation = self.model.config._attn_implementation
        mask = attention_mask(rows, implementation, self.model.dtype)
        with scored_alone(self.model.base_model, rows.sources):
            return self.inner(
                input_ids=rows.input_ids, attention_mask=mask, position_ids=rows.positions,
                shift_labels=rows.targets[None], fused_lm_head=True, use_cache=False,
            )  # fmt: skip

    @torch.no_grad()
    def _check(self, pairs: list[EncodedPair]) -> None:
        """Compares the first pair's log-probabilities, packed beside another pair, with those of the plain path."""
        first = next(i for i, pair in enumerate(pairs) if not pair.is_empty or len(pairs) == i + 1)
        pair, other = pairs[first], pairs[(first + 1) % len(pairs)]
        device = next(self.model.parameters()).device
        # the other pair stands before and after it in one row, so that what leaks from either side is seen
        rows = lay_out([other, pair, other], lambda lengths: [list(range(len(lengths)))]).to(device)
        with _undisturbed(self.model):
            packed = self._run(rows).log_probs[0]
            for side, tokens in enumerate((pair.chosen, pair.rejected)):
                at = rows.sides == 1 + 3 * side
                if not bool(at.any()):
                    continue
                ids = torch.tensor([tokens], device=device)
                plain = self.inner(
                    input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, fused_lm_head=True, use_cache=False
                ).log_probs[0]
                self._compare(packed[at], plain[rows.steps[at] - 1])

    def _compare(self, packed: torch.Tensor, plain: torch.Tensor) -> None:
        dtype = self.model.dtype
        if torch.is_autocast_enabled(packed.device.type):
            dtype = torch.get_autocast_dtype(packed.device.type)
        tolerance = TOLERANCES.get(dtype, TOLERANCES[torch.bfloat16])
        error = float(((packed - plain).abs() / (1 + plain.abs())).max())
        if not error <= tolerance:
            raise PackedPathError(
                f"You set pair_packing='auto'. With packed rows {type(self.model).__name__} gives log-probabilities of "
                f"tokens that differ by {error:.2g} of their size from those without (tolerance {tolerance:g} in "
                f"{dtype}): it does not keep to the mask or the positions it is given. Set pair_packing='off'."
            )


def add_pair_packing(model: Any, limit: int | None = None) -> None:
    """Lets the fused head of a model run on packed rows.

    `model(input_ids=, attention_mask=, labels=, fused_lm_head=True)` with a padded batch of pairs then gives the very
    fields that TRL's fused head gives, of the same shapes, from packed rows. Other calls are left as they are. On the
    first batch one pair is computed in both ways.

    Args:
        model ([`~transformers.PreTrainedModel`]): to which [`~trl.trainer.utils.add_fused_lm_head`] was applied, and
            that [`~hf_lifealign.packing.why_not_packed`] has nothing against. Not the PEFT model around it.
        limit (`int`, *optional*): most tokens of a row that holds more than one pair.
    """
    packed = PackedForward(model, model.forward, limit)

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return packed(*args, **kwargs)

    model.forward = types.MethodType(forward, model)


@contextmanager
def packed_head(model: Any, limit: int | None = None) -> Iterator[PackedForward]:
    """TRL's fused head on packed rows for the time of a context, for scoring.

    Args:
        model (`torch.nn.Module`): that [`~hf_lifealign.packing.why_not_packed`] has nothing against; or the PEFT model
            around it, whose active adapters count.
        limit (`int`, *optional*): most tokens of a row that holds more than one pair.
    """
    base = model.get_base_model() if is_peft_model(model) else model
    own = vars(base).get("forward")
    add_fused_lm_head(base)
    try:
        yield PackedForward(base, base.forward, limit)
    finally:
        if own is None:
            del base.forward
        else:
            base.forward = own


@contextmanager
def scored_alone(backbone: torch.nn.Module, sources: torch.Tensor) -> Iterator[None]:
    """Of what a backbone gives, only the places that predict something go on to the head.

    Args:
        backbone (`torch.nn.Module`): whose output has a `last_hidden_state` of shape `(rows, width, hidden)`.
        sources (`torch.Tensor` of shape `(scored,)`): indices into the flattened rows.
    """

    def keep(module: torch.nn.Module, args: Any, output: Any) -> Any:
        hidden = output.last_hidden_state
        flat = hidden.reshape(-1, hidden.shape[-1])
        output.last_hidden_state = flat.index_select(0, sources.to(flat.device))[None]
        return output

    handle = backbone.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def _unpacked(packed: Any, rows: PackedRows, labels: torch.Tensor) -> Any:
    """The fields of the fused head in the shape of the padded batch; zero where nothing is scored."""
    shape = (labels.shape[0], labels.shape[1] - 1)
    places = rows.sides * shape[1] + rows.steps - 1
    fields = {}
    for name in _FIELDS:
        value = getattr(packed, name)
        if value is not None:
            empty = value.new_zeros(shape[0] * shape[1])
            fields[name] = empty.index_put((places.to(value.device),), value[0]).view(shape)
    return type(packed)(loss=packed.loss, label_mask=labels[:, 1:] != -100, **fields)


@contextmanager
def _undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """No dropout in any module, and each as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
