"""Sets the share of rehearsal while a task is trained, from the forces on the scores of the earlier tasks."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_lifealign._files import read_json, write_json
from hf_lifealign.dynamics.following import Anchor
from hf_lifealign.dynamics.force_batch import ForceBatch, Gradients, NotEstimableError, loss_gradients
from hf_lifealign.dynamics.likelihood import undisturbed
from hf_lifealign.dynamics.measuring import AlignmentMeter
from hf_lifealign.dynamics.mixture import Mixture
from hf_lifealign.dynamics.rehearsal import calibrate, logit, rehearsal_fraction, tolerated_drift
from hf_lifealign.dynamics.updates import inner_product, plain_optimizer, scales_of, step_of
from hf_lifealign.judges import JudgeError

logger = logging.getLogger(__name__)

STATE = "_rehearsal.json"
# Changes that have to be measured before forces are calibrated by them, and how far that may go.
_PAIRS, _FACTORS = 4, (0.2, 5.0)


@dataclass
class Watched:
    """An earlier task whose score is held.

    Args:
        name (`str`): of the task.
        meter ([`AlignmentMeter`]): of its score.
        floor (`float`): below which the score shall not fall.
        anchor ([`Anchor`], *optional*): from which it is followed.
        predicted, measured (`list[float]`): changes of log-odds so far, between measurements. Both rest on the same
            samples, so that their noise draws the calibration towards 1.
        change (`float`): of log-odds from the anchor to the last measurement.
        forces (`dict[str, float]`): `new` and `old` rows' at the last measurement, with the `share` and the steps
            `left` then; empty where they were not measured.
    """

    name: str
    meter: AlignmentMeter
    floor: float
    anchor: Anchor | None = None
    predicted: list[float] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)
    change: float = 0.0
    forces: dict[str, float] = field(default_factory=dict)


class RehearsalControl(TrainerCallback):
    r"""
    Measures, every `every` steps, how one step on the new rows and one on the rehearsed rows moves the score of each
    earlier task, and sets the least share of rehearsal that keeps all of them above their floors to the end of the
    phase; see [`rehearsal_fraction`]. Forces are those at the highest learning rate, and what is left of the phase is
    counted in steps of that rate.

    Where a score has fallen since its anchor and the lower end of its interval lies below its floor, a booster of
    nothing but rehearsal comes first, if rehearsal helps it more than the new rows do; as many steps pass before the
    next one. The lower end alone would not do: with few probes it lies below the floor by chance.

    Args:
        tasks (`list[Watched]`): the earlier tasks.
        mixture ([`Mixture`]): what is set.
        batches (`Callable`): of the trainer; force batches of new and of rehearsed rows.
        every (`int`): steps between measurements.
        booster_steps (`int`): length of a booster.
        most (`float`): highest share outside boosters, so that the new task is always learnt.
        least_ess (`float`): share of effective samples below which answers are drawn anew.
    """

    def __init__(
        self,
        tasks: Sequence[Watched],
        mixture: Mixture,
        batches: Callable[[Any], tuple[ForceBatch, ForceBatch]],
        every: int = 25,
        booster_steps: int = 10,
        most: float = 0.8,
        least_ess: float = 0.5,
    ):
        self.tasks, self.mixture, self.batches = list(tasks), mixture, batches
        self.every, self.booster_steps, self.most, self.least_ess = every, booster_steps, most, least_ess
        self.trainer: Any = None
        self.record: list[dict[str, Any]] = []
        self._booster_until = 0
        self._rates: Any = None
        self._end = 0
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
        for i, task in enumerate(self.tasks):
            if task.anchor is not None:
                (folder / f"_rehearsal-{i}").mkdir(exist_ok=True)
                task.anchor.save(folder / f"_rehearsal-{i}")
        content = {
            "plan": self.mixture.to_json(),
            "record": self.record,
            "booster_until": self._booster_until,
            "tasks": [
                {"predicted": t.predicted, "measured": t.measured, "change": t.change, "forces": t.forces}
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
        for i, (task, told) in enumerate(zip(self.tasks, content["tasks"], strict=True)):
            task.anchor = Anchor.load(folder / f"_rehearsal-{i}", ())
            task.predicted, task.measured, task.change = told["predicted"], told["measured"], told["change"]
            task.forces = told["forces"]
        return True

    @staticmethod
    def _folder(args: TrainingArguments, state: TrainerState) -> Path:
        return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"

    # A decision

    def _decide(self, args: TrainingArguments, state: TrainerState, kwargs: dict[str, Any]) -> None:
        model, step = kwargs["model"], state.global_step
        self._rates, self._end = kwargs.get("lr_scheduler"), state.max_steps
        left = steps_left(self._rates, step, self._end)
        parameters = [p for p in model.parameters() if p.requires_grad]
        entry: dict[str, Any] = {"step": step, "tasks": {}}
        with undisturbed(model):
            followed = [self._follow(task, model, step, entry) for task in self.tasks]
            wanted: list[float] = []
            if any(followed):
                try:
                    gradients = self._gradients(model, parameters)
                    for task, told in zip(self.tasks, followed, strict=True):
                        if told:
                            wanted.append(self._share(task, model, parameters, gradients, kwargs, left, entry))
                except NotEstimableError as error:
                    entry["not_estimable"] = str(error)
        # a share that is not estimable stays as it is: less rehearsal has to be earned
        kept = min(self.mixture.share, self.most)
        share = max(wanted) if wanted and len(wanted) == len(self.tasks) else max([kept, *wanted])
        share = agreed(self._boosted(min(share, self.most), step, entry))
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

    def _follow(self, task: Watched, model: Any, step: int, entry: dict[str, Any]) -> bool:
        """The score of a task now; whether forces on it can be measured."""
        told: dict[str, Any] = {"floor": task.floor}
        entry["tasks"][task.name] = told
        redraw = True
        if task.anchor is not None:
            found = task.meter.rescored(task.anchor.samples, task.meter.logps(model, task.anchor.samples))
            told |= {"score": found.score.score, "ess": found.score.ess, "change": found.change.value}
            if found.change.value is not None:
                if task.forces:
                    mixed = (1 - task.forces["share"]) * task.forces["new"] + task.forces["share"] * task.forces["old"]
                    task.predicted.append(mixed * (task.forces["left"] - steps_left(self._rates, step, self._end)))
                    task.measured.append(found.change.value - task.change)
                task.change = found.change.value
                if found.change.low is not None:
                    lowest = logit(task.anchor.score) + found.change.low
                    told["low"] = found.change.value < 0 and lowest < logit(task.floor)
            # what is all of one kind says nothing of the way back
            redraw = found.score.ess < self.least_ess or task.anchor.samples.one_sided() is not None
        if not agreed(redraw):
            return True
        try:
            samples = task.meter.draw(model, step)
        except JudgeError as error:
            told["not_estimable"] = str(error)
            logger.warning(f"Rehearsal, step {step}: the score of {task.name!r} was not measured. {error}")
            return False
        score = task.meter.anchored(samples)
        fallen = task.anchor is not None and score.score < task.anchor.score
        task.anchor, task.change = Anchor(samples, score.score), 0.0
        told |= {"score": score.score, "anchor": step, "low": fallen and score.low < task.floor}
        reason = samples.one_sided()
        if reason is not None:
            told["not_estimable"] = reason
            told["low"] = score.score < task.floor
        return reason is None

    def _gradients(self, model: Any, parameters: list[torch.Tensor]) -> tuple[Gradients, Gradients]:
        assert self._forces is not None
        trainer = self.trainer

        def loss_of(network: Any, inputs: dict[str, Any]) -> torch.Tensor:
            loss: torch.Tensor = trainer.compute_loss(network, inputs)
            return loss

        kept: dict[str, Any] = getattr(trainer, "_metrics", {})
        metrics = {mode: {k: list(v) for k, v in found.items()} for mode, found in kept.items()}
        try:
            new, old = (loss_gradients(model, parameters, batch, loss_of) for batch in self._forces)
            return new, old
        finally:
            for mode, found in metrics.items():
                kept[mode].clear()
                kept[mode].update(found)

    def _share(
        self,
        task: Watched,
        model: Any,
        parameters: list[torch.Tensor],
        gradients: tuple[Gradients, Gradients],
        kwargs: dict[str, Any],
        left: float,
        entry: dict[str, Any],
    ) -> float:
        """The least share that holds one task."""
        anchor, told = task.anchor, entry["tasks"][task.name]
        assert anchor is not None
        score = min(max(told["score"], 1e-6), 1 - 1e-6)
        logps = task.meter.logps(model, anchor.samples)
        gradient = task.meter.score_gradient(model, parameters, anchor.samples, logps)
        new, old = (
            inner_product(gradient, step_at_full_rate(kwargs.get("optimizer"), parameters, found))
            / (score * (1 - score))
            for found in gradients
        )
        slope = calibrate(task.predicted, task.measured, _PAIRS)
        factor = 1.0 if slope is None else min(max(slope, _FACTORS[0]), _FACTORS[1])
        tolerated = tolerated_drift(score, task.floor, left) / factor
        fraction = rehearsal_fraction(new, old, tolerated)
        task.forces = {"new": new, "old": old, "step": float(entry["step"]), "left": left}
        told |= {
            "new": new, "rehearsal": old, "tolerated": tolerated, "calibration": factor, "share": fraction.value,
            "feasible": fraction.feasible, "helps": old > new,
        }  # fmt: skip
        if not fraction.feasible:
            told["reason"] = fraction.reason
            logger.warning(f"Rehearsal, step {entry['step']}: {task.name!r} cannot be held: {fraction.reason}.")
        return fraction.value


def agreed(value: Any) -> Any:
    """What the main process found, so that all of them do the same."""
    if PartialState().num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


def steps_left(scheduler: Any, step: int, end: int) -> float:
    """Steps to the end of a training, counted in steps at the highest learning rate; at least 1e-6.

    Args:
        scheduler (`LambdaLR` or accelerate's wrapper): of the trainer; of another kind every step counts whole.
        step, end (`int`): steps done, and in all.
    """
    plain = getattr(scheduler, "scheduler", scheduler)
    if isinstance(plain, LambdaLR):
        return max(sum(float(plain.lr_lambdas[0](s)) for s in range(step, end)), 1e-6)
    return float(max(end - step, 1))


def step_at_full_rate(optimizer: Any, parameters: Sequence[torch.Tensor], found: Gradients) -> list[torch.Tensor]:
    """The change of the parameters by one step on a lasting gradient at the highest learning rate, whatever a warm-up
    or a decay makes of it now.

    Raises:
        NotEstimableError: if the optimizer is of another kind.
    """
    groups = plain_optimizer(optimizer).param_groups
    present = [group["lr"] for group in groups]
    try:
        for group in groups:
            group["lr"] = group.get("initial_lr", group["lr"])
        scales = scales_of(optimizer, parameters, found.second)
    finally:
        for group, rate in zip(groups, present, strict=True):
            group["lr"] = rate
    if scales is None:
        raise NotEstimableError("the optimizer is neither SGD nor Adam nor AdamW")
    return step_of(found.parts["total"], scales)
