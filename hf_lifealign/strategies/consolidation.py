"""Consolidation: after each phase the SLMC adapter's update enters long-term memory (LifeAlign, arXiv 2509.17183)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from hf_lifealign.strategies.base import PREFERENCE, WARM_START, Phase, Run, Strategy

if TYPE_CHECKING:
    from hf_lifealign.stream import TaskStream


class ConsolidationStrategy(Strategy):
    """Consolidates the SLMC adapter at the end of the named phases, as published after SFT and after FPO.

    Args:
        phases (`list[str]`, *optional*, defaults to `["warm_start", "preference"]`):
            Phases that end with a consolidation.
    """

    name = "consolidation"
    reads_adapter = True

    def __init__(self, phases: tuple[str, ...] | list[str] = (WARM_START, PREFERENCE)):
        unknown = sorted(set(phases) - {WARM_START, PREFERENCE})
        if unknown or not phases:
            raise ValueError(
                f"You set the phases {list(phases)} of the strategy 'consolidation'. Name at least one of "
                f"{WARM_START!r} and {PREFERENCE!r}."
            )
        self.phases = tuple(phases)
        self._callback: Any = None

    def prepare_stream(self, run: Run, stream: "TaskStream") -> "TaskStream":
        peft_type = str(run.model.peft_config["default"].peft_type.value)
        if peft_type != "SLMC":
            raise ValueError(
                f"You set the strategy 'consolidation' with an adapter of type {peft_type}. Only an SLMC adapter has a "
                "memory to consolidate into. Use SLMCConfig (adapter type 'slmc'), or leave the strategy out."
            )
        return stream

    def callbacks(self, run: Run, phase: Phase) -> Sequence[TrainerCallback]:
        from hf_lifealign.slmc import ConsolidationCallback

        self._callback = None
        if phase.name not in self.phases:
            return ()
        self._callback = ConsolidationCallback(task_name=phase.task, phase=phase.name)
        return (self._callback,)

    def record(self, run: Run, phase: Phase) -> dict[str, Any]:
        if self._callback is None:
            return {"consolidation": None}
        return {"consolidation": self._callback.report.to_dict()}
