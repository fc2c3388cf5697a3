"""Sets the share of rehearsal while a task is trained, from the forces on the scores of the earlier tasks."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_lifealign._files import read_json, write_json
from hf_lifealign.dynamics.following import Anchor
from hf_lifealign.dynamics.force_batch import ForceBatch, Gradients, NotEstimableError, loss_gradients
from hf_lifealign.dynamics.likelihood import undisturbed
from hf_lifealign.dynamics.measuring import AlignmentMeter
from hf_lifealign.dynamics.mixture import Mixture
from hf_lifealign.dynamics.rehearsal import calibrate, logit, rehearsal_fraction, tolerated_drift
from hf_lifealign.dynamics.updates import inner_product, scales_of, step_of
from hf_lifealign.judges import JudgeError

logger = logging.getLogger(__name__)

STATE = "_rehearsal.json"


@dataclass
class Watched:
    """An earlier task whose score is held.

    Args:
        name (`str`): of the task.
        meter ([`AlignmentMeter`]): of its score.
        floor (`float`): below which the score shall not fall.
        anchor ([`Anchor`], *optional*): from which it is followed.
        predicted, measured (`list[float]`): changes of log-odds so far, between measurements.
    """

    name: str
    meter: AlignmentMeter
    floor: float
    anchor: Anchor | None = None
    predicted: list[float] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)
    change: float = 0.0


class RehearsalControl(TrainerCallback):
    r"""
    Measures, every `every` steps, how one step on the new rows and one on the rehearsed rows moves the score of each
    earlier task, and sets the least share of rehearsal that keeps all of them above their floors to the end of the
    phase; see [`rehearsal_fraction`]. Where the lower end of a score's interval has fallen below its floor, a booster
    of nothing but rehearsal comes first.

    Args:
        tasks (`list[Watched]`): the earlier tasks.
        mixture ([`Mixture`]): what is set.
        batches (`Callable`): of the trainer; force batches of new and of rehearsed rows.
        every (`int`): steps between measurements.
        booster_steps (`int`): length of a booster.
        least_ess (`float`): share of effective samples below which answers are drawn anew.
    """

    def __init__(
        self,
        tasks: Sequence[Watched],
        mixture: Mixture,
        batches: Callable[[Any], tuple[ForceBatch, ForceBatch]],
        every: int = 25,
        booster_steps: int = 10,
        least_ess: float = 0.5,
    ):
        self.tasks, self.mixture, self.batches = list(tasks), mixture, batches
        self.every, self.booster_steps, self.least_ess = every, booster_steps, least_ess
        self.trainer: Any = None
        self.record: list[dict[str, Any]] = []
        self._booster_until = 0
        self._forces: tuple[ForceBatch, ForceBatch] | None = None

    # Events

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._forces = self.batches(self.trainer)
        if not (state.global_step and self._load(args, state)):
            self._decide(args, state, kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        ended = self._booster_until and state.global_step == self._booster_until
        if ended or state.global_step % self.every == 0:
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
            "tasks": [{"predicted": t.predicted, "measured": t.measured, "change": t.change} for t in self.tasks],
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
        return True

    @staticmethod
    def _folder(args: TrainingArguments, state: TrainerState) -> Path:
        return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"

    # A decision

    def _decide(self, args: TrainingArguments, state: TrainerState, kwargs: dict[str, Any]) -> None:
        model, step = kwargs["model"], state.global_step
        left = max(1, state.max_steps - step)
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
                            wanted += self._share(task, model, parameters, gradients, kwargs, left, entry)
                except NotEstimableError as error:
                    entry["not_estimable"] = str(error)
        # a share that is not estimable stays as it is: less rehearsal has to be earned
        share = max(wanted) if wanted and len(wanted) == len(self.tasks) else max([self.mixture.share, *wanted])
        low = [name for name, told in entry["tasks"].items() if told.get("booster")]
        if low and self._booster_until <= step:
            share, self._booster_until = 1.0, step + self.booster_steps
            entry["booster"] = low
        entry["share"] = share
        self.record.append(entry)
        # batches that are drawn already stay: the data loader is one ahead
        per_update = args.gradient_accumulation_steps * args.world_size
        self.mixture.change(share, step * per_update + (args.world_size if step else 0))

    def _follow(self, task: Watched, model: Any, step: int, entry: dict[str, Any]) -> bool:
        """The score of a task now; whether forces on it can be measured."""
        told: dict[str, Any] = {"floor": task.floor}
        entry["tasks"][task.name] = told
        if task.anchor is not None:
            logps = task.meter.logps(model, task.anchor.samples)
            found = task.meter.rescored(task.anchor.samples, logps)
            told |= {"score": found.score.score, "ess": found.score.ess, "change": found.change.value}
            if found.change.value is not None:
                if task.anchor.forces:
                    task.predicted.append(task.anchor.forces["net"] * (step - task.anchor.forces["step"]))
                    task.measured.append(found.change.value - task.change)
                task.change = found.change.value
                lowest = logit(task.anchor.score) + (found.change.low if found.change.low is not None else -math.inf)
                told["booster"] = lowest < logit(task.floor) if math.isfinite(lowest) else False
            if found.score.ess >= self.least_ess:
                return task.anchor.samples.one_sided() is None
        try:
            samples = task.meter.draw(model, step)
        except JudgeError as error:
            told["not_estimable"] = str(error)
            logger.warning(f"Rehearsal, step {step}: the score of {task.name!r} was not measured. {error}")
            return False
        score = task.meter.anchored(samples)
        task.anchor, task.change = Anchor(samples, score.score), 0.0
        told |= {"score": score.score, "anchor": step}
        reason = samples.one_sided()
        if reason is not None:
            told["not_estimable"] = reason
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
        left: int,
        entry: dict[str, Any],
    ) -> list[float]:
        """The least share that holds one task, in a list; empty where it is not estimable."""
        anchor, told = task.anchor, entry["tasks"][task.name]
        assert anchor is not None
        score = told["score"]
        if not 0 < score < 1:
            told["not_estimable"] = f"the score is {score:g}"
            return []
        logps = task.meter.logps(model, anchor.samples)
        gradient = task.meter.score_gradient(model, parameters, anchor.samples, logps)
        forces = []
        for found in gradients:
            scales = scales_of(kwargs.get("optimizer"), parameters, found.second)
            if scales is None:
                raise NotEstimableError("the optimizer is neither SGD nor Adam nor AdamW")
            step = step_of(found.parts["total"], scales)
            forces.append(inner_product(gradient, step) / (score * (1 - score)))
        factor = calibrate(task.predicted, task.measured) or 1.0
        tolerated = tolerated_drift(score, task.floor, left) / factor
        fraction = rehearsal_fraction(forces[0], forces[1], tolerated)
        share = self.mixture.share
        # for the calibration: what is predicted of the mixture that is trained on until the next measurement
        anchor.forces = {"net": (1 - share) * forces[0] + share * forces[1], "step": float(entry["step"])}
        told |= {
            "new": forces[0], "rehearsal": forces[1], "tolerated": tolerated, "calibration": factor,
            "share": fraction.value, "feasible": fraction.feasible,
        }  # fmt: skip
        if not fraction.feasible:
            told["reason"] = fraction.reason
            logger.warning(f"Rehearsal, step {entry['step']}: {task.name!r} cannot be held: {fraction.reason}.")
        return [fraction.value]
