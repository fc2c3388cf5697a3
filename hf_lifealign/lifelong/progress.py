"""One bar over all tasks and phases of a run, with the time that is left."""

from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from hf_lifealign.strategies import WARM_START, Phase

if TYPE_CHECKING:
    from hf_lifealign.lifelong.trainer import LifelongTrainer

# Work of one pair relative to scoring it once: forward and backward cost about three forwards; the warm start runs
# the chosen side only.
TRAINED_PAIR = 3.0
WARM_STARTED_PAIR = 1.5
SCORED_PAIR = 1.0


def phase_work(run: "LifelongTrainer", phase: Phase) -> float:
    """Expected work of a phase, in scored pairs."""
    args = run.warm_start_args if phase.name == WARM_START else run.training_args
    assert args is not None
    weight = WARM_STARTED_PAIR if phase.name == WARM_START else TRAINED_PAIR
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * run.distributed.num_processes
    rows = len(run.stream[phase.task].load().train)
    return weight * (args.max_steps * batch if args.max_steps > 0 else rows * args.num_train_epochs)


def expected_work(run: "LifelongTrainer") -> tuple[float, float]:
    """Expected work of a run and the part that earlier starts have finished, in scored pairs."""
    total, done = 0.0, 0.0
    tests = [len(task.load().test) for task in run.stream]
    for index, task in enumerate(run.stream):
        work = sum(phase_work(run, phase) for phase in run.phases(index))
        work += sum(tests) if run.args.evaluate_all_tasks else sum(tests[: index + 1])
        # references, which a run that goes on finds on disk
        total += work + tests[index] + (len(task.load().train) if run.keeps_reference else 0)
        done += work if run.state.task(index)["status"] == "done" else 0.0
    return total + (sum(tests) if run.args.evaluate_all_tasks else 0), done


class RunProgress:
    """Progress bar in units of scored pairs.

    Args:
        total (`float`): expected work.
        done (`float`): work that an earlier start of the run has finished.
        disable (`bool`): whether to show nothing.
    """

    def __init__(self, total: float, done: float, disable: bool) -> None:
        self._bar = tqdm(
            total=round(total), initial=round(done), disable=disable, desc="life", dynamic_ncols=True,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]", smoothing=0.1,
        )  # fmt: skip

    def stage(self, text: str) -> None:
        """Names what is being done now."""
        self._bar.set_description_str(f"life: {text}")

    def advance(self, work: float) -> None:
        """Adds work done."""
        # an estimate may fall short; a bar past its end looks broken
        self._bar.update(min(work, max(0.0, self._bar.total - self._bar.n)))

    def close(self) -> None:
        self._bar.close()


class StepProgress(TrainerCallback):
    """Moves the run's bar with every optimizer step of a phase."""

    def __init__(self, progress: RunProgress, work: float) -> None:
        self.progress = progress
        self.work = work
        self._last = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._last = 0
        self._move(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._move(state)

    def _move(self, state: Any) -> None:
        steps = state.global_step - self._last
        self._last = state.global_step
        if state.max_steps > 0:
            self.progress.advance(self.work * steps / state.max_steps)
