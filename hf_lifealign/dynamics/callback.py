"""AlignmentDynamicsCallback: sees, while any trainer trains, how an alignment score moves and which forces move it."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy

from hf_lifealign.dynamics.following import STATE, Anchor, to_json
from hf_lifealign.dynamics.force_batch import (
    FEW_UPDATES,
    ForceBatch,
    Gradients,
    NotEstimableError,
    is_likelihood,
    is_plain_likelihood,
    loss_gradients,
    split_gradients,
    trainer_loss,
)
from hf_lifealign.dynamics.likelihood import undisturbed
from hf_lifealign.dynamics.logs import flat
from hf_lifealign.dynamics.measuring import AlignmentMeter, from_first_process
from hf_lifealign.dynamics.reference import ReferenceAnswers
from hf_lifealign.dynamics.samples import read_probes
from hf_lifealign.dynamics.series import FILE, Series
from hf_lifealign.dynamics.sharding import gathered, why_sharded
from hf_lifealign.dynamics.updates import (
    Tensors,
    coming_rates,
    inner_product,
    norm,
    plain_optimizer,
    scales_of,
    snapshot,
    step_of,
)
from hf_lifealign.judges import Judge, JudgeError, resolve_judge

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

FORCES = ("auto", "gradient", "none")
# Samples of each probe from which both halves have a force.
LEAST_CROSS = 4
_WHOLE_CHECKPOINTS = (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)


class AlignmentDynamicsCallback(TrainerCallback):
    r"""
    Follows an alignment score through any training of a causal language model (arXiv 2605.18309), and measures the
    forces on it. It works in trainers of transformers and TRL, with adapters and without, and changes nothing in the
    training: the same seeds give the same weights with and without it.

    At an anchor the model answers probes, a judge tells which answers are aligned, and the share of these is the score
    S. Every `every` steps these samples are weighed anew by what the model now says of them, which needs a forward
    only. Where they surely miss a tenth of it or more, by their mean weight (`coverage`), that is said, and a new
    anchor is taken. At an anchor it also measures grad S, and with it what the real update since the last anchor did,
    and what a step on the training data does: the driving force, and the rebound against it.

    Everything goes to `dynamics.jsonl` in the output folder, for `lifealign dynamics RUN`, and to the trainer's logs
    under `dynamics/`. What is not estimable is said, with its reason.

    Where probes come with an aligned and a non-aligned answer (rows with `chosen` and `rejected`), the margin of their
    log-likelihoods is followed as well, as `reference_margin`: a proxy that needs no judge, and is not S. It costs a
    forward of two answers to each probe.

    Whether the forces can be relied on is told by halves of the samples: grad S by the one half predicts what the other
    half measures, so that a judge which says nothing of the answers is not taken for one that does. This needs at least
    4 samples of each probe.

    A force is what one step does, at the mean learning rate of the steps up to the next anchor where the schedule is a
    formula (`LambdaLR`), else at the present one.

    Drive and rebound are the parts of a plain negative log-likelihood. Of any other loss (label smoothing,
    `compute_loss_func`, `loss_type="dft"`, another `compute_loss`, preferences) the whole force is measured, which
    needs `trainer`; without it, a loss that was given to the trainer as a function is not noticed.

    Memory: four copies of the trained parameters in float32 (where they were, and grad S by all samples and by each
    half), which are in each checkpoint as well, and up to six more while forces are measured: means of both parts and
    of the squares, both parts of an update, and what a backward returns. Beyond `max_parameters`, and under DeepSpeed
    and FSDP, the score is followed without forces, and nothing of this is held. Under DDP every process measures the
    same, by what the first one draws and judges, and the first one writes. A trainer takes one such callback: a second
    one would log under the same names, and overwrite the first one's anchor in checkpoints.

    Precision: between two states of a model in bfloat16 the log-likelihood of an answer of ten tokens is off by about
    0.2 nats (SmolLM2-135M; the last bit of a logit near 20 is worth an eighth). Over all samples this averages out to
    some hundredths of the log-odds; smaller changes are seen in float32.

    Example:

    ```python
    >>> from hf_lifealign import AlignmentDynamicsCallback, ClassifierJudge

    >>> judge = ClassifierJudge("distilbert/distilbert-base-uncased-finetuned-sst-2-english", label="POSITIVE")
    >>> watch = AlignmentDynamicsCallback(probes, judge, every=20)
    >>> trainer = SFTTrainer(model, args=args, train_dataset=rows, callbacks=[watch])
    >>> watch.trainer = trainer  # for logs in W&B and the like, and for forces of losses other than SFT's
    >>> trainer.train()
    ```

    Args:
        probes (`str`, `list` or [`~datasets.Dataset`]): prompts, or rows with `prompt`; see [`read_probes`].
        judge (`Callable` or `str`): of `(prompts, answers, references)`, or the name of one; see [`resolve_judge`].
        every (`int`): steps between scores.
        anchor_every (`int`, *optional*): steps between anchors; five times `every` by default. An anchor comes earlier
            where the samples no longer carry.
        force_batch (`int`): training rows on which forces are measured, at least: rows for 6 updates are taken where
            the data has them, and always whole updates.
        samples (`int`): answers to each probe; at least 2 for forces, and 4 for a verdict on them.
        max_new_tokens (`int`): longest answer.
        score_tokens (`int`, *optional*): tokens of an answer by whose likelihood it is weighed; all by default.
        least_ess (`float`): share of effective samples below which a new anchor is taken.
        forces (`str`): `"auto"`, `"gradient"`, or `"none"` for scores alone.
        max_parameters (`int`): most trained parameters for which `"auto"` measures forces.
        judge_timeout (`float`, *optional*): seconds.
        split (`str`): of probes that are named.
        seed (`int`): of samples, force batch and bootstrap.
        output (`str`, *optional*): the JSON Lines file; `dynamics.jsonl` in the trainer's output folder by default.
        trainer ([`~transformers.Trainer`], *optional*): whose logs receive the measurements as they come, and whose
            loss is measured where it is not a likelihood. It can also be set later, as the attribute `trainer`.
        chat_template_kwargs (`dict`, *optional*): for the chat template of probes, e.g. `{"enable_thinking": False}`.

    Raises:
        ValueError: for settings that cannot work.
    """

    def __init__(
        self,
        probes: "Sequence[Any] | Dataset | str",
        judge: Judge | str,
        every: int = 20,
        anchor_every: int | None = None,
        force_batch: int = 48,
        samples: int = 8,
        max_new_tokens: int = 32,
        score_tokens: int | None = None,
        least_ess: float = 0.5,
        forces: str = "auto",
        max_parameters: int = 200_000_000,
        judge_timeout: float | None = None,
        split: str = "test",
        seed: int = 0,
        output: str | Path | None = None,
        trainer: Trainer | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ):
        self.every, self.anchor_every = every, anchor_every or 5 * every
        for name, value in (
            ("every", every), ("anchor_every", self.anchor_every), ("force_batch", force_batch),
            ("samples", samples), ("max_new_tokens", max_new_tokens),
        ):  # fmt: skip
            if value < 1:
                raise ValueError(f"You set {name}={value}. It has to be at least 1.")
        if forces not in FORCES:
            raise ValueError(f"You set forces={forces!r}. It has to be one of {list(FORCES)}.")
        if forces == "gradient" and samples < 2:
            raise ValueError("You set samples=1. A force compares answers to the same probe: set at least 2.")
        if not 0 <= least_ess < 1:
            raise ValueError(f"You set least_ess={least_ess}. It is a share of the samples: from 0, below 1.")
        self.probes = read_probes(probes, split)
        self.judge = resolve_judge(judge)
        self.force_batch, self.samples, self.max_new_tokens = force_batch, samples, max_new_tokens
        self.score_tokens, self.least_ess, self.forces = score_tokens, least_ess, forces
        self.max_parameters, self.judge_timeout, self.seed = max_parameters, judge_timeout, seed
        self.output, self.trainer, self.chat_template_kwargs = output, trainer, chat_template_kwargs
        self.anchor: Anchor | None = None
        self.series: Series | None = None
        self._without: str | None = None
        self._warned = False

    @property
    def entries(self) -> list[dict[str, Any]]:
        """All measurements of the training so far, as in the file."""
        return self.series.entries if self.series is not None else []

    # Events

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model, tokenizer = kwargs["model"], kwargs["processing_class"]
        self.meter = AlignmentMeter(
            self.probes, self.judge, tokenizer, self.samples, self.max_new_tokens, self.score_tokens, self.seed,
            self.judge_timeout, chat_template_kwargs=self.chat_template_kwargs,
        )  # fmt: skip
        self.meter.refuse_too_long(model)
        self._warn_of_uploads(args)
        self._references = ReferenceAnswers(
            self.probes, self.meter.prompt_ids, tokenizer, self.max_new_tokens, seed=self.seed
        )
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._without = self._why_without_forces(args, model)
        self._batch: ForceBatch | str | None = None
        file = Path(self.output) if self.output is not None else Path(str(args.output_dir)) / FILE
        self.series = Series(file, state.is_world_process_zero)
        self.series.begin(state.global_step)
        self.anchor = None
        if state.global_step:
            folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            self.anchor = Anchor.load(folder, self.parameters)
            if self.anchor is None:
                logger.warning(
                    f"There is nothing of the dynamics in {folder}. The series goes on with a new anchor at step "
                    f"{state.global_step}."
                )
        if self.anchor is None:
            self._measure(args, state, **kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # the last step here, since at the end of the training the trainer may have loaded another model
        last = state.global_step >= state.max_steps or control.should_training_stop
        if last or state.global_step % self.every == 0:
            self._measure(args, state, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # a training that was stopped in another place, as by an evaluation
        other = args.load_best_model_at_end and state.best_model_checkpoint is not None
        if not other and (not self.entries or self.entries[-1]["step"] != state.global_step):
            self._measure(args, state, **kwargs)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if self.anchor is not None and state.is_world_process_zero and folder.is_dir():
            self.anchor.save(folder)

    def _warn_of_uploads(self, args: TrainingArguments) -> None:
        if not self._warned and args.push_to_hub and args.hub_strategy in _WHOLE_CHECKPOINTS:
            self._warned = True
            logger.warning(
                f"You set hub_strategy={HubStrategy(args.hub_strategy).value!r}, which uploads checkpoints whole. They "
                f"hold {STATE}, with the model's answers to your probes, so that training can go on with the same "
                "series. If these are not to be published, set hub_strategy='every_save' or 'end'."
            )

    # A measurement

    def _why_without_forces(self, args: TrainingArguments, model: Any) -> str | None:
        if self.forces == "none":
            return "forces='none'"
        if self.samples < 2:
            return "samples=1: a force compares answers to the same probe"
        sharded = why_sharded(args, model)
        if sharded is not None:
            return f"{sharded} spreads parameters, gradients or the optimizer's states over processes: scores only"
        count = sum(p.numel() for p in self.parameters)
        if self.forces == "auto" and count > self.max_parameters:
            return f"{count} trained parameters are more than max_parameters={self.max_parameters}: scores only"
        return None

    def _measure(self, args: TrainingArguments, state: TrainerState, **kwargs: Any) -> None:
        model, step = kwargs["model"], state.global_step
        start = time.perf_counter()
        entry: dict[str, Any] = {"step": step}
        with undisturbed(model), gathered(model) as whole:
            due = self._follow(whole, step, entry)
            if due:
                self._take_anchor(args, state, whole, entry, kwargs)
            margin = self._references.measure(whole)
            if margin is not None:
                entry["reference_margin"] = margin.to_json()
        entry["seconds"] = time.perf_counter() - start
        assert self.series is not None
        self.series.add(entry)
        self._log(state, flat(entry))

    def _follow(self, model: Any, step: int, entry: dict[str, Any]) -> bool:
        """Weighs the samples of the anchor anew; whether a new anchor is due."""
        anchor = self.anchor
        if anchor is None:
            return True
        logps = self.meter.logps(model, anchor.samples)
        found = self.meter.rescored(anchor.samples, logps)
        entry |= {
            "score": {**to_json(found.score), "anchor": anchor.step, "coverage": found.coverage},
            "log_odds_change": {**to_json(found.change), "since": anchor.step},
        }
        if found.missed is not None:
            for told_of in ("score", "log_odds_change"):
                reasons = [entry[told_of].get("reason"), found.missed]
                entry[told_of]["reason"] = "; ".join(filter(None, reasons))
        with torch.no_grad():
            predicted = anchor.attributed(self.parameters)
        if predicted is not None:
            steps = step - anchor.step
            told: dict[str, Any] = {
                "since": anchor.step,
                "score": predicted,
                "measured": found.score.score - anchor.score,
            }
            if anchor.gate > 0:
                told["log_odds"] = predicted / anchor.gate
                for name in ("drive", "rebound", "net"):
                    if name in anchor.forces:
                        told[name] = anchor.forces[name] * steps
                if "net" in told:
                    told["residual"] = told["log_odds"] - told["net"]
            cross = anchor.cross(self.parameters, logps)
            if cross:
                told["cross"] = cross
            entry["attribution"] = told
        due = step - anchor.step >= self.anchor_every or found.score.ess < self.least_ess or bool(found.missed)
        # by rounding the weights may differ between processes, and an anchor is taken by all or by none
        return from_first_process(lambda: due)

    def _take_anchor(
        self, args: TrainingArguments, state: TrainerState, model: Any, entry: dict[str, Any], kwargs: dict[str, Any]
    ) -> None:
        step = state.global_step
        try:
            samples = self.meter.draw(model, step)
        except JudgeError as error:
            # the old anchor goes on, if there is one
            entry["not_estimable"] = {"anchor": str(error)}
            logger.warning(f"Alignment dynamics, step {step}: no anchor. {error}")
            return
        score = self.meter.anchored(samples)
        before, self.anchor = self.anchor, Anchor(samples, score.score)
        # the samples' own score; what the earlier anchor said of this step stands beside it
        if "score" in entry:
            entry["rescored"] = entry["score"]
        entry["score"] = {**to_json(score), "anchor": step}
        entry["narrowness"] = self.meter.narrowness(samples)
        reason = self._without or samples.one_sided()
        if reason is None:
            reason = self._forces(args, state, model, entry, before, kwargs)
        if reason is not None:
            entry["not_estimable"] = {**entry.get("not_estimable", {}), "forces": reason}

    def _forces(
        self,
        args: TrainingArguments,
        state: TrainerState,
        model: Any,
        entry: dict[str, Any],
        before: Anchor | None,
        kwargs: dict[str, Any],
    ) -> str | None:
        """grad S at the new anchor, what the update since the last one did by it, and the forces of the training data;
        why there are none, if so."""
        anchor = self.anchor
        assert anchor is not None
        gradient = self.meter.score_gradient(model, self.parameters, anchor.samples, anchor.samples.logps)
        entry["gradient_norm"] = norm(gradient)
        if before is not None and "attribution" in entry:
            behind = before.attributed(self.parameters, gradient)
            told = entry["attribution"]
            if behind is not None and "log_odds" in told and anchor.gate > 0:
                # the mean of both ends is right to second order
                told["trapezoid"] = (told["log_odds"] + behind / anchor.gate) / 2
        if before is not None:
            before.release()
        anchor.gradient, anchor.parameters = gradient, snapshot(self.parameters)
        self._halve(model, anchor, entry)
        left = state.max_steps - anchor.step
        # anchors are taken where the score is, every so many steps
        interval = -(-self.anchor_every // self.every) * self.every
        rates = coming_rates(kwargs.get("optimizer"), kwargs.get("lr_scheduler"), min(interval, left))
        if not any(rates):
            return "the learning rate is 0, so that a step changes nothing"
        try:
            found = self._gradients(args, model, kwargs)
        except NotEstimableError as error:
            return str(error)
        scales = scales_of(kwargs.get("optimizer"), self.parameters, found.second, rates, found.updates)
        if scales is None:
            kind = type(plain_optimizer(kwargs.get("optimizer"))).__name__
            return f"the optimizer ({kind}) is neither SGD nor Adam nor AdamW, or does not train these parameters"
        forces = {
            name: inner_product(gradient, step_of(part, scales)) / anchor.gate for name, part in found.parts.items()
        }
        anchor.forces = {**forces, "net": sum(forces.values())}
        entry["forces"] = {**anchor.forces, "loss": found.loss, "rows": found.rows, "updates": found.updates}
        if found.updates < FEW_UPDATES:
            entry["forces"]["reason"] = (
                f"{found.updates} update{'s' * (found.updates != 1)} of training rows: the forces are rough, their "
                "split even more so"
            )
        return None

    def _halve(self, model: Any, anchor: Anchor, entry: dict[str, Any]) -> None:
        """grad S by each half of the anchor's samples.

        The gradient by all samples is measured beside them, and is not their mean: its baseline is that of all answers
        to a probe, which is less noisy than one of half as many. Both halves together cost one more backward.
        """
        if self.samples < LEAST_CROSS:
            why = f"samples={self.samples}: both halves of them are needed, so at least {LEAST_CROSS} of each probe"
            entry["not_estimable"] = {**entry.get("not_estimable", {}), "cross": why}
            return
        found: list[Tensors | None] = []
        for half in (anchor.samples.half(0), anchor.samples.half(1)):
            told = half.one_sided() is None
            found.append(self.meter.score_gradient(model, self.parameters, half, half.logps) if told else None)
        anchor.halves = (found[0], found[1])

    def _gradients(self, args: TrainingArguments, model: Any, kwargs: dict[str, Any]) -> Gradients:
        if self._batch is None:
            try:
                self._batch = ForceBatch.of(kwargs.get("train_dataloader"), self.force_batch, self.seed, args)
            except NotEstimableError as error:
                self._batch = str(error)
        if isinstance(self._batch, str):
            raise NotEstimableError(self._batch)
        if is_likelihood(self._batch.first()) and is_plain_likelihood(args, self.trainer):
            return split_gradients(model, self.parameters, self._batch)
        if self.trainer is None:
            raise NotEstimableError(
                "the loss of this trainer is not a plain likelihood: set the callback's trainer, so that its loss can "
                "be measured"
            )
        if hasattr(self.trainer, "_generate_and_score_completions"):
            raise NotEstimableError("this trainer generates what it learns from: there is no batch before it does")
        return loss_gradients(model, self.parameters, self._batch, trainer_loss(self.trainer))

    def _log(self, state: TrainerState, logs: dict[str, float]) -> None:
        trainer = self.trainer
        if trainer is None:
            state.log_history.append({**logs, "step": state.global_step})
            return
        due = trainer.control.should_log
        # not a subclass's own, which would write out, and clear, what it has gathered for its next log
        Trainer.log(trainer, dict(logs))
        trainer.control.should_log = due
