"""Dynamic rehearsal: as many replayed rows as the measured forces on the earlier tasks' scores ask for."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from hf_lifealign._files import read_json, write_json
from hf_lifealign.strategies.base import PREFERENCE, Phase, Run
from hf_lifealign.strategies.replay import ReplayStrategy
from hf_lifealign.strategies.watching import BY_PAIRS, JudgedWatch, PairWatch, UnwatchableError, Watch, floor_of

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

    from hf_lifealign.dynamics.control import RehearsalControl, Watched
    from hf_lifealign.dynamics.mixture import Mixture
    from hf_lifealign.stream import TaskStream

logger = logging.getLogger(__name__)

_MARK = "rehearsed"


class DynamicReplayStrategy(ReplayStrategy):
    r"""
    Replays as [`ReplayStrategy`] does, with a share of each batch that follows the forces measured while a task is
    trained (alignment dynamics, arXiv 2605.18309; the rule is ours).

    Each task has a score between 0 and 1. By default it is how surely the model prefers what the task taught it to
    prefer, on pairs that were never trained on ([`PreferenceMeter`]); with a judge it is the probability that the
    model's answers to the task's prompts are judged aligned, as in the paper, which is what users see, and a noisier
    measurement. When a task has been trained, its score less a little becomes its floor. In later
    preference phases the share of rehearsal begins as that of fixed replay, rises where it is surely too little to keep
    all scores above their floors to the end of the phase, and falls where it is surely more than that takes; see
    [`RehearsalControl`]. A score that surely lies below its floor brings a booster of nothing but rehearsal. The phase
    has as many steps as with fixed replay of the same rows; what is not rehearsed is the new task, whose rows come
    round more often.

    Args:
        judges (`dict[str, Callable | str]`, *optional*): for each task that later ones shall not undo a judge, see
            [`resolve_judge`], or `"preference"` for its own pairs. A task without one is replayed, but not watched. By
            default all tasks are watched by their pairs.
        fraction (`float`): as of [`ReplayStrategy`]; the share of a phase's rows that fixed replay would have is where
            each phase begins.
        capacity (`int`, *optional*): as there.
        tolerance (`float`): by how much a judged score may fall.
        keep (`float`): by pairs, the share that shall stay of what a task gained over the 0.5 of the untouched base.
        every (`int`): steps between measurements.
        pairs (`int`): by which a task is watched, and a tenth of its rows at most. They are kept beside what is
            rehearsed, and neither trained on nor rehearsed.
        probes (`int`): prompts of a task with a judge, from its kept rows.
        samples (`int`): answers to each.
        max_new_tokens (`int`): longest answer.
        force_rows (`int`): new rows, and rehearsed rows, on which forces are measured.
        booster_steps (`int`): length of a booster.

    Raises:
        ValueError: for settings that cannot work.
    """

    name = "dynamic_replay"

    def __init__(
        self,
        judges: Mapping[str, Any] | None = None,
        fraction: float = 0.2,
        capacity: int | None = None,
        tolerance: float = 0.05,
        keep: float = 0.9,
        every: int = 25,
        pairs: int = 32,
        probes: int = 16,
        samples: int = 4,
        max_new_tokens: int = 32,
        force_rows: int = 16,
        booster_steps: int = 10,
    ):
        super().__init__(fraction, capacity)
        for setting, value in (("tolerance", tolerance), ("keep", keep)):
            if not 0 < value < 1:
                raise ValueError(
                    f"You set {setting}={value} of the strategy 'dynamic_replay'. It has to lie in (0, 1)."
                )
        self.refuse_below(
            1, every=every, max_new_tokens=max_new_tokens, force_rows=force_rows, booster_steps=booster_steps
        )
        self.refuse_below(2, pairs=pairs, probes=probes, samples=samples)
        self.tolerance, self.keep, self.every, self.pairs = tolerance, keep, every, pairs
        (
            self.probes,
            self.samples,
            self.max_new_tokens,
        ) = probes, samples, max_new_tokens
        self.force_rows, self.booster_steps = force_rows, booster_steps
        self._judges = dict(judges or {})
        self._watches: dict[str, Watch] = {}
        self._control: RehearsalControl | None = None
        self._mixture: Mixture | None = None

    def settings(self) -> dict[str, Any]:
        from hf_lifealign.judges import judge_name

        named = {task: given if isinstance(given, str) else judge_name(given) for task, given in self._judges.items()}
        return {**super().settings(), "judges": named}

    def prepare_stream(self, run: Run, stream: "TaskStream") -> "TaskStream":
        unknown = sorted(set(self._judges) - set(run.lived))
        if unknown:
            raise ValueError(
                f"You set judges of the strategy 'dynamic_replay' for {unknown}. The life has the tasks {run.lived}."
            )
        self._watches = {task: self._watch(given) for task, given in self._judges.items()}
        if not self._judges:
            self._watches = {task: self._watch(BY_PAIRS) for task in run.lived}
        return super().prepare_stream(run, stream)

    def _watch(self, judge: Any) -> Watch:
        from hf_lifealign.judges import resolve_judge

        if judge == BY_PAIRS:
            return PairWatch()
        return JudgedWatch(resolve_judge(judge), self.probes, self.samples, self.max_new_tokens)

    # Rows by which a task is watched

    def _by_pairs(self, task: str) -> bool:
        return isinstance(self._watches.get(task), PairWatch)

    def _watched_rows(self, task: str, rows: int) -> int:
        """How many of a task's rows are neither trained on nor rehearsed."""
        return min(self.pairs, max(2, rows // 10), rows // 2) if self._by_pairs(task) else 0

    def _quota(self, task: str, rows: int) -> int:
        return min(rows, super()._quota(task, rows) + self._watched_rows(task, rows))

    @staticmethod
    def _own_rows(run: Run, task: str) -> int:
        return len(run.stream[task].load().train)

    def _sample(self, run: Run, task: str, indices: list[int] | None = None) -> dict[str, Any]:
        content = super()._sample(run, task, indices)
        watched = self._watched_rows(task, self._own_rows(run, task))
        return content | ({"watched": watched} if watched else {})

    def _replayable(self, run: Run, task: str) -> list[dict[str, Any]]:
        kept = super()._replayable(run, task)
        watched = read_json(self._file(run, task)).get("watched", 0) if kept else 0
        return kept[: len(kept) - watched]

    def _probed(self, kept: dict[str, Any]) -> list[dict[str, Any]]:
        """Of what is kept of a task, the rows by which it is watched."""
        return list(kept["rows"][len(kept["rows"]) - kept["watched"] :] if "watched" in kept else kept["rows"])

    # Scores of tasks

    def _score_file(self, run: Run, task: str) -> Path:
        return run.strategy_file(self, f"{run.label(task)}-score.json")

    def after_task(self, run: Run, task: str) -> None:
        super().after_task(run, task)
        if task not in self._watches:
            return
        from hf_lifealign.dynamics.likelihood import undisturbed
        from hf_lifealign.judges import JudgeError

        content: dict[str, Any] = {"task": task, "score": None}
        with undisturbed(run.model):
            try:
                meter, told = self._watches[task].begun(run, task, self._probed(self._sample(run, task)))
                score = meter.anchored(meter.draw(run.model, 0))
                content |= told | {"score": score.to_json()}
            except (JudgeError, UnwatchableError) as error:
                run.note(f"The task {task!r} has no score, and is replayed without being watched: {error}")
        if run.is_main_process:
            write_json(self._score_file(run, task), content)

    def state_files(self, run: Run) -> list[Path]:
        scores = [file for task in run.lived if (file := self._score_file(run, task)).is_file()]
        return [*super().state_files(run), *scores]

    # A phase

    def training_rows(self, run: Run, phase: Phase, rows: Dataset) -> Dataset:
        rows = self._without_watched(run, phase.task, rows)
        own = len(rows)
        mixed = super().training_rows(run, phase, rows)
        if phase.name != PREFERENCE or len(mixed) == own:
            return mixed
        return mixed.add_column(_MARK, [False] * own + [True] * (len(mixed) - own))

    def _without_watched(self, run: Run, task: str, rows: Dataset) -> Dataset:
        """Rows of a phase, of which the task's own stand first, without those by which it will be watched: of what was
        learnt by heart a model forgets least, and rows that it never saw tell what its users will."""
        own = self._own_rows(run, task)
        watched = self._watched_rows(task, own)
        if not watched:
            return rows
        left_out = set(self._indices(run, task, own)[-watched:])
        return rows.select([i for i in range(len(rows)) if i not in left_out])

    def callbacks(self, run: Run, phase: Phase) -> "Sequence[TrainerCallback]":
        self._control = self._mixture = None
        replayed = self._rows_before(run, phase.task) if phase.name in self.phases else []
        if phase.name != PREFERENCE or not replayed:
            return ()
        from hf_lifealign.dynamics.control import RehearsalControl
        from hf_lifealign.dynamics.mixture import Mixture

        self._mixture = Mixture(0.0)  # known when the trainer has its rows
        watched = []
        for task in run.lived[: run.lived.index(phase.task)]:
            if task not in self._watches:
                continue
            try:
                watched.append(self._watched(run, task))
            except UnwatchableError as error:
                run.note(f"The score of {task!r} is not held while {phase.task!r} is trained: {error}.")
        if not watched:
            return ()
        self._control = RehearsalControl(watched, self._mixture, self._force_batches, self.every, self.booster_steps)
        return (self._control,)

    def _watched(self, run: Run, task: str) -> "Watched":
        from hf_lifealign.dynamics.control import Watched

        file, kept = self._score_file(run, task), self._file(run, task)
        content = read_json(file) if file.is_file() else {}
        if content.get("score") is None or not kept.is_file():
            raise UnwatchableError("its rows or its score are not at hand")
        floor = floor_of(content, self.tolerance, self.keep)
        if floor <= 0:
            raise UnwatchableError(
                "it has gained nothing that could be lost" if "scale" in content else "its floor is 0"
            )
        return Watched(task, self._watches[task].meter(run, task, self._probed(read_json(kept)), content), floor)

    def before_phase(self, run: Run, phase: Phase, trainer: "Trainer") -> None:
        if self._mixture is None or phase.name != PREFERENCE:
            return
        from hf_lifealign.dynamics.mixture import MixtureSampler

        args = trainer.args
        if args.dataloader_num_workers:
            raise ValueError(
                f"You set dataloader_num_workers={args.dataloader_num_workers} with the strategy 'dynamic_replay'. "
                "Workers draw batches long before they are trained on, with the share of then. Set it to 0."
            )
        data: Any = trainer.train_dataset
        if _MARK not in data.column_names:
            raise ValueError(
                f"{type(trainer).__name__} drops the column {_MARK!r} of its rows, so that 'dynamic_replay' cannot "
                "tell which are rehearsed. Use a trainer that keeps columns, such as FPOTrainer, or 'replay'."
            )
        self._mixture.change(sum(data[_MARK]) / len(data), 0)
        # the sampler counts batches through all epochs
        batches = -(-len(data) // (args.train_batch_size * args.world_size))
        updates = math.ceil(args.num_train_epochs * -(-batches // args.gradient_accumulation_steps))
        per_update = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        length = (args.max_steps if args.max_steps > 0 else updates) * per_update
        args.num_train_epochs = 1
        self._sampler = MixtureSampler(data[_MARK], args.train_batch_size, length, self._mixture, args.seed)
        trainer._get_train_sampler = lambda *_: self._sampler  # type: ignore[method-assign]
        if self._control is not None:
            self._control.trainer = trainer

    def _force_batches(self, trainer: Any) -> Any:
        """Force batches of new and of rehearsed rows of a trainer."""
        from hf_lifealign.dynamics.force_batch import ForceBatch
        from hf_lifealign.strategies.sampling import seeded_generator

        data, args = trainer.train_dataset, trainer.args
        marks = list(data[_MARK])
        found = []
        for kind in (False, True):
            rows = [i for i, mark in enumerate(marks) if bool(mark) == kind]
            chosen = seeded_generator(args.seed, "forces", str(kind)).permutation(rows)[: self.force_rows]
            found.append(
                ForceBatch(
                    [data[int(i)] for i in chosen], trainer.data_collator, args.train_batch_size,
                    args.gradient_accumulation_steps * args.world_size, args.max_grad_norm,
                )
            )  # fmt: skip
        return tuple(found)

    def record(self, run: Run, phase: Phase) -> dict[str, Any]:
        own = self._own_rows(run, phase.task)
        told = super().record(run, phase) | {"train_rows": own - self._watched_rows(phase.task, own)}
        if self._mixture is None or phase.name != PREFERENCE:
            return told
        batches = -(-len(self._sampler) // self._sampler.batch_size)
        new, old = self._sampler.counts(batches)
        found: dict[str, Any] = {"drawn_new": new, "drawn_rehearsed": old, "plan": self._mixture.to_json()}
        if self._control is not None:
            entries = self._control.record
            found |= {
                "measurements": len(entries),
                "boosters": sum("booster" in entry for entry in entries),
                "infeasible": sum("reason" in t for entry in entries for t in entry["tasks"].values()),
            }
            if run.is_main_process:
                write_json(run.strategy_file(self, f"{run.label(phase.task)}-forces.json"), entries)
        return told | {"rehearsal": found}
