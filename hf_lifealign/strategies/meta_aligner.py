"""Meta-alignment inside a life: some tasks train a policy for several objectives at once (Meal, arXiv 2604.24178)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lifealign.strategies.base import PREFERENCE, Phase, PhaseTrainer, Run, Strategy

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_lifealign.stream import TaskStream

# Columns that serve preference losses only; reward functions get every other one.
_REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")


class MetaAlignerStrategy(Strategy):
    r"""
    Trains the named tasks with [`MetaAlignerTrainer`], on their prompts and with their pairs as the offline set.

    The preference-weight-net and the conditioning live on from task to task. A later task may name more objectives,
    after the known ones: what the policy answers under the old ones does not change until that task is trained. In
    pre-training the task's adapter learns as well, and is consolidated afterwards as after any other task; evaluation
    and the published adapter are those of the policy without a preference. `load_meta_aligned` takes the run's
    adapters, local or published.

    Args:
        tasks (`dict[str, list[str]]`):
            The objectives of each task that is meta-aligned. Other tasks are trained as the run says.
        rewards (`dict[str, str | Callable]`):
            The reward function of each objective: a callable in TRL's protocol, or a name that
            [`~hf_lifealign.rewards.resolve_reward`] takes.
        args (`dict`, *optional*):
            Settings of [`MetaAlignerConfig`]. Folder, seed, checkpoints and reporting are decided by the run.
    """

    name = "meta_aligner"

    def __init__(
        self,
        tasks: Mapping[str, Sequence[str]],
        rewards: Mapping[str, Any],
        args: Mapping[str, Any] | None = None,
    ):
        self.tasks = {task: list(names) for task, names in tasks.items()}
        self._rewards = dict(rewards)
        self.args = dict(args or {})
        if not self.tasks:
            raise ValueError("You set the strategy 'meta_aligner' without tasks. Name the objectives of at least one.")
        for task, names in self.tasks.items():
            unknown = [name for name in names if name not in self._rewards]
            if len(names) < 2 or unknown:
                raise ValueError(
                    f"You set the objectives {names} for the task {task!r}. It needs at least two, each with a reward; "
                    f"there are rewards for {sorted(self._rewards)}."
                )

    def settings(self) -> dict[str, Any]:
        named = {name: given if isinstance(given, str) else _name(given) for name, given in self._rewards.items()}
        return {"tasks": self.tasks, "rewards": named, "args": self.args}

    def prepare_stream(self, run: Run, stream: "TaskStream") -> "TaskStream":
        missing = [task for task in self.tasks if task not in run.lived]
        if missing:
            raise ValueError(
                f"You set objectives for the tasks {missing}, which are not in the stream. It has {run.lived}."
            )
        known: list[str] = []
        for task in self._in_order(run):
            names = self.tasks[task]
            if names[: len(known)] != known:
                raise ValueError(
                    f"You set the objectives {names} for the task {task!r}, after tasks with {known}. A life keeps its "
                    "objectives in their order and adds new ones at the end."
                )
            known = names
        return stream

    def _in_order(self, run: Run) -> list[str]:
        return [task for task in run.lived if task in self.tasks]

    def phase_trainer(self, run: Run, phase: Phase) -> PhaseTrainer | None:
        if phase.task not in self.tasks or phase.name != PREFERENCE:
            return None
        from hf_lifealign.meta_aligner.config import MetaAlignerConfig
        from hf_lifealign.meta_aligner.trainer import MetaAlignerTrainer

        names = self.tasks[phase.task]
        return PhaseTrainer(
            MetaAlignerTrainer,
            MetaAlignerConfig("unused", **self.args),
            {"reward_funcs": [self._reward(name) for name in names], "objective_names": names},
            _REFERENCE_COLUMNS,
        )

    def _reward(self, name: str) -> Any:
        given = self._rewards[name]
        if not isinstance(given, str):
            return given
        from hf_lifealign.rewards import resolve_reward

        return resolve_reward(given)

    def before_phase(self, run: Run, phase: Phase, trainer: "Trainer") -> None:
        if phase.task not in self.tasks or phase.name != PREFERENCE:
            return
        order = self._in_order(run)
        earlier = order[: order.index(phase.task)]
        if earlier:
            trainer.continue_from(self._file(run, earlier[-1]))  # type: ignore[attr-defined]

    def after_phase(self, run: Run, phase: Phase, trainer: "Trainer") -> None:
        if phase.task not in self.tasks or phase.name != PREFERENCE:
            return
        policy: Any = trainer.policy  # type: ignore[attr-defined]
        if run.is_main_process:
            # under the task's own name: a run that is killed now trains the phase again, from the earlier task's
            policy.save_weights(self._file(run, phase.task))
        policy.conditioning.detach()

    def _file(self, run: Run, task: str) -> Path:
        return run.strategy_file(self, f"{run.label(task)}.json")

    def state_files(self, run: Run) -> list[Path]:
        there = [file for task in self._in_order(run) if (file := self._file(run, task)).is_file()]
        return [there[-1], there[-1].with_suffix(".safetensors")] if there else []


def _name(reward: Any) -> str:
    return str(getattr(reward, "__name__", type(reward).__name__))
