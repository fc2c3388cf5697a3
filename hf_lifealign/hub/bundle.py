"""What of a run's folder is published after a task: exactly these files, checked before any of them leaves."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hf_lifealign._files import read_json
from hf_lifealign.hub.contents import (
    CARD,
    CONFIG,
    MATRIX,
    PICTURE,
    RECORD,
    STRATEGIES,
    WEIGHTS,
    Content,
    content_digest,
    is_allowed,
    rows_digest,
)
from hf_lifealign.hub.errors import NotPublishableError
from hf_lifealign.hub.record import RunRecord
from hf_lifealign.report.privacy import find_private

PushReplay = Literal["none", "ids", "rows"]
PUSH_REPLAY: tuple[PushReplay, ...] = ("none", "ids", "rows")
_REQUIRED = (CONFIG, WEIGHTS, RECORD, MATRIX, PICTURE)


@dataclass(frozen=True)
class Bundle:
    """A revision before it has a place in a repository: everything but its card and lineage, which depend on that.

    Args:
        folder (`Path`): `adapters/NN-<task>` of the run.
        record (`RunRecord`): what is known of the run after the task.
        files (`dict[str, Content]`): by path in the repository.
        content (`str`): its digest, see [`content_digest`].
    """

    folder: Path
    record: RunRecord
    files: dict[str, Content]
    content: str

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of the adapter, of its memory, and of all files."""
        memory = sum(content.size for path, content in self.files.items() if path.startswith("slmc/memory"))
        total = sum(content.size for content in self.files.values())
        return {"adapter": self.files[WEIGHTS].size, "memory": memory, "total": total}

    @property
    def metrics(self) -> dict[str, Any]:
        """The numbers of the run's first measure after the task."""
        matrix = json.loads(self.files[MATRIX].read())
        metric = matrix["metric"]
        summary = matrix["summary"].get(metric) or {}
        rows = matrix["matrices"].get(metric) or [[None]]
        own = rows[-1][len(rows) - 1] if len(rows[-1]) >= len(rows) else None
        names = ("bwt", "last_performance", "average_performance")
        return {"metric": metric, "value": own, **{name: summary.get(name) for name in names}}


def finished_tasks(run_dir: Path) -> list[Path]:
    """Folders of the tasks that a run has finished, in their order.

    Raises:
        FileNotFoundError: if the folder holds no run.
    """
    state_file = run_dir / "state.json"
    if not state_file.is_file():
        raise FileNotFoundError(f"{run_dir} is not the folder of a run: it has no state.json. Give its output_dir.")
    tasks = read_json(state_file)["tasks"]
    folders = [run_dir / "adapters" / task["label"] for task in tasks if task["status"] == "done"]
    # what a continued run did not train itself lies where it went on from
    return [folder for folder in folders if folder.is_dir()]


def build_bundle(
    run_dir: Path,
    folder: Path,
    push_replay: PushReplay = "none",
    secrets: Iterable[str] = (),
    stays_here: bool = False,
) -> Bundle:
    """Gathers and checks what is published of a task.

    Args:
        run_dir (`Path`): folder of the run.
        folder (`Path`): `adapters/NN-<task>` in it.
        push_replay (`str`): what is published of the rows kept for replay: `"none"`, their `"ids"`, or `"rows"`.
        secrets (`Iterable[str]`): secrets in use, which must not be found in any file.
        stays_here (`bool`): whether it is for another run on this machine, so that nothing is private.

    Raises:
        NotPublishableError: if a file is missing or damaged, or holds something private.
    """
    missing = [name for name in _REQUIRED if not (folder / name).is_file()]
    if missing:
        raise NotPublishableError(
            f"{folder} lacks {', '.join(missing)}. It was changed since the run wrote it, or written by an older "
            "hf_lifealign; restore it or run the task again."
        )
    record = RunRecord.read(folder)
    files = {path: Content(folder / path) for path in _published_paths(folder)}
    files[CONFIG] = Content(_public_config(folder / CONFIG, record.settings.get("base_model")))
    frozen = strategy_folder(run_dir, folder.name)
    for path in sorted(frozen.glob("*/*")):
        content = _strategy_content(path, push_replay)
        if content is not None:
            files[f"{STRATEGIES}/{path.relative_to(frozen).as_posix()}"] = content
    check_tensors(folder)
    if not stays_here:
        check_private(files, secrets, (run_dir.resolve(), Path.cwd()))
    return Bundle(folder, record, files, content_digest(files))


