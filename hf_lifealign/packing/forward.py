"""TRL's fused head on packed rows: the same numbers, with each prompt computed once and little left to pad."""

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

from hf_lifealign._modes import evaluating
from hf_lifealign.packing.layout import EncodedPair, PackedRows, lay_out
from hf_lifealign.packing.mask import attention_mask
from hf_lifealign.packing.rows import cheapest_rows
from hf_lifealign.packing.support import even_width

logger = logging.getLogger(__name__)

# What the log-probability of a token may differ by between the plain and the packed path, as a share of 1 + its size:
# at most, and in the mean over tokens. From coarse to fine. Logits of 32 and more, which trained adapters bring about,
# are a quarter apart in bfloat16; a mask or positions that are not kept to show in the mean.
TOLERANCES = {
    torch.bfloat16: (5e-1, 3e-2),
    torch.float16: (1e-1, 6e-3),
    torch.float32: (1e-3, 2e-4),
    torch.float64: (1e-5, 2e-6),
}
_FIELDS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")

# How long the longest pair was that was compared, by model and by how it computes.
_COMPARED: "weakref.WeakKeyDictionary[torch.nn.Module, dict[tuple[Any, ...], int]]" = weakref.WeakKeyDictionary()

# Gives the log-probabilities of the completion tokens of each pair, chosen and rejected.
PairScorer = Callable[[list[EncodedPair]], list[tuple[torch.Tensor, torch.Tensor]]]


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
    """Runs the fused head of a model on packed rows, and compares it with the plain path before it is relied on.

    One pair is computed in both ways on the first batch, and again whenever a batch has sequences more than twice as
    long as any that were compared: what looks back over a window shows only there. A model is not compared again for
    what adapters have learnt since, but it is in another precision or with another attention.

    Args:
        even (`float`): see [`~hf_lifealign.packing.cheapest_rows`].
        limit (`int`, *optional*): most tokens of a row that holds more than one pair.
        precision (`torch.dtype`, *optional*): in which the model computes, if neither its weights nor autocast tell.
        own_head (`bool`): compare with the model's own logits, and not with the fused head on padded rows.
    """

    def __init__(
        self, even: float, limit: int | None, precision: torch.dtype | None = None, own_head: bool = False
    ) -> None:
        self.choose = functools.partial(cheapest_rows, even=even, limit=limit)
        self.precision, self.own_head = precision, own_head
        self._told = False

    def __call__(
        self, model: Any, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], labels: torch.Tensor
    ) -> Any:
        """What `inner`, the forward of `model` with TRL's fused head, gives for a padded batch of pairs."""
        pairs = self._pairs(args, labels, kwargs)
        rows = None if pairs is None else lay_out(pairs, self.choose).to(labels.device)
        if pairs is None or rows is None or not len(rows.targets):
            return inner(*args, fused_lm_head=True, labels=labels, **kwargs)
        self._check(model, inner, pairs)
        return _unpacked(_run(model, inner, rows), rows, labels)

    def log_probs(
        self, model: Any, inner: Callable[..., Any], pairs: list[EncodedPair]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Log-probabilities of the completion tokens of pairs, chosen and rejected, each of shape `(tokens,)`, with
        their graph where gradients are on."""
        rows = lay_out(pairs, self.choose).to(next(model.parameters()).device)
        if not len(rows.targets):
            return [(torch.zeros(0), torch.zeros(0)) for _ in pairs]
        self._check(model, inner, pairs)
        found = _run(model, inner, rows).log_probs[0]
        # a side's tokens lie one behind the other, in the order of the sequence
        order = torch.argsort(rows.sides, stable=True).to(found.device)
        sizes = torch.bincount(rows.sides, minlength=2 * len(pairs)).tolist()
        parts = found[order].split(sizes)
        return list(zip(parts[: len(pairs)], parts[len(pairs) :], strict=True))

    def _pairs(self, args: tuple[Any, ...], labels: torch.Tensor, kwargs: dict[str, Any]) -> list[EncodedPair] | None:
        # PEFT hands on what it was not given as None
        given = {name for name, value in kwargs.items() if value is not None}
        others = sorted(given - {"input_ids", "attention_mask", "use_cache", "return_dict"})
        found = None
        if args or others or not {"input_ids", "attention_mask"} <= given:
            reason = f"the batch has {', '.join(others) or 'no input_ids and attention_mask by name'}"
        else:
            found = read_pairs(kwargs["input_ids"], kwargs["attention_mask"], labels)
            reason = "the batch is not padded on the right as DPOTrainer pads pairs"
        if found is None and not self._told:
            self._told = True
            logger.warning(f"Pairs are not packed: {reason}.")
        return found

    @torch.no_grad()
    def _check(self, model: Any, inner: Callable[..., Any], pairs: list[EncodedPair]) -> None:
        """Compares the log-probabilities of the longest pair in both ways.

        In one row each of its sides stands behind another branch of its prompt, which is as long as the batch's
        longest: what leaks from there, or from the other block, is seen, and so are positions that are not kept to.
        """
        pair = max((each for each in pairs if each.scored), key=lambda each: each.longest)
        longest = pair.longest
        dtype = self._dtype(model)
        kind = (self.own_head, model.config._attn_implementation, dtype)
        compared = _COMPARED.setdefault(model, {})
        if longest <= 2 * compared.get(kind, 0):
            return
        strange = [token for other in pairs for token in reversed(other.chosen + other.rejected)]
        sides = [side for side in ((pair.chosen, pair.chosen_start), (pair.rejected, pair.rejected_start))
                 if max(side[1], 1) < len(side[0])]  # fmt: skip
        trials = []
        for tokens, start in sides:
            decoy = (strange * longest)[: max(1, longest - start)]
            trials.append(EncodedPair(tokens[:start] + decoy, tokens, start, start))
        device = next(model.parameters()).device
        rows = lay_out(trials, lambda lengths: [list(range(len(lengths)))]).to(device)
        with evaluating(model):
            packed = _run(model, inner, rows).log_probs[0]
            for number, (tokens, _) in enumerate(sides):
                at = rows.sides == len(trials) + number
                plain = self._plain(inner, torch.tensor([tokens], device=device))
                compare(model, packed[at.to(packed.device)], plain[(rows.steps[at] - 1).to(plain.device)], dtype)
        compared[kind] = longest

    def _plain(self, inner: Callable[..., Any], ids: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of a sequence's tokens from the second one on, in a row of its own."""
        told = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        if not self.own_head:
            return torch.as_tensor(inner(**told, labels=ids, fused_lm_head=True).log_probs[0])
        logits = inner(**told).logits[0, :-1].float()
        return logits.log_softmax(-1).gather(-1, ids[0, 1:, None].to(logits.device))[:, 0]

    def _dtype(self, model: Any) -> torch.dtype:
        """The coarsest precision in which the model computes."""
        kinds, device = {model.dtype, self.precision}, model.device.type
        if torch.is_autocast_enabled(device):
            kinds.add(torch.get_autocast_dtype(device))
        return next((kind for kind in TOLERANCES if kind in kinds), torch.bfloat16)


def compare(model: Any, packed: torch.Tensor, plain: torch.Tensor, dtype: torch.dtype) -> None:
    """Compares log-probabilities of a sequence's tokens in both ways.

    Args:
        model (`torch.nn.Module`): that gave them.
        packed, plain (`torch.Tensor` of shape `(tokens,)`).
        dtype (`torch.dtype`): the coarsest precision in which they were computed.

    Raises:
        PackedPathError: if they differ by more than [`TOLERANCES`] allow.
    """
    most, usual = TOLERANCES[dtype]
    packed, plain = packed.double(), plain.to(packed.device).double()
    error = float(((packed - plain).abs() / (1 + plain.abs())).max())
    mean = float((packed - plain).abs().mean() / (1 + plain.abs().mean()))
    if not (error <= most and mean <= usual):
        raise PackedPathError(
            f"You set pair_packing='auto'. With packed rows {type(model).__name__} gives log-probabilities of "
            f"tokens that differ by up to {error:.2g}, and by {mean:.2g} in the mean, of their size from those "
            f"without (tolerance {most:g} and {usual:g} in {dtype}): it does not keep to the mask or the positions it "
            "is given. Set pair_packing='off'."
        )


def _run(model: Any, inner: Callable[..., Any], rows: PackedRows) -> Any:
    implementation = model.config._attn_implementation
    told: dict[str, Any] = {"use_cache": False}
    if getattr(model.config, "output_router_logits", False):
        # TRL's head would take the mask for one of padding
        told["output_router_logits"] = False
    with scored_alone(model.base_model, rows.sources):
        return inner(
            input_ids=rows.input_ids, attention_mask=attention_mask(rows, implementation, model.dtype),
            position_ids=rows.positions, shift_labels=rows.targets[None], fused_lm_head=True, **told,
        )  # fmt: skip


def add_pair_packing(model: Any, limit: int | None = None, precision: torch.dtype | None = None) -> None:
    """Lets the fused head of a model run on packed rows.

    `model(input_ids=, attention_mask=, labels=, fused_lm_head=True)` with a padded batch of pairs then gives the very
    fields that TRL's fused head gives, of the same shapes, from packed rows. Other calls are left as they are.

    Args:
        model ([`~transformers.PreTrainedModel`]): to which [`~trl.trainer.utils.add_fused_lm_head`] was applied, and
            that [`~hf_lifealign.packing.why_not_packed`] has nothing against. Not the PEFT model around it.
        limit (`int`, *optional*): most tokens of a row that holds more than one pair.
        precision (`torch.dtype`, *optional*): of mixed precision that is entered inside the model's forward.
    """
    packed = PackedForward(even_width(model), limit, precision)
    before = model.forward
    # a copy of the model has to run its own weights
    unbound = getattr(before, "__func__", None)

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
        inner = before if unbound is None else types.MethodType(unbound, self)
        if fused_lm_head and labels is not None:
            return packed(self, inner, args, kwargs, labels)
        told = {} if labels is None else {"labels": labels}
        return inner(*args, fused_lm_head=fused_lm_head, **told, **kwargs)

    model.forward = types.MethodType(forward, model)


@contextmanager
def packed_head(model: Any, limit: int | None = None) -> Iterator[PairScorer]:
    """TRL's fused head on packed rows for the time of a context: what gives the log-probabilities of the completion
    tokens of pairs, chosen and rejected.

    Args:
        model (`torch.nn.Module`): that [`~hf_lifealign.packing.why_not_packed`] has nothing against; or the PEFT model
            around it, whose active adapters count.
        limit (`int`, *optional*): most tokens of a row that holds more than one pair.
    """
    base = model.get_base_model() if is_peft_model(model) else model
    own = vars(base).get("forward")
    add_fused_lm_head(base)
    try:
        packed = PackedForward(even_width(base), limit, own_head=True)
        yield functools.partial(packed.log_probs, base, base.forward)
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
