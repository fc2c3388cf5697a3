"""Rehearsal priming: how many steps it takes to align a model again with an old task that a later one takes up."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lifealign._files import write_json
from hf_lifealign.dynamics.score_curve import read_curve
from hf_lifealign.hub.contents import rows_digest
from hf_lifealign.metrics.alignment_dynamics import PrimingEstimate, priming_ratio
from hf_lifealign.report.privacy import without_folders
from hf_lifealign.strategies.base import PREFERENCE, Phase, Run, Strategy

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

    from hf_lifealign.dynamics.callback import AlignmentDynamicsCallback
    from hf_lifealign.stream import TaskStream

# What two curves have to share to be of one score, in words.
_OF_ONE_SCORE = {"judge": "judge", "probes_sha256": "probes", "max_new_tokens": "length of answers"}


class RehearsalPrimingStrategy(Strategy):
    r"""
    Follows the alignment scores of tasks while they are trained. Where a later task takes up an earlier one, both are
    followed by the same score, and the steps that it takes to reach a target again are told over those that it took
    first: below 1 the model is primed (rehearsal priming, arXiv 2605.18309, section 4; the number is ours, see
    [`~hf_lifealign.metrics.alignment_dynamics.priming_ratio`]).

    Only preference phases are followed, by an [`AlignmentDynamicsCallback`] without forces. What came of each lies in
    `NN-<task>.json`, in the run's record, and in the last entry of an SLMC adapter's memory. What is not estimable is
    said there, with its reason.

    Args:
        judges (`dict[str, Callable | str]`): a judge for each task that is followed; see [`resolve_judge`]. A task that
            takes up an earlier one has that one's judge, and is asked that one's probes.
        resumes (`dict[str, str]`, *optional*): the earlier task that a later one takes up, by the later one's name.
        every (`int`): steps between scores.
        probes (`int`): prompts by which a score is measured: the first test rows of the task whose score it is.
        samples (`int`): answers to each.
        max_new_tokens (`int`): longest answer.
        target (`float`, *optional*): the score that is to be reached, in (0, 1]. By default where the first training
            began, plus `share` of what it gained.
        share (`float`): of that gain, in (0, 1].
        tolerance (`float`): by how much both starts may differ without a remark, in [0, 1].

    Raises:
        ValueError: for settings that cannot work.
    """

    name = "rehearsal_priming"

    def __init__(
        self,
        judges: Mapping[str, Any],
        resumes: Mapping[str, str] | None = None,
        every: int = 10,
        probes: int = 16,
        samples: int = 4,
        max_new_tokens: int = 32,
        target: float | None = None,
        share: float = 0.9,
        tolerance: float = 0.1,
    ):
        self.refuse_below(1, every=every, samples=samples, max_new_tokens=max_new_tokens)
        self.refuse_below(2, probes=probes)
        for option, number, fits, numbers in (
            ("target", target, target is None or 0 < target <= 1, "(0, 1], or leave it out"),
            ("share", share, 0 < share <= 1, "(0, 1]"),
            ("tolerance", tolerance, 0 <= tolerance <= 1, "[0, 1]"),
        ):
            if not fits:
                raise ValueError(f"You set {option}={number} of the strategy {self.name!r}. Set one in {numbers}.")
        self._judges, self.resumes = dict(judges), dict(resumes or {})
        self._check_names()
        self.every, self.probes, self.samples, self.max_new_tokens = every, probes, samples, max_new_tokens
        self.target, self.share, self.tolerance = target, share, tolerance
        self._watch: AlignmentDynamicsCallback | None = None
        self._told: dict[str, Any] = {}

    def _check_names(self) -> None:
        if not self._judges:
            raise ValueError(
                f"You set the strategy {self.name!r} without judges, so that there is no score to follow. Name a judge "
                "for at least one task."
            )
        for later, earlier in self.resumes.items():
            takes_up = f"You set that the task {later!r} takes up {earlier!r}"
            if later == earlier:
                raise ValueError(f"{takes_up}, which is itself. Name an earlier task in resumes.")
            if earlier in self.resumes:
                raise ValueError(
                    f"{takes_up}, which takes up {self.resumes[earlier]!r}. Name the one that was trained first."
                )
            if earlier not in self._judges:
                raise ValueError(f"{takes_up}, and {earlier!r} has no judge. Name one in judges.")
            if later in self._judges:
                raise ValueError(
                    f"{takes_up}, and set a judge for both. Their scores have to be the same one: leave the judge of "
                    f"{later!r} out."
                )

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "judges": {task: self._judge_name(task) for task in self._judges}}

    def _judge_name(self, task: str) -> str:
        from hf_lifealign.judges import judge_name

        given = self._judges[task]
        return given if isinstance(given, str) else judge_name(given)

    def prepare_stream(self, run: Run, stream: "TaskStream") -> "TaskStream":
        from hf_lifealign.judges import resolve_judge

        for option, tasks in (("judges", {*self._judges}), ("resumes", {*self.resumes})):
            unknown = sorted(tasks - set(run.lived))
            if unknown:
                raise ValueError(
                    f"You set {option} of the strategy {self.name!r} for {unknown}. The life has the tasks {run.lived}."
                )
        for later, earlier in self.resumes.items():
            if run.lived.index(earlier) > run.lived.index(later):
                raise ValueError(
                    f"You set that the task {later!r} takes up {earlier!r}, which comes after it in the life "
                    f"{run.lived}. Name an earlier task in resumes."
                )
        self._resolved = {task: resolve_judge(given) for task, given in self._judges.items()}
        for task in self._judges:
            if task in stream.names:
                self._refuse_too_long(run, task, self._probes(stream, task))
        return stream

    def _refuse_too_long(self, run: Run, task: str, rows: list[dict[str, Any]]) -> None:
        """Refuses probes that the model cannot read now, and not when their task is at last trained."""
        from hf_lifealign.dynamics.measuring import AlignmentMeter
        from hf_lifealign.dynamics.samples import read_probes

        judge = self._resolved[task]
        meter = AlignmentMeter(read_probes(rows), judge, run.processing_class, max_new_tokens=self.max_new_tokens)
        try:
            meter.refuse_too_long(run.model)
        except ValueError as error:
            raise ValueError(f"The score of the task {task!r} cannot be followed. {error}") from error

    def _probes(self, stream: "TaskStream", task: str) -> list[dict[str, Any]]:
        test = stream[task].load().test
        return list(test.select(range(min(len(test), self.probes))))

    def _scored(self, phase: Phase) -> str | None:
        """The task whose score is followed in a phase, if one is."""
        task = self.resumes.get(phase.task, phase.task)
        return task if phase.name == PREFERENCE and task in self._judges else None

    # A phase

    def callbacks(self, run: Run, phase: Phase) -> "Sequence[TrainerCallback]":
        self._watch, self._told = None, {}
        of = self._scored(phase)
        if of is None:
            return ()
        if of not in run.stream.names:
            run.note(
                f"How fast {phase.task!r} takes up {of!r} is not followed: the stream does not hold the rows of {of!r}."
            )
            return ()
        from hf_lifealign.dynamics.callback import AlignmentDynamicsCallback

        self._watch = AlignmentDynamicsCallback(
            probes=self._probes(run.stream, of), judge=self._resolved[of], every=self.every, samples=self.samples,
            max_new_tokens=self.max_new_tokens, forces="none", seed=run.seed,
            output=run.strategy_file(self, f"{run.label(phase.task)}-score.jsonl"),
        )  # fmt: skip
        return (self._watch,)

    def before_phase(self, run: Run, phase: Phase, trainer: "Trainer") -> None:
        if self._watch is None:
            return
        from hf_lifealign.dynamics.callback import AlignmentDynamicsCallback

        found = trainer.callback_handler.callbacks
        if sum(isinstance(callback, AlignmentDynamicsCallback) for callback in found) > 1:
            raise ValueError(
                f"You set the strategy {self.name!r} and an AlignmentDynamicsCallback of your own. Both would keep "
                "their samples under one name in a checkpoint, and a resumed training would mix them up. Leave one out."
            )
        self._watch.trainer = trainer  # so that the score goes to the run's tracking

    def after_phase(self, run: Run, phase: Phase, trainer: "Trainer") -> None:
        of = self._scored(phase)
        if of is None:
            return
        from hf_lifealign.dynamics.measuring import from_first_process

        content = from_first_process(lambda: self._found(run, phase, of))
        if "steps" in content and run.is_main_process:
            write_json(self._file(run, phase.task), content)
        self._watch = None  # which holds the trainer, with all that its optimizer keeps
        self._told = _record(content)
        if "priming" in content:
            _remember(run, phase, content["priming"])

    def record(self, run: Run, phase: Phase) -> dict[str, Any]:
        return dict(self._told)

    def _found(self, run: Run, phase: Phase, of: str) -> dict[str, Any]:
        """What was measured in a phase, as JSON."""
        content: dict[str, Any] = {"task": phase.task, "of": of}
        if self._watch is None:
            lacking = f"not estimable: the rows of {of!r} are not at hand, by which its score would be measured"
            return content | {"priming": _priming(of, lacking)}
        from hf_lifealign.dynamics.findings import find

        points = find(self._watch.entries).scores
        content |= {
            "judge": without_folders(self._judge_name(of)),
            "probes_sha256": rows_digest([[probe.prompt, probe.reference] for probe in self._watch.probes]),
            "max_new_tokens": self.max_new_tokens,
            "steps": [point.step for point in points],
            "scores": [point.score for point in points],
            "low": [point.low for point in points],
            "high": [point.high for point in points],
        }
        if phase.task in self.resumes:
            content["priming"] = self._compared(self._file(run, of), content)
        return content

    def _compared(self, file: Path, again: dict[str, Any]) -> dict[str, Any]:
        """The priming of a curve, against the first one in a file."""
        of = again["of"]
        if not file.is_file():
            return _priming(of, f"not estimable: the score of {of!r} was not measured when it was trained first")
        first = read_curve(file)
        if first is None:
            # from what was published, which may have been edited; the path of the file is nobody's business
            return _priming(of, f"not estimable: {file.name} does not hold the curve of a score")
        for name, content in (("first", first), ("again", again)):
            if len(content["steps"]) < 2:
                scores = "only one score" if content["steps"] else "no score"
                return _priming(of, f"not estimable: {name} has {scores}")
        try:
            estimate = priming_ratio(
                (first["steps"], first["scores"]), (again["steps"], again["scores"]),
                target=self.target, share=self.share, tolerance=self.tolerance,
            )  # fmt: skip
        except ValueError as error:
            return _priming(of, f"not estimable: {error}")
        other = [words for key, words in _OF_ONE_SCORE.items() if first.get(key) != again[key]]
        told = estimate.to_json()
        if other:
            doubt = f"the first curve may be of another score, by its {' and '.join(other)}"
            told["reason"] = "; ".join(filter(None, [doubt, told["reason"]]))
        return {"resumes": of, "start_first": first["scores"][0], "start_again": again["scores"][0], **told}

    # Files

    def _file(self, run: Run, task: str) -> Path:
        return run.strategy_file(self, f"{run.label(task)}.json")

    def state_files(self, run: Run) -> list[Path]:
        return [file for task in run.lived if (file := self._file(run, task)).is_file()]


def _priming(resumes: str, reason: str) -> dict[str, Any]:
    """A priming that is not estimable, in the form of one that is."""
    figures = dict.fromkeys(["start_first", "start_again", *(field.name for field in fields(PrimingEstimate))])
    return {"resumes": resumes, **figures, "reason": reason}


def _record(content: dict[str, Any]) -> dict[str, Any]:
    """Of what was measured in a phase, the figures for the run's record."""
    told: dict[str, Any] = {}
    if "steps" in content:
        scores = content["scores"]
        told["alignment"] = {
            "of": content["of"],
            "judge": content["judge"],
            "measurements": len(scores),
            "steps": content["steps"][-1] if scores else None,
            "start": scores[0] if scores else None,
            "end": scores[-1] if scores else None,
        }
    return told | ({"priming": content["priming"]} if "priming" in content else {})


def _remember(run: Run, phase: Phase, priming: dict[str, Any]) -> None:
    """Tells an SLMC adapter's memory, where the phase has just entered it; another adapter has none."""
    from hf_lifealign.slmc.model import find_tuner

    try:
        entries = find_tuner(run.model).memory.entries
    except TypeError:
        return
    if entries and (entries[-1]["task"], entries[-1]["phase"]) == (phase.task, phase.name):
        entries[-1]["priming"] = {
            "resumes": priming["resumes"],
            "ratio": priming["ratio"],
            "steps_first": priming["first_steps"],
            "steps_again": priming["again_steps"],
            "reason": priming["reason"],
        }
