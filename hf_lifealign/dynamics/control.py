"""Sets the share of rehearsal while a task is trained, from the forces on the scores of the earlier tasks."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_lifealign._files import read_json, write_json
from hf_lifealign.dynamics.force_batch import ForceBatch, Gradients, NotEstimableError, loss_gradients, trainer_loss
from hf_lifealign.dynamics.likelihood import undisturbed
from hf_lifealign.dynamics.measuring import from_first_process
from hf_lifealign.dynamics.mixture import Mixture
from hf_lifealign.dynamics.rehearsal import Reach, calibrate, logit, reach, rehearsal_fraction, share_bounds
from hf_lifealign.dynamics.updates import Tensors, momentum_of, plain_optimizer, rates_between, scales_of, step_of
from hf_lifealign.judges import JudgeError
from hf_lifealign.metrics.alignment_dynamics import ScoreEstimate

logger = logging.getLogger(__name__)

T = TypeVar("T")

STATE = "_rehearsal.json"
# Changes that have to be measured before forces are calibrated by them, and how far that may go.
_PAIRS, _FACTORS = 4, (0.2, 5.0)
# How near 0 and 1 a score is taken to be at most, where its log-odds would be infinite.
_EDGE = 1e-6


class Measurement(Protocol):
    """What a meter found at one state of a model."""

    def one_sided(self) -> str | None:
        """Why no force can be told from it, or `None`."""
        ...


class ScoreMeter(Protocol):
    """Measures a score between 0 and 1, and the forces on it; [`AlignmentMeter`] and [`PreferenceMeter`] do."""

    def draw(self, model: Any, step: int) -> Any:
        """A [`Measurement`] of the model as it is after `step` steps."""
        ...

    def anchored(self, measured: Any) -> ScoreEstimate:
        """The score by a measurement."""
        ...

    def forces(
        self, model: Any, parameters: Sequence[torch.Tensor], measured: Any, steps: Sequence[Tensors]
    ) -> list[tuple[float, float]]:
        """By how much each of some steps of the parameters would change the score, to first order, and the standard
        error of that."""
        ...


@dataclass
class Watched:
    """An earlier task whose score is held.

    Args:
        name (`str`): of the task.
        meter ([`ScoreMeter`]): of its score.
        floor (`float`): below which the score shall not fall.
        score (`float`, *optional*): at the last measurement.
        predicted, measured (`list[float]`): changes of log-odds so far, between measurements.
        forces (`dict[str, float]`): `new` and `old` rows' at the last measurement and that of the moment `carried`
            then, with the `share` and the `step` of it and the `steps` in the moment; empty where they were not
            measured.
    """

    name: str
    meter: ScoreMeter
    floor: float
    score: float | None = None
    predicted: list[float] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)
    forces: dict[str, float] = field(default_factory=dict)


class RehearsalControl(TrainerCallback):
    r"""
    Measures, every `every` steps, how one step on the new rows and one on the rehearsed rows moves the score of each
    earlier task, and finds the least share of rehearsal from then on that has all of them at or above their floors at
    the end of the phase; see [`rehearsal_fraction`]. Forces are those at the highest learning rate, what is left of the
    phase is counted in steps of that rate, and what the optimizer's moment carries on is part of it; see [`reach`].

    Forces are noisy, as their standard errors tell. So the share begins as that of fixed replay, and stays as it is
    while it lies between what would do if all forces were better by a standard error, and what would if they were worse
    by one: it rises where it is surely too little, and falls where it is surely more than is needed.

    Where a score lies below its floor by more than its standard error, a booster of nothing but rehearsal comes first,
    if rehearsal helps it more than the new rows do; as many steps pass before the next one. The lower end of the
    interval alone would not do: with few probes it lies below the floor by chance.

    Args:
        tasks (`list[Watched]`): the earlier tasks.
        mixture ([`Mixture`]): what is set.
        batches (`Callable`): of the trainer; force batches of new and of rehearsed rows.
        every (`int`): steps between measurements.
        booster_steps (`int`): length of a booster.
        most (`float`): highest share outside boosters, so that the new task is always learnt.
    """

    def __init__(
        self,
        tasks: Sequence[Watched],
        mixture: Mixture,
        batches: Callable[[Any], tuple[ForceBatch, ForceBatch]],
        every: int = 25,
        booster_steps: int = 10,
        most: float = 0.8,
    ):
        self.tasks, self.mixture, self.batches = list(tasks), mixture, batches
        self.every, self.booster_steps, self.most = every, booster_steps, most
        self._settled: float | None = None
        self.trainer: Any = None
        self.record: list[dict[str, Any]] = []
        self._booster_until = 0
        self._forces: tuple[ForceBatch, ForceBatch] | None = None

    # Events

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._forces = self.batches(self.trainer)
        if state.global_step and self._load(args, state):
            return
        if state.global_step:
            logger.warning(
                f"There is nothing of the rehearsal in {self._folder(args, state)}. The shares up to step "
                f"{state.global_step} are not known; it begins anew from there."
            )
        self._decide(args, state, kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        ended = self._booster_until and state.global_step == self._booster_until
        if state.global_step < state.max_steps and (ended or state.global_step % self.every == 0):
            self._decide(args, state, kwargs)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = self._folder(args, state)
        if not state.is_world_process_zero or not folder.is_dir():
            return
        content = {
            "plan": self.mixture.to_json(),
            "record": self.record,
            "booster_until": self._booster_until,
            "settled": self._settled,
            "tasks": [
                {"predicted": t.predicted, "measured": t.measured, "score": t.score, "forces": t.forces}
                for t in self.tasks
            ],
        }
        write_json(folder / STATE, content)

    def _load(self, args: TrainingArguments, state: TrainerState) -> bool:
        folder = self._folder(args, state)
        if not (folder / STATE).is_file():
            return False
        content = read_json(folder / STATE)
        self.mixture.load(content["plan"])
        self.record, self._booster_until = content["record"], content["booster_until"]
        self._settled = content["settled"]
        for task, told in zip(self.tasks, content["tasks"], strict=True):
            task.predicted, task.measured = told["predicted"], told["measured"]
            task.score, task.forces = told["score"], told["forces"]
        return True

    @staticmethod
    def _folder(args: TrainingArguments, state: TrainerState) -> Path:
        return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"

    # A decision

    def _decide(self, args: TrainingArguments, state: TrainerState, kwargs: dict[str, Any]) -> None:
        model, step, end = kwargs["model"], state.global_step, state.max_steps
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer, entry = kwargs["optimizer"], {"step": step, "tasks": {}}
        moment = momentum_of(optimizer, parameters)
        rates = partial(relative_rates, optimizer, kwargs["lr_scheduler"])
        left = reach(rates(step, end), moment.decay, moment.steps)
        with undisturbed(model):
            followed = [self._follow(task, model, step, entry, rates, moment.decay) for task in self.tasks]
            wanted: list[tuple[float, float]] = []
            if any(drawn is not None for drawn in followed):
                try:
                    assert self._forces is not None
                    new, old = (
                        loss_gradients(model, parameters, batch, trainer_loss(self.trainer)) for batch in self._forces
                    )
                    one, *carried = self._steps(optimizer, parameters, new, moment.gradient)
                    steps = [one, *self._steps(optimizer, parameters, old), *carried]
                    for task, drawn in zip(self.tasks, followed, strict=True):
                        if drawn is not None:
                            forces = task.meter.forces(model, parameters, drawn, steps)
                            wanted.append(self._share(task, forces, left, entry))
                            if math.isfinite(moment.steps):  # as JSON can hold it
                                task.forces["steps"] = moment.steps
                except NotEstimableError as error:
                    entry["not_estimable"] = str(error)
        kept = min(self.mixture.share, self.most) if self._settled is None else self._settled
        # that of a task that is not estimable stays as it is
        least = max([0.0, *(low for low, _ in wanted)])
        enough = max(high for _, high in wanted) if len(wanted) == len(self.tasks) else 1.0
        self._settled = agreed(min(max(least, min(kept, enough)), self.most))
        share = agreed(self._boosted(self._settled, step, entry))
        entry["share"] = share
        for task in self.tasks:
            if task.forces and task.forces["step"] == step:
                task.forces["share"] = share
            else:
                task.forces = {}  # they were of another state
        self.record.append(entry)
        # batches that are drawn already stay: the data loader is one ahead
        per_update = args.gradient_accumulation_steps * args.world_size
        self.mixture.change(share, step * per_update + (args.world_size if step else 0))

    def _boosted(self, share: float, step: int, entry: dict[str, Any]) -> float:
        """The share, or 1 in a booster."""
        if step < self._booster_until:
            return 1.0
        low = [name for name, told in entry["tasks"].items() if told.get("low") and told.get("helps", True)]
        # as many steps without as with
        rested = not self._booster_until or step >= self._booster_until + self.booster_steps
        if not agreed(bool(low) and rested):
            return share
        self._booster_until = step + self.booster_steps
        entry["booster"] = low
        return 1.0

    def _follow(
        self, task: Watched, model: Any, step: int, entry: dict[str, Any], rates: Callable[[int, int], list[float]],
        decay: float,
    ) -> Measurement | None:  # fmt: skip
        """The score of a task now, as it is measured anew; the measurement, or `None` if it tells no force.

        Answers from an earlier measurement would not do: what a preference loss teaches a model to say instead is not
        among them, so that weighed anew they can tell of a rise where there is a fall.
        """
        told: dict[str, Any] = {"floor": task.floor}
        entry["tasks"][task.name] = told
        try:
            drawn: Measurement = task.meter.draw(model, step)
        except JudgeError as error:
            told["not_estimable"] = str(error)
            logger.warning(f"Rehearsal, step {step}: the score of {task.name!r} was not measured. {error}")
            return None
        score = task.meter.anchored(drawn)
        if task.score is not None:
            ends = [min(max(each, _EDGE), 1 - _EDGE) for each in (task.score, score.score)]
            told["change"] = logit(ends[1]) - logit(ends[0])
            if task.forces and _EDGE < ends[0] < 1 - _EDGE and _EDGE < ends[1] < 1 - _EDGE:
                then = task.forces
                mixed = (1 - then["share"]) * then["new"] + then["share"] * then["old"]
                passed = reach(rates(int(then["step"]), step), decay, then.get("steps", math.inf))
                task.predicted.append(mixed * passed.coming + then["carried"] * passed.carried)
                task.measured.append(told["change"])
        task.score = score.score
        error_of = score.standard_error or 0.0
        told |= {"score": score.score, "standard_error": error_of, "low": score.score + error_of < task.floor}
        reason = drawn.one_sided()
        if reason is not None:
            told["not_estimable"] = reason
        return drawn if reason is None else None

    @staticmethod
    def _steps(
        optimizer: Any, parameters: list[torch.Tensor], found: Gradients, carried: Tensors | None = None
    ) -> list[Tensors]:
        """One step at the highest rate on what was found, and one on what the moment carries, if it is given."""
        scales = scales_of(optimizer, parameters, found.second, highest_rates(optimizer), found.updates)
        if scales is None:
            raise NotEstimableError("the optimizer is neither SGD nor Adam nor AdamW")
        return [step_of(each, scales) for each in (found.parts["total"], carried) if each is not None]

    def _share(
        self, task: Watched, forces: list[tuple[float, float]], left: Reach, entry: dict[str, Any]
    ) -> tuple[float, float]:
        """The least share that holds one task if its forces were better by a standard error each, and if they were
        worse; by the change of its score in a step on new rows, on rehearsed rows and, where there is a moment, on what
        it carries, each with its standard error."""
        told = entry["tasks"][task.name]
        score = min(max(told["score"], _EDGE), 1 - _EDGE)
        (new, new_error), (old, old_error), *rest = ([each / (score * (1 - score)) for each in f] for f in forces)
        carried = rest[0][0] if rest else 0.0
        task.forces = {"new": new, "old": old, "carried": carried, "step": float(entry["step"])}
        slope = calibrate(task.predicted, task.measured, _PAIRS)
        factor = 1.0 if slope is None else min(max(slope, _FACTORS[0]), _FACTORS[1])
        if not left.coming:
            told["not_estimable"] = "the learning rate is 0 to the end, so that nothing drifts any more"
            return 0.0, 0.0
        room = (logit(score) - logit(min(max(task.floor, _EDGE), 1 - _EDGE))) / factor
        tolerated = (room + left.carried * carried) / left.coming
        needed = rehearsal_fraction(new, old, tolerated)
        low, high = share_bounds((new, new_error), (old, old_error), tolerated)
        told |= {
            "new": new, "rehearsal": old, "carried": carried, "tolerated": tolerated, "calibration": factor,
            "share": needed.value, "share_low": low, "share_high": high, "feasible": needed.feasible,
            "helps": old > new, "new_error": finite_or_none(new_error), "rehearsal_error": finite_or_none(old_error),
        }  # fmt: skip
        if not needed.feasible:
            told["reason"] = needed.reason
            logger.warning(f"Rehearsal, step {entry['step']}: {task.name!r} cannot be held: {needed.reason}.")
        return low, high


def finite_or_none(value: float) -> float | None:
    """A number as JSON can hold it."""
    return value if math.isfinite(value) else None


def agreed(value: T) -> T:
    """What the first process found, so that all of them do the same."""
    return from_first_process(lambda: value)


def highest_rates(optimizer: Any) -> list[float]:
    """Learning rate of each parameter group at its highest, whatever a warm-up or a decay makes of it now."""
    return [float(group.get("initial_lr", group["lr"])) for group in plain_optimizer(optimizer).param_groups]


def relative_rates(optimizer: Any, scheduler: Any, start: int, end: int) -> list[float]:
    """Learning rates of the steps `start` to `end - 1`, as shares of the highest; see [`rates_between`].

    Those of the first parameter group stand for all.
    """
    highest = highest_rates(optimizer)[0]
    told = rates_between(optimizer, scheduler, start, end)
    return [rates[0] / highest if highest else 0.0 for rates in told]