def _published_paths(folder: Path) -> list[str]:
    """Files of an adapter's folder that belong to a revision; `ref/`, checkpoints and optimizers are none of them."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if is_allowed(path) and path != CARD and not path.startswith(STRATEGIES))


def strategy_folder(run_dir: Path, label: str) -> Path:
    """Where the files of strategies lie as they were at the end of a task; later tasks may write theirs anew."""
    return run_dir / "strategies" / label


def _public_config(path: Path, base: Any) -> bytes:
    """The adapter's configuration, with the public name of its base instead of a folder of this machine."""
    config = read_json(path)
    config["base_model_name_or_path"] = str(base) if base and config.get("base_model_name_or_path") else None
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def _strategy_content(path: Path, push_replay: PushReplay) -> Content | None:
    """A strategy's file as it is published; training rows only as far as that is asked for."""
    if path.suffix != ".json":
        return Content(path)
    content = read_json(path)
    if not isinstance(content, dict) or "rows" not in content:
        return Content(path)
    if push_replay == "none":
        return None
    if push_replay == "ids":
        content = {key: value for key, value in content.items() if key != "rows"}
        content["rows_sha256"] = rows_digest(read_json(path)["rows"])
    return Content((json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def check_tensors(folder: Path) -> None:
    """Checks that the weights are there, finite, and those that the configuration speaks of.

    Raises:
        NotPublishableError: naming the tensor.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS
    config = read_json(folder / CONFIG)
    try:
        with safe_open(path, framework="np") as tensors:
            names = list(tensors.keys())
            for name in names:
                _check_tensor(tensors, name, path)
    except SafetensorError as error:
        raise NotPublishableError(
            f"{path} is not a readable safetensors file ({error}). It is not published."
        ) from error
    if not names:
        raise NotPublishableError(f"{path} holds no tensor: parameters were sharded when it was saved. Not published.")
    if config.get("peft_type") != "LORA":
        return
    sides = {side: {n.split(f".lora_{side}.")[0] for n in names if f".lora_{side}." in n} for side in ("A", "B")}
    if not sides["A"] or sides["A"] != sides["B"]:
        odd = sorted(sides["A"] ^ sides["B"])
        raise NotPublishableError(
            f"{path} is not a whole LoRA adapter: {odd[0] + ' lacks a factor' if odd else 'it has no factors'}. It is "
            "not published."
        )


def _check_tensor(tensors: Any, name: str, path: Path) -> None:
    import numpy as np

    shape = tensors.get_slice(name).get_shape()
    if 0 in shape:
        raise NotPublishableError(
            f"The tensor {name} in {path} is empty: parameters were sharded. It is not published."
        )
    try:
        finite = bool(np.isfinite(tensors.get_tensor(name)).all())
    except (TypeError, KeyError):
        # NumPy has no bfloat16; torch costs seconds, and only such adapters pay them
        from safetensors import safe_open

        with safe_open(str(path), framework="pt") as other:
            finite = bool(other.get_tensor(name).isfinite().all())
    if not finite:
        raise NotPublishableError(f"The tensor {name} in {path} is not finite: training diverged. It is not published.")


def check_private(files: Mapping[str, Content], secrets: Iterable[str], folders: Iterable[Path]) -> None:
    """Looks for secrets and folders of this machine in everything that is text.

    Raises:
        NotPublishableError: naming the file and what was found.
    """
    secrets = [secret for secret in (*secrets, os.environ.get("HF_TOKEN", "")) if secret]
    folders = list(folders)
    for path, content in files.items():
        if path.endswith((".safetensors", ".png")):
            continue
        text = content.read().decode("utf-8", "replace")
        if path.startswith(STRATEGIES):
            # rows are the user's to publish, whatever they speak of; the token is not meant even then
            found = "the access token in use" if any(secret in text for secret in secrets) else None
        else:
            found = find_private(text, secrets, folders)
        if found:
            raise NotPublishableError(
                f"{path} would publish {found}. Nothing was sent. Take it out of the run's settings and run again, or "
                "report it if you did not put it there."
            )
