"""Where a run goes on from: a published revision, or a task of another run, fetched once, verified and kept."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_lifealign._files import read_json, remove_folder, replacing, write_folder, write_json
from hf_lifealign.hub.bundle import PUSH_REPLAY, build_bundle, finished_tasks
from hf_lifealign.hub.contents import CARD, PICTURE, STRATEGIES, Content, content_digest, is_allowed
from hf_lifealign.hub.fetch import fetch_revision, split_revision
from hf_lifealign.hub.record import RunRecord
from hf_lifealign.lifelong.layout import RunDirectory
from hf_lifealign.lifelong.matrix import PERPLEXITY
from hf_lifealign.lifelong.state import differences
from hf_lifealign.report.privacy import without_folders, without_secrets

_IDENTITY = "origin.json"
# Names of settings whose difference is told in other words, or is none.
_NOT_COMPARED = ("tasks", "adapter", "judges", "continued_from")


@dataclass(frozen=True)
class Origin:
    """A revision from which a run goes on.

    Args:
        folder (`Path`): `origin/` of the run.
        record (`RunRecord`): what is known of the life until then.
        identity (`dict`): `repo`, `commit` and `tag` of a published revision, and `contents`, the digests it may have.
    """

    folder: Path
    record: RunRecord
    identity: dict[str, Any]

    @classmethod
    def open(
        cls, folder: Path, name: str | None, token: str | None, is_main_process: bool, wait: Any
    ) -> "Origin | None":
        """The origin of a run: the copy in its folder, or, at the first start, fetched and copied there.

        Args:
            folder (`Path`): `origin/` of the run.
            name (`str`, *optional*): `LifelongConfig.continue_from`.
            token (`str`, *optional*): access token.
            is_main_process (`bool`), wait (`Callable`): the main process fetches, the others wait for it.

        Raises:
            ValueError: if the run's folder holds another origin.
            HubError: if the revision cannot be fetched, or is damaged.
        """
        state = folder.parent / "state.json"
        if name is None:
            if folder.is_dir() and state.is_file():
                raise ValueError(
                    f"The run in {folder.parent} goes on from another life (see {folder}). Set continue_from as it "
                    "was, or choose another output_dir."
                )
            return None
        if is_main_process:
            if state.is_file() and not folder.is_dir():
                raise ValueError(
                    f"You set continue_from={name!r}, and {folder.parent} holds a run that began with the base. Choose "
                    "another output_dir, or leave continue_from out to go on with that run."
                )
            if folder.is_dir() and not state.is_file():
                remove_folder(folder)  # of a start that was refused or killed; it may have asked for another one
            if not folder.is_dir():
                _bring(folder, name, token)
        wait()
        identity = read_json(folder / _IDENTITY)
        if name not in identity["asked"] and str(Path(name).resolve()) not in identity["asked"]:
            raise ValueError(
                f"You set continue_from={name!r}, and the run in {folder.parent} goes on from "
                f"{identity['asked'][0]!r}. Set it back, or choose another output_dir."
            )
        return cls(folder, RunRecord.read(folder), {key: identity[key] for key in identity if key != "asked"})

    @property
    def content(self) -> str:
        """What identifies the state from which the run goes on."""
        return str(self.identity["contents"][0])

    def past(self, stream: list[str]) -> list[str]:
        """Tasks before those of the stream: none if it begins with the ones that were lived.

        Raises:
            ValueError: if it holds some of them, or in another order.
        """
        lived = self.record.lived
        if stream[: len(lived)] == lived:
            if self.record.measured != lived:
                raise ValueError(
                    f"The stream begins with the tasks {lived}, but not all of them were measured in the life it goes "
                    "on from. Give only the new tasks."
                )
            return []
        shared = [task for task in stream if task in lived]
        if shared:
            raise ValueError(
                f"The life goes on from {self._where()}, after the tasks {lived}. The stream {stream} holds {shared} "
                "of them. Give all of them first and in that order, or only new tasks under other names."
            )
        return list(lived)

    def _where(self) -> str:
        where = self.identity["repo"] or "a local folder"
        return f"{where}@{self.identity['tag']}" if self.identity["tag"] else where

    def check(self, settings: dict[str, Any], with_past: bool) -> list[str]:
        """Compares the settings of a run with those of the life it goes on with.

        Args:
            settings (`dict`): of the run.
            with_past (`bool`): whether its stream holds the tasks lived before.

        Returns:
            `list[str]`: in what the result will differ from that of a run that never moved.

        Raises:
            ValueError: if the adapter is another one, or the earlier results cannot stand beside new ones.
        """
        old = self.record.settings
        # as the other side was published
        settings = without_secrets(without_folders(settings))
        changed = differences(old.get("adapter"), settings["adapter"])
        if changed:
            raise ValueError(
                f"The adapter of {self._where()} was made with other settings than yours:\n  "
                + "\n  ".join(changed) + "\nSet them back: an adapter keeps its form through its life."
            )  # fmt: skip
        if old.get("base_identity") != settings["base_identity"]:
            raise ValueError(
                f"The life goes on from {self._where()}, whose base is {old.get('base_model')!r}. The weights of your "
                f"base, {settings['base_model']!r}, are others, for which the adapter means nothing. Use the same base."
            )
        if with_past and old.get("judges") != settings["judges"]:
            raise ValueError(
                f"The earlier tasks were measured by the judges {old.get('judges')} and yours are "
                f"{settings['judges']}, so that one matrix cannot hold both. Set the same judges, or give only new "
                "tasks."
            )
        kept = {key: value for key, value in old.items() if key not in _NOT_COMPARED}
        lines = differences(kept, {key: value for key, value in settings.items() if key not in _NOT_COMPARED})
        notes = [f"Setting {line}." for line in lines]
        if with_past and settings["run"].get("evaluate_all_tasks"):
            notes.append("Results on later tasks were not published: forward transfer cannot be told.")
        if with_past:
            before = {task["name"]: task.get("rows") for task in old.get("tasks") or ()}
            for task in settings["tasks"]:
                if task["name"] in before and before[task["name"]] != task["rows"]:
                    notes.append(f"The task {task['name']!r} has other rows than when it was trained.")
        return notes

    def unpack(self, directory: RunDirectory, with_past: bool, general_text: str | None) -> None:
        """Puts what was published where the run looks for it: results on earlier tasks, and files of strategies."""
        source = self.folder / STRATEGIES
        for file in sorted(source.glob("*/*")) if source.is_dir() else ():
            target = directory.root / file.parent.name / file.name
            if not target.exists():
                with replacing(target) as partial:
                    shutil.copyfile(file, partial)
        if not with_past:
            return
        same_text = self.record.settings.get("general_text") == general_text
        stages = [(None, self.record.base_evaluation), *self.record.evaluation.items()]
        for after, results in stages:
            for task, values in results.items():
                path = directory.evaluation(after, task)
                if not path.exists() and (task != PERPLEXITY or same_text):
                    write_json(path, values)


def _bring(folder: Path, name: str, token: str | None) -> None:
    """Copies a revision, or a task of a local run, into `origin/` of the run."""
    local = Path(name)
    if (local / "state.json").is_file():
        tasks = ", ".join(str(path) for path in finished_tasks(local)) or "none yet"
        raise ValueError(f"You set continue_from={name!r}, the folder of a run. Name one of its tasks: {tasks}.")
    identity: dict[str, Any]
    if local.is_dir():
        run_dir = local.resolve().parent.parent
        bundles = [build_bundle(run_dir, local, push_replay, stays_here=True) for push_replay in PUSH_REPLAY]
        files = bundles[-1].files  # with the rows: they stay on this machine
        contents = list(dict.fromkeys(bundle.content for bundle in reversed(bundles)))
        identity = {"repo": None, "commit": None, "tag": None, "contents": contents}
        asked = [name, str(local.resolve())]
    else:
        repo_id, revision = split_revision(name)
        fetched = fetch_revision(repo_id, revision, token)
        RunRecord.read(fetched.folder)  # before anything is written: it may be no run's
        entry = fetched.lineage.entry if fetched.lineage else None
        files = {path: Content(fetched.folder / path) for path in (fetched.lineage.files if fetched.lineage else {})}
        if entry is None or content_digest(files) != entry.content:
            raise ValueError(f"The files of {name} are not those that its lineage names. Take another revision.")
        identity = {"repo": fetched.repo_id, "commit": fetched.commit, "tag": entry.tag, "contents": [entry.content]}
        asked = [name]

    def fill(partial: Path) -> None:
        for path, content in files.items():
            if is_allowed(path) and path not in (CARD, PICTURE):
                target = partial / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
        write_json(partial / _IDENTITY, {"asked": asked, **identity})

    write_folder(folder, fill)
