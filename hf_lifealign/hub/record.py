"""The record of a run in ``slmc/run.json``: settings, seeds and measures, from which the run can go on elsewhere."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_lifealign._files import write_json
from hf_lifealign.hub.contents import RECORD
from hf_lifealign.hub.errors import DamagedRevisionError
from hf_lifealign.report.privacy import without_folders, without_secrets
from hf_lifealign.stream.task import name_fault

FORMAT = "lifealign-run"
FORMAT_VERSION = 1

Evaluation = dict[str, dict[str, float]]


@dataclass(frozen=True)
class RunRecord:
    """What is known of a life after a task.

    Args:
        lived (`list[str]`): all tasks of the life so far, in order; the last one is the revision's own.
        measured (`list[str]`): those of them whose test rows the run had.
        settings (`dict`): what decided the run's result, as in its `state.json`; tasks that came later are left out.
        records (`dict`): by task: phases with steps, rows and durations, and the `date` of its end.
        evaluation (`dict`): by task `t`: results after `t` on each task measured by then.
        base_evaluation (`dict`): results of the untouched base.
        versions (`dict`): versions of the libraries.
        origin (`dict`, *optional*): the revision from which the run went on: `repo`, `commit`, `tag`, and `contents`,
            the digests that it may have.
        notes (`list[str]`): in what the run differs from one that never moved.
    """

    lived: list[str]
    measured: list[str]
    settings: dict[str, Any]
    records: dict[str, Any]
    evaluation: dict[str, Evaluation]
    base_evaluation: Evaluation = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    origin: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def task(self) -> str:
        """The task after which the record was made."""
        return self.lived[-1]

    @property
    def label(self) -> str:
        """`NN-<task>`."""
        return f"{len(self.lived):02d}-{self.task}"

    def write(self, folder: Path) -> None:
        """Writes the record into an adapter's folder, without folders of this machine and without secrets."""
        body = {"format": FORMAT, "format_version": FORMAT_VERSION, **self.__dict__}
        write_json(folder / RECORD, without_secrets(without_folders(body)))

    @classmethod
    def read(cls, folder: Path) -> "RunRecord":
        """Reads and checks the record of a folder, which may come from a stranger.

        Raises:
            DamagedRevisionError: naming the file and what is wrong with it.
        """
        path = folder / RECORD

        def damaged(what: str) -> DamagedRevisionError:
            return DamagedRevisionError(f"{path} is not the record of a run: {what}. It was damaged or edited.")

        if not path.is_file():
            raise DamagedRevisionError(
                f"{folder} has no {RECORD}, so no run can go on from it. Only adapters of a lifelong run have one; a "
                "single adapter with a memory is loaded with load_adapter."
            )
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise damaged(f"no valid JSON ({error})") from error
        if not isinstance(body, dict) or body.get("format") != FORMAT or body.get("format_version") != FORMAT_VERSION:
            raise damaged(f"its format is not {FORMAT!r} {FORMAT_VERSION}")
        fields = {key: value for key, value in body.items() if key not in ("format", "format_version")}
        if set(fields) != set(cls.__dataclass_fields__):
            raise damaged("it lacks or adds keys")
        lived, measured = fields["lived"], fields["measured"]
        if not isinstance(lived, list) or not isinstance(measured, list) or not lived:
            raise damaged("it names no tasks")
        # these become folder names
        faulty = [name for name in [*lived, *measured] if name_fault(name) is not None]
        if faulty or len(set(lived)) < len(lived) or not set(measured) <= set(lived):
            raise damaged(f"the names of its tasks cannot be used ({', '.join(map(str, faulty)) or 'doubled'})")
        mappings = ("settings", "records", "evaluation", "base_evaluation", "versions")
        if not all(isinstance(fields[name], dict) for name in mappings) or not isinstance(fields["notes"], list):
            raise damaged("one of its parts is not a JSON object")
        _check_parts(fields, damaged)
        _check_evaluation(fields, damaged)
        return cls(**fields)


def _check_parts(fields: dict[str, Any], damaged: Any) -> None:
    """The form of what is read out of settings, records and origin."""
    tasks = fields["settings"].get("tasks", [])
    if not isinstance(tasks, list) or not all(isinstance(task, dict) and "name" in task for task in tasks):
        raise damaged("the tasks of its settings are no tasks")
    for record in fields["records"].values():
        phases = record.get("phases") if isinstance(record, dict) else None
        if not isinstance(phases, list) or not all(isinstance(p, dict) and "steps" in p for p in phases):
            raise damaged("its records of tasks are no records")
    if not all(isinstance(note, str) for note in fields["notes"]):
        raise damaged("its notes are no texts")
    origin = fields["origin"]
    if origin is not None and (not isinstance(origin, dict) or not isinstance(origin.get("contents"), list)):
        raise damaged("its origin is none")


def _check_evaluation(fields: dict[str, Any], damaged: Any) -> None:
    """Results are written into files named after tasks: both have to be what they seem."""
    known = {*fields["lived"], "_perplexity", "_samples"}
    for after, results in [*fields["evaluation"].items(), ("", fields["base_evaluation"])]:
        if after and after not in fields["lived"]:
            raise damaged(f"it has results after an unknown task {after!r}")
        if not isinstance(results, dict) or not all(isinstance(values, dict) for values in results.values()):
            raise damaged("its results are not numbers by name")
        # a run evaluated on all its tasks has results on later ones, which it does not name
        if any(name not in known and name_fault(name) is not None for name in results):
            raise damaged("it has results on a task that cannot be one")
