"""LifelongTrainer: trains a stream of preference tasks one after another, and keeps what was learnt."""

import copy
import gc
import logging
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import is_peft_model
from peft import PeftConfig
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig
from trl.trainer.utils import get_config_model_id

from hf_lifealign._files import read_json, remove_folder, sweep, write_folder, write_json
from hf_lifealign.fpo import FPOConfig, FPOTrainer
from hf_lifealign.fpo.reference import check_adapter, drop_reference_adapter
from hf_lifealign.hub.bundle import strategy_folder
from hf_lifealign.judges import Judge
from hf_lifealign.lifelong.adapters import (
    create_adapter,
    default_adapter,
    load_base,
    restore_adapter,
    save_adapter,
    trainer_traces_removed,
)
from hf_lifealign.lifelong.config import LifelongConfig
from hf_lifealign.lifelong.examiner import Examiner
from hf_lifealign.lifelong.guards import refuse_sharded_training, refuse_unfit_strategies
from hf_lifealign.lifelong.layout import RunDirectory
from hf_lifealign.lifelong.matrix import build_matrix
from hf_lifealign.lifelong.origin import Origin
from hf_lifealign.lifelong.phases import (
    PhaseClock,
    build_trainer,
    phase_arguments,
    phase_logs,
    resumable_checkpoint,
    trainer_of,
)
from hf_lifealign.lifelong.progress import RunProgress, StepProgress, expected_work, phase_work
from hf_lifealign.lifelong.publication import Publication, fill_revision, freeze_strategies, task_record
from hf_lifealign.lifelong.resources import peak_memory_mb, reset_peak_memory
from hf_lifealign.lifelong.services import RunServices
from hf_lifealign.lifelong.state import RunState, adapter_settings, base_digest, changed_arguments, plain
from hf_lifealign.lifelong.tracking import PhaseLogs, RunTracker
from hf_lifealign.models import public_name, resolve_model
from hf_lifealign.report import write_report
from hf_lifealign.strategies import Phase, Strategy, brings_extra_loss, resolve_strategies
from hf_lifealign.strategies.tensors import trainable_parameters
from hf_lifealign.stream import TaskStream, fingerprint

logger = logging.getLogger(__name__)


