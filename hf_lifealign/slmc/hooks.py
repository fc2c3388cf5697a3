"""Hooks around a consolidation: their signature, the handle that removes one, and the veto one can cast."""

from collections.abc import Callable
from typing import Literal

from .report import ConsolidationReport

Stage = Literal["before", "after"]
ConsolidationHook = Callable[[Stage, ConsolidationReport], str | None]


class ConsolidationVetoed(RuntimeError):  # noqa: N818 - a decision of the user's hook, not an error of ours
    """A hook refused the consolidation; nothing was modified and the task is still running.

    Attributes:
        reason (`str`): what the hook said.
        report (`ConsolidationReport`): of the consolidation that was not applied.
    """

    def __init__(self, reason: str, report: ConsolidationReport) -> None:
        super().__init__(
            f"The consolidation of {report.task!r} was vetoed: {reason} Nothing was modified and the task is still "
            "running. Train on and consolidate again, or call abandon_task()."
        )
        self.reason = reason
        self.report = report


class HookHandle:
    """Removes a consolidation hook, as PyTorch's handles do."""

    def __init__(self, hooks: list[ConsolidationHook], hook: ConsolidationHook) -> None:
        self._hooks, self._hook = hooks, hook

    def remove(self) -> None:
        """Unregister the hook; calling it again changes nothing."""
        if self._hook in self._hooks:
            self._hooks.remove(self._hook)
