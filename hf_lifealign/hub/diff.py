"""What changed between two revisions: each module's update, how much of it two adapters share, and the measures."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_lifealign._files import read_json
from hf_lifealign.hub.contents import CONFIG, MATRIX, WEIGHTS
from hf_lifealign.hub.errors import HubError
from hf_lifealign.report.table import markdown_table
from hf_lifealign.report.view import MatrixView, view_matrix

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Comparison:
    """Two updates of one module.

    Args:
        first, second (`float`): Frobenius norms of dW = scaling * B A.
        change (`float`): Frobenius norm of their difference.
        overlap (`float`): cosine between them, in [-1, 1]; NaN if one of them is zero.
    """

    first: float
    second: float
    change: float
    overlap: float


@dataclass(frozen=True)
class Update:
    """The update of a module in factors.

    Args:
        A (`torch.Tensor` of shape `(r, n)`), B (`torch.Tensor` of shape `(m, r)`): LoRA's factors.
        scaling (`float`): their factor.
    """

    A: Tensor
    B: Tensor
    scaling: float

    def inner(self, other: "Update") -> float:
        """Frobenius inner product of two updates, without forming either: tr((B1ᵀ B2)(A2 A1ᵀ)), in float64."""
        left = self.B.double().T @ other.B.double()
        right = self.A.double() @ other.A.double().T
        return float((left * right).sum()) * self.scaling * other.scaling


def compare_updates(first: Update, second: Update) -> Comparison:
    """Norms, change and overlap of two updates of the same module, whose ranks may differ."""
    one, two, cross = first.inner(first), second.inner(second), first.inner(second)
    norms = math.sqrt(max(one, 0.0)), math.sqrt(max(two, 0.0))
    # rounding alone can carry a difference of nothing below zero, and a cosine beyond one
    change = math.sqrt(max(one + two - 2 * cross, 0.0))
    overlap = max(-1.0, min(1.0, cross / (norms[0] * norms[1]))) if norms[0] * norms[1] > 0 else math.nan
    return Comparison(*norms, change, overlap)


def read_updates(folder: Path) -> dict[str, Update]:
    """The updates of a plain LoRA adapter by module.

    Raises:
        HubError: if the adapter is none.
    """
    from safetensors.torch import load_file

    config, tensors = read_json(folder / CONFIG), load_file(folder / WEIGHTS)
    if config.get("peft_type") != "LORA":
        raise HubError(f"The adapter in {folder} is of type {config.get('peft_type')}; only LoRA can be compared.")
    updates = {}
    for name, A in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        module = name.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
        B = tensors[name.replace(".lora_A.", ".lora_B.")]
        updates[module] = Update(A, B, _scaling(config, module, A.shape[0]))
    return updates


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """LoRA's factor of a module, with the patterns by which PEFT lets modules differ."""
    from peft.utils.other import get_pattern_key

    alphas = dict(config.get("alpha_pattern") or {})
    alpha = float(alphas.get(get_pattern_key(list(alphas), module), config["lora_alpha"]))
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def compare_revisions(first: Path, second: Path) -> dict[str, Any]:
    """Everything that `lifealign diff` shows, as JSON.

    Args:
        first, second (`Path`): folders of two revisions.
    """
    one, two = read_updates(first), read_updates(second)
    modules = {name: compare_updates(one[name], two[name]) for name in one if name in two}
    total = {
        "first": math.sqrt(sum(c.first**2 for c in modules.values())),
        "second": math.sqrt(sum(c.second**2 for c in modules.values())),
        "change": math.sqrt(sum(c.change**2 for c in modules.values())),
    }
    cross = (total["first"] ** 2 + total["second"] ** 2 - total["change"] ** 2) / 2
    product = total["first"] * total["second"]
    total["overlap"] = max(-1.0, min(1.0, cross / product)) if product > 0 else math.nan
    return {
        "modules": {name: dict(comparison.__dict__) for name, comparison in modules.items()},
        "only_in_first": sorted(set(one) - set(two)),
        "only_in_second": sorted(set(two) - set(one)),
        "total": total,
        "metrics": _compare_metrics(view_matrix(read_json(first / MATRIX)), read_json(second / MATRIX)),
    }


def _compare_metrics(one: MatrixView, second: Mapping[str, Any]) -> dict[str, Any]:
    """Newest value on each task and the numbers on the matrix, before and after, in the first revision's measure."""
    two = view_matrix(second, one.metric if one.metric in second["matrices"] else None)
    if one.metric != two.metric:
        return {"metric": None, "tasks": {}, "summary": {}}

    def newest(view: MatrixView) -> dict[str, float]:
        return {t: float(v) for t, v in zip(view.tasks, view.cells[-1], strict=False) if math.isfinite(v)}

    def both(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
        return {name: [a.get(name), b.get(name)] for name in [*a, *(n for n in b if n not in a)]}

    return {
        "metric": one.metric,
        "tasks": both(newest(one), newest(two)),
        "summary": both(one.summary(), two.summary()),
    }


def diff_text(first: str, second: str, found: Mapping[str, Any]) -> str:
    """The comparison as text for a terminal."""

    def number(value: Any, spec: str = ".4g") -> str:
        return "-" if value is None or not math.isfinite(value) else format(value, spec)

    rows = [
        [name, *(number(c[key]) for key in ("first", "second", "change")), number(c["overlap"], "+.3f")]
        for name, c in [*found["modules"].items(), ("all modules", found["total"])]
    ]
    parts = [
        f"{first} -> {second}",
        markdown_table(("module", "norm before", "norm after", "norm of change", "overlap"), rows),
        "Norms are those of the update dW = scaling * B A of each module; overlap is the cosine between both updates.",
    ]
    for key, where in (("only_in_first", first), ("only_in_second", second)):
        if found[key]:
            parts.append(f"Only in {where}: {', '.join(found[key])}.")
    metrics = found["metrics"]
    lines = []
    for name, (before, after) in [*metrics["tasks"].items(), *metrics["summary"].items()]:
        if before is not None or after is not None:
            change = number(after - before, "+.3f") if before is not None and after is not None else "-"
            lines.append([name, number(before, ".3f"), number(after, ".3f"), change])
    if metrics["metric"] is None:
        parts.append("The revisions were measured differently, so that no values can be compared.")
    else:
        parts.append(markdown_table((metrics["metric"], "before", "after", "change"), lines))
    return "\n\n".join(parts)