class LifelongTrainer(RunServices):
    r"""
    Trains a stream of preference tasks in order: for each an optional warm start (SFT on the chosen answers), the
    preference phase, consolidation, evaluation on every task seen so far, and a saved adapter that loads anywhere.

    The run lives in `args.output_dir`. Killed at any instant and started again with the same arguments, it goes on
    from its last checkpoint and ends with the same adapters and the same matrix.

    Example:

    ```python
    >>> from hf_lifealign import FPOConfig, LifelongConfig, LifelongTrainer, SLMCConfig, TaskStream

    >>> tasks = [{"name": n, "train": f"{n}/train.jsonl", "test": f"{n}/test.jsonl"} for n in ("helpful", "harmless")]
    >>> trainer = LifelongTrainer(
    ...     model="Qwen/Qwen2.5-0.5B-Instruct",
    ...     args=LifelongConfig("runs/assistant"),
    ...     stream=TaskStream.from_config(tasks),
    ...     training_args=FPOConfig("unused", learning_rate=1e-4),
    ...     peft_config=SLMCConfig(r=16, target_modules="all-linear"),
    ... )
    >>> matrix = trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            The base: a Hub id, a local folder, `"embedded:smollm2-135m"`, or a model without adapters.
        args ([`LifelongConfig`]):
            Settings of the run.
        stream ([`TaskStream`]):
            The tasks.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer; that of the model by default.
        trainer_class (`type`, *optional*, defaults to [`FPOTrainer`]):
            Trainer of the preference phase: [`FPOTrainer`], [`~trl.DPOTrainer`], or any that takes TRL's arguments
            and preference rows.
        training_args ([`~trl.DPOConfig`], *optional*):
            Its arguments; an [`FPOConfig`] with defaults for [`FPOTrainer`]. Folder, seed, checkpoints and reporting
            are decided by the run.
        warm_start_args ([`~trl.SFTConfig`], *optional*):
            Arguments of the warm start; none by default, and then there is no warm start.
        peft_config ([`~peft.PeftConfig`], *optional*):
            The adapter that lives through all tasks; by default `SLMCConfig(target_modules="all-linear")`, or a
            LoraConfig of these modules if the strategies do not consolidate.
        callbacks (`list[TrainerCallback]`, *optional*):
            Callbacks for the trainer of every phase.
        judges (`dict[str, Callable]`, *optional*):
            Judges of generated answers by name, beside those named in `args.judges`: each maps prompts, answers and
            references (lists of strings) to one score per answer.
        model_init_kwargs (`dict`, *optional*):
            Keyword arguments for `from_pretrained` where `model` is a string, e.g. `{"dtype": "bfloat16"}`.

    Raises:
        ValueError: for settings that do not fit together, and under ZeRO-3 or FSDP.
        StreamError: if a task's data cannot be trained on.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: LifelongConfig,
        stream: TaskStream,
        processing_class: PreTrainedTokenizerBase | None = None,
        trainer_class: type[Trainer] = FPOTrainer,
        training_args: DPOConfig | None = None,
        warm_start_args: SFTConfig | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        judges: Mapping[str, Judge] | None = None,
        model_init_kwargs: dict[str, Any] | None = None,
    ):
        self.distributed = PartialState()
        if training_args is None:
            training_args = FPOConfig("unused") if issubclass(trainer_class, FPOTrainer) else DPOConfig("unused")
        refuse_sharded_training(training_args, warm_start_args)
        if peft_config is None:
            peft_config = default_adapter(args.strategies)
        if not isinstance(model, str) and is_peft_model(model):
            raise ValueError(
                "You passed a PeftModel as the base. The run makes the adapter itself, so that it can restore it. Pass "
                "the base model and a peft_config."
            )
        self.args = args
        self.stream = stream
        self.trainer_class = trainer_class
        self.training_args = training_args
        self.warm_start_args = warm_start_args
        # PEFT writes into the configuration it is given; the user's stays as it was
        self.peft_config = copy.deepcopy(peft_config)
        self._check_adapter()
        self.user_callbacks = list(callbacks)
        self.strategies = self._resolve_strategies(args.strategies)
        self.stream_report = stream.validate()
        folder, everyone = RunDirectory(args.output_dir, []).origin, self.distributed.wait_for_everyone
        self.origin = Origin.open(folder, args.continue_from, args.hub_token, self.is_main_process, everyone)
        self.lived = [*(self.origin.past(stream.names) if self.origin else []), *stream.names]
        self.directory = RunDirectory(args.output_dir, self.lived)
        self.publication = Publication(args, self.directory.root, self.is_main_process)
        self._model_source = resolve_model(model) if isinstance(model, str) else model
        self._model_init_kwargs = dict(model_init_kwargs or {})
        self._prepared = False
        given = model if isinstance(model, str) else get_config_model_id(model.config) or type(model).__name__
        self.base_name = public_name(given)
        self._processing_class = processing_class or self._load_tokenizer()
        if self._processing_class.pad_token is None:
            self._processing_class.pad_token = self._processing_class.eos_token
        self.examiner = Examiner(self, judges or {})
        self.model: Any = None
        # what came of publishing, in words, once the run is over
        self.published: str | None = None

    def _check_adapter(self) -> None:
        if self.peft_config.is_prompt_learning:
            raise ValueError(
                f"You set a {type(self.peft_config).__name__}. PEFT does not load prompt-learning adapters for further "
                "training, so that a run could not go on after an interruption. Use a LoRA-like adapter."
            )
        # Evaluation and references take the model with adapters off for the base, whatever the trainer.
        check_adapter(self.peft_config, "base", is_new=True)

    # Set-up

    def _resolve_strategies(self, specs: list[Any] | None) -> list[Strategy]:
        is_slmc = str(self.peft_config.peft_type.value) == "SLMC"  # type: ignore[union-attr]
        if specs is None:
            specs = ["replay", "consolidation"] if is_slmc else []
        strategies = resolve_strategies(self.args.rehearsing(specs))
        refuse_unfit_strategies(strategies, self.peft_config)
        return strategies

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        source = self._model_source
        name = source if isinstance(source, str) else get_config_model_id(source.config)
        if not name:
            raise ValueError("You passed a model that was built in memory. Pass its tokenizer as processing_class.")
        return AutoTokenizer.from_pretrained(name)

    def settings(self, base: PreTrainedModel) -> dict[str, Any]:
        """What decides the result of this run, as JSON."""
        continued = {"continued_from": self.origin.content} if self.origin else {}
        return continued | {
            "base_model": self.base_name,
            "base_digest": base_digest(base),
            "base_identity": base_digest(base, whatever_dtype=True),
            "general_text": self.examiner.general_text_digest(),
            "model_init_kwargs": plain(self._model_init_kwargs),
            "run": plain(self.args.settings()),
            "trainer": self.trainer_class.__name__,
            "training": changed_arguments(self.training_args),
            "warm_start": changed_arguments(self.warm_start_args),
            "adapter": adapter_settings(self.peft_config),
            "strategies": [{"name": s.name, **plain(s.settings())} for s in self.strategies],
            "judges": sorted(self.examiner.judges),
            "processes": self.distributed.num_processes,
            "tasks": [{"name": task.name, "rows": fingerprint(task)} for task in self.stream],
        }

    def _snapshots(self) -> list[Path]:
        """Saved states in the order in which a run writes them."""
        folders = [self.directory.origin]
        for index, task in enumerate(self.stream.names):
            folders += [self.directory.snapshot(task, phase.name) for phase in self.phases(index)]
            folders.append(self.directory.adapter(task))
        return folders

    # The run

    def train(self) -> dict[str, Any]:
        """Runs the stream to its end, or goes on where it was interrupted.

        Returns:
            `dict`: the content of `matrix.json`.
        """
        base = load_base(self._model_source, self._model_init_kwargs, self.training_args)
        settings = self.settings(base)
        self.distributed.wait_for_everyone()
        self._open_state(settings)
        reached = [folder for folder in self._snapshots() if self.agreed(folder.is_dir())]
        self._check_published(reached)
        if self.is_main_process:
            sweep(self.directory.root)
        if reached:
            self.model = restore_adapter(base, reached[-1], self.peft_config)
        else:
            self.model = create_adapter(base, self.peft_config, self.seed)
        self._name_base()
        self.progress = RunProgress(*expected_work(self), disable=self.args.disable_tqdm or not self.is_main_process)
        self.tracker = RunTracker(self.args.report_to, self.directory.root, self.training_args, self.is_main_process)
        self.publication.resume()
        try:
            self._prepare_stream()
            self.examiner.examine_base()
            for index, task in enumerate(self.stream.names):
                if self.state.task(index)["status"] == "done":
                    self.tracker.offset += sum(p["steps"] for p in self.state.task(index)["record"]["phases"])
                else:
                    self._train_task(index, task)
            self.examiner.sample_answers()
            return self._finish()
        finally:
            self.progress.close()
            self.tracker.close()

    def _open_state(self, settings: dict[str, Any]) -> None:
        labels = {task: self.directory.label(task) for task in self.stream.names}
        with_past = self.origin is not None and len(labels) == len(self.lived)
        records = self.origin.record.records if self.origin is not None and with_past else {}
        notes = self.origin.check(settings, with_past) if self.origin else []
        self.state = RunState(self.directory.state, settings, labels, self.is_main_process, records)
        for note in notes:
            self.note(note)
        if self.origin is not None and self.is_main_process:
            self.origin.unpack(self.directory, with_past, settings["general_text"])
        self.distributed.wait_for_everyone()

    def _check_published(self, reached: list[Path]) -> None:
        """The adapter after the last finished task is what the next one goes on from."""
        done = [task for i, task in enumerate(self.stream.names) if self.state.task(i)["status"] == "done"]
        brought = self.origin.record.lived if self.origin else []
        if done and done[-1] not in brought and self.directory.adapter(done[-1]) not in reached:
            raise FileNotFoundError(
                f"The run has finished the task {done[-1]!r}, but {self.directory.adapter(done[-1])} is gone, and the "
                "next task goes on from it. Restore that folder, or start again in a new output_dir."
            )

    def _prepare_stream(self) -> None:
        if self._prepared:
            return
        names = self.stream.names
        for strategy in self.strategies:
            self.stream = strategy.prepare_stream(self, self.stream)
            if self.stream.names != names:
                raise ValueError(
                    f"The strategy {strategy.name!r} turned the tasks {names} into {self.stream.names}. It may change "
                    "their rows, not their names or order, by which a run finds what it has done."
                )
        self._prepared = True
        self.distributed.wait_for_everyone()

    def _name_base(self) -> None:
        """Writes the base's public name into the adapter's configuration where it was loaded from a cache."""
        # only a Hub id names a base that others can find; PEFT has written where this one was loaded from
        if isinstance(self._model_source, str) and self.base_name.count("/") == 1:
            self.model.peft_config["default"].base_model_name_or_path = self.base_name

    def _train_task(self, index: int, task: str) -> None:
        times = [time.monotonic()]
        for strategy in self.strategies:
            strategy.before_task(self, task)
        times.append(time.monotonic())
        records = [self._train_phase(phase) for phase in self.phases(index)]
        times.append(time.monotonic())
        self.examiner.examine(index)
        times.append(time.monotonic())
        for strategy in self.strategies:
            strategy.after_task(self, task)
        before, _, evaluation, after = (end - start for start, end in pairwise([*times, time.monotonic()]))
        record = task_record(self, task, records, evaluation, before + after)
        self._publish(index, task, record)
        self.distributed.wait_for_everyone()
        self.state.finish_task(index, record)
        self.publication.announce(self.directory.label(task))
        if self.is_main_process:
            self._report(index + 1)
            remove_folder(self.directory.root / "work" / self.directory.label(task))
        self.distributed.wait_for_everyone()

    def _train_phase(self, phase: Phase) -> dict[str, Any]:
        """Trains a phase, or goes on with it, or skips it if it is over; returns its record."""
        snapshot = self.directory.snapshot(phase.task, phase.name)
        if not self.agreed(snapshot.is_dir()):
            self.progress.stage(f"{phase.task} · {phase.name.replace('_', ' ')}")
            with trainer_traces_removed(self.model):
                record = self._run_trainer(phase)
            if self.is_main_process:
                write_folder(snapshot, lambda folder: self._save_phase(folder, record))
                remove_folder(self.directory.work(phase.task, phase.name))
            self.distributed.wait_for_everyone()
        else:
            self.progress.advance(phase_work(self, phase))
        record = read_json(snapshot / "phase.json")
        self.tracker.offset += record["steps"]
        return record

    def _save_phase(self, folder: Path, record: dict[str, Any]) -> None:
        save_adapter(self.model, folder)
        write_json(folder / "phase.json", record)

    def _run_trainer(self, phase: Phase) -> dict[str, Any]:
        work = self.directory.work(phase.task, phase.name)
        checkpoint = resumable_checkpoint(work, self.is_main_process)
        clock = PhaseClock(checkpoint)
        for strategy in self.strategies:
            strategy.prepare_phase(self, phase)
        own = self.training_rows(phase.task)
        rows = own
        for strategy in self.strategies:
            rows = strategy.training_rows(self, phase, rows)
        brought = trainer_of(self, phase)
        args = phase_arguments(brought.args, phase, work, self.seed, self.args.checkpoint_steps)
        callbacks = [*self.user_callbacks, StepProgress(self.progress, phase_work(self, phase))]
        callbacks.append(PhaseLogs(self.tracker, phase.name))
        for strategy in self.strategies:
            callbacks += strategy.callbacks(self, phase)
        drop_reference_adapter(self.model)
        reset_peak_memory()
        trainer = build_trainer(
            phase, self.model, args, rows, self.processing_class, brought, callbacks,
            [s.compute_extra_loss for s in self.strategies if brings_extra_loss(s)], clock,
        )  # fmt: skip
        for strategy in self.strategies:
            strategy.before_phase(self, phase, trainer)
        trainer.train(resume_from_checkpoint=checkpoint)
        for strategy in self.strategies:
            strategy.after_phase(self, phase, trainer)
        drop_reference_adapter(self.model)
        record: dict[str, Any] = {
            "phase": phase.name,
            "steps": trainer.state.global_step,
            "train_rows": len(own),
            "replay_rows": 0,
            "seconds": round(clock.seconds(), 3),
            "peak_memory_mb": peak_memory_mb(),
            "trainable_parameters": sum(p.numel() for p in trainable_parameters(self.model).values()),
            "consolidation": None,
        }
        for strategy in self.strategies:
            record |= strategy.record(self, phase)
        if self.is_main_process:
            write_json(self.directory.logs(phase.task, phase.name), phase_logs(trainer))
        self._track_consolidation(record, trainer.state.global_step)
        del trainer
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return record

    def _track_consolidation(self, record: dict[str, Any], step: int) -> None:
        totals = (record["consolidation"] or {}).get("totals", {})
        numbers = {f"consolidation/{k}": v for k, v in totals.items() if isinstance(v, (int, float))}
        if numbers:
            self.tracker.log(numbers, step)

    # Results

    def matrix(self, trained: int | None = None) -> dict[str, Any]:
        """Content of `matrix.json`, for the tasks finished so far or the first `trained`."""
        counts = [len(task.load().test) for task in self.stream]
        names, every = self.stream.names, self.args.evaluate_all_tasks
        elsewhere = self.origin.record.lived if self.origin else []
        return build_matrix(self.directory, names, self.args.metric, counts, every, trained, elsewhere)

    def _publish(self, index: int, task: str, record: dict[str, Any]) -> None:
        if self.is_main_process:
            frozen = strategy_folder(self.directory.root, self.directory.label(task))
            write_folder(frozen, lambda folder: freeze_strategies(self, folder))
            write_folder(self.directory.adapter(task), lambda folder: fill_revision(self, folder, index, record))

    def _report(self, trained: int) -> None:
        matrix = self.matrix(trained)
        write_json(self.directory.matrix, matrix)
        write_report(self.directory.root)
        summary = matrix["summary"].get(self.args.metric, {})
        flat = {f"lifelong/{name}": value for name, value in summary.items() if value is not None}
        for measure, rows in matrix["matrices"].items():
            flat |= {f"lifelong/{measure}/{t}": v for t, v in zip(matrix["tasks"], rows[-1], strict=False)}
        self.tracker.log(flat)

    def _finish(self) -> dict[str, Any]:
        self.state.finish()
        if self.is_main_process:
            self._report(len(self.stream))
            remove_folder(self.directory.root / "work")
        self.distributed.wait_for_everyone()
        self.progress.stage("done")
        self.published = self.publication.finish()
        return read_json(self.directory.matrix)


# DPOTrainer is the naive sequential baseline; it is named here so that recipes can ask for it by its name.
TRAINERS: dict[str, type[Trainer]] = {"fpo": FPOTrainer, "dpo": DPOTrainer}
