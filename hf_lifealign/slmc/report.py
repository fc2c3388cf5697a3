"""What a consolidation did: numbers for each adapted parameter or module, and their totals."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class ModuleReport:
    """One adapted parameter (space "factors") or module (space "delta").

    Args:
        name (`str`): its name in the base model.
        rank_kept (`int`): directions left after denoising.
        energy_kept (`float`): their share of the update's squared norm, in [0, 1].
        history_share (`float`): share of the denoised update's squared norm that lay in the history's span, in [0, 1].
        update_norm (`float`): Frobenius norm of the task's change SM.
        denoised_norm (`float`): Frobenius norm of SM'.
        refined_norm (`float`): Frobenius norm of RSM.
        recompression_error (`float`, *optional*): in "delta" space, what cutting the cumulative change to rank r lost,
            relative to its norm.
        refilled (`int`): in "delta" space, directions of the adapter made free for later tasks.
        history_energy_kept (`float`): share of the history's squared norm that `memory_rank` left, in [0, 1].
    """

    name: str
    rank_kept: int
    energy_kept: float
    history_share: float
    update_norm: float
    denoised_norm: float
    refined_norm: float
    recompression_error: float | None = None
    refilled: int = 0
    history_energy_kept: float = 1.0


@dataclass
class ConsolidationReport:
    """One consolidation: which task and phase, the modules, and what was left out of it.

    Args:
        task (`str`): name of the task.
        phase (`str`, *optional*): for instance "sft" or "fpo".
        index (`int`): number of this entry in the history, from 0.
        modules (`list[ModuleReport]`): in the order of the model.
        unconsolidated (`list[str]`): trained and saved parameters that consolidation does not touch.
        seconds (`float`): wall-clock time of the computation.
    """

    task: str
    phase: str | None
    index: int
    modules: list[ModuleReport]
    unconsolidated: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def totals(self) -> dict[str, float]:
        """Norms over all modules together, energy-weighted shares, and the largest recompression error."""

        def norm(attribute: str) -> float:
            return math.sqrt(math.fsum(getattr(module, attribute) ** 2 for module in self.modules))

        update, denoised = norm("update_norm"), norm("denoised_norm")
        in_history = math.fsum(m.history_share * m.denoised_norm**2 for m in self.modules)
        totals = {
            "update_norm": update,
            "denoised_norm": denoised,
            "refined_norm": norm("refined_norm"),
            "energy_kept": denoised**2 / update**2 if update > 0 else 1.0,
            "history_share": in_history / denoised**2 if denoised > 0 else 0.0,
            "mean_rank_kept": math.fsum(m.rank_kept for m in self.modules) / max(len(self.modules), 1),
            "history_energy_kept": min((m.history_energy_kept for m in self.modules), default=1.0),
        }
        errors = [m.recompression_error for m in self.modules if m.recompression_error is not None]
        if errors:
            totals["max_recompression_error"] = max(errors)
        return totals

    def summary(self) -> str:
        """One line for a log."""
        totals = self.totals
        phase = f" ({self.phase})" if self.phase else ""
        text = (
            f"consolidated {self.task}{phase} as entry {self.index}: |update| {totals['update_norm']:.4g} -> "
            f"|refined| {totals['refined_norm']:.4g}, energy kept {totals['energy_kept']:.1%}, "
            f"in history {totals['history_share']:.1%}, {len(self.modules)} units, {self.seconds:.2f} s"
        )
        if "max_recompression_error" in totals:
            text += f", worst recompression error {totals['max_recompression_error']:.2%}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the totals for readers that want no arithmetic."""
        return {**dataclasses.asdict(self), "totals": self.totals}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ConsolidationReport":
        """The inverse of `to_dict`; totals are computed again."""
        rest = {key: value for key, value in values.items() if key not in ("modules", "totals")}
        return cls(modules=[ModuleReport(**module) for module in values["modules"]], **rest)
