"""What a run of SELF-ALIGN tells of its rows when they leave the machine: principles, who wrote, settings, counts.

RUN/made_by.json    the principles in full and who wrote, which the manifests of the stages name by digests alone
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lifealign._files import read_json, write_json
from hf_lifealign.hub.contents import rows_digest
from hf_lifealign.self_align.constitution import Principle, load_constitution
from hf_lifealign.self_align.store import MANIFEST, StageStore, read_lines

if TYPE_CHECKING:
    from hf_lifealign.self_align.pipeline import SelfAlign
    from hf_lifealign.stream import Task

RECORD = "made_by.json"
_PROMPTS, _RESPONSES = "prompts", "responses"


@dataclass(frozen=True)
class Provenance:
    """Of what and how rows were made.

    Args:
        principles (`tuple[Principle]`): in the order of their numbers.
        constitution (`str`): SHA-256 of principles, examples, seeds, topics and templates.
        writer (`dict`): public facts about who wrote; empty where they were not kept.
        identity (`str`): by which kept calls tell who wrote. It may hold an address, and is not to be published.
        prompts (`dict`), responses (`dict`): manifests of the two stages.
    """

    principles: tuple[Principle, ...]
    constitution: str
    writer: Mapping[str, Any]
    identity: str
    prompts: Mapping[str, Any]
    responses: Mapping[str, Any]


def keep_record(run: "SelfAlign") -> Path:
    """Keeps what the manifests of a finished run name by digests alone.

    Args:
        run ([`SelfAlign`]): whose stages `prompts` and `responses` are finished.

    Returns:
        `Path`: the file.

    Raises:
        ValueError: if the run in its folder is one of other principles.
    """
    made_of = run.store.manifest(_RESPONSES)["made_of"]
    if made_of["constitution"] != run.constitution.digest():
        raise ValueError(f"The rows in {run.store.root} were made by other principles. Run it first.")
    content = {
        "constitution": made_of["constitution"],
        "generator": made_of["generator"],
        "principles": [asdict(principle) for principle in run.constitution.principles],
        "writer": _writer(run.generator),
    }
    file = run.store.root / RECORD
    write_json(file, content)
    return file


def _writer(generator: Any) -> dict[str, Any]:
    """What others may know of who wrote: no address, no key, and of a folder its last name alone."""
    from hf_lifealign.models import public_name
    from hf_lifealign.report.privacy import public_model_name
    from hf_lifealign.self_align.generators import ServerGenerator, TransformersGenerator, VLLMGenerator

    told: dict[str, Any]
    if isinstance(generator, TransformersGenerator):
        name = str(generator.model.config.name_or_path)
        told = {"backend": "transformers", "dtype": str(generator.model.dtype).removeprefix("torch.")}
    elif isinstance(generator, VLLMGenerator):
        name, told = generator.path, {"backend": "vllm", "dtype": generator.dtype, "revision": generator.commit}
    elif isinstance(generator, ServerGenerator):
        name, told = generator.model, {"backend": "server", "revision": generator.revision}
    else:
        return {"model": type(generator).__name__, "backend": "of its own"}
    told |= {"chat": generator.chat, "batch_size": generator.batch_size}
    known = {key: value for key, value in told.items() if value not in (None, "")}
    return {"model": public_model_name(public_name(name)) or "a model without a name", **known}


def read_provenance(root: Path) -> Provenance:
    """Reads a run, and checks that its rows are those that it tells of.

    Args:
        root (`Path`): folder of the run.

    Raises:
        ValueError: if stages are missing or damaged, rows were changed since, or the principles were not kept.
    """
    store = StageStore(root)
    manifests = {}
    for stage in (_PROMPTS, _RESPONSES):
        if not (store.folder(stage) / MANIFEST).is_file():
            raise ValueError(
                f"The stage {stage!r} of the run {root} is not there. Let `lifealign self-align` end first."
            )
        manifests[stage] = _sound(store, stage)
        if manifests[stage].get("rows_sha256") != rows_digest(store.rows(stage)):
            raise ValueError(_changed(root, f"The rows of the stage {stage!r}"))
    _refuse_other_pairs(store, manifests[_RESPONSES])
    made_of = manifests[_RESPONSES]["made_of"]
    principles, writer = _recorded(root, made_of)
    return Provenance(
        principles, made_of["constitution"], writer, str(made_of["generator"]), manifests[_PROMPTS],
        manifests[_RESPONSES],
    )  # fmt: skip


def _sound(store: StageStore, stage: str) -> dict[str, Any]:
    """A stage's manifest, if it holds what is told of it."""
    manifest: Any = store.manifest(stage)
    counts = ("asked", "kept", "keep_rate") if stage == _RESPONSES else ()
    told: dict[str, tuple[str, ...]] = {"made_of": ("constitution", "generator", "settings"), "told": counts}
    for key, inner in told.items():
        part = manifest.get(key) if isinstance(manifest, dict) else None
        lacking = [name for name in inner if name not in part] if isinstance(part, dict) else [key]
        if lacking or "dropped" not in manifest:
            where = store.folder(stage) / MANIFEST
            raise ValueError(f"The manifest {where} lacks {', '.join(lacking or ['dropped'])}. Make the stage anew.")
    found: dict[str, Any] = manifest
    return found


def run_of_task(task: "Task") -> Path | None:
    """The run that made a task's rows: both splits are its pairs. `None` for rows from elsewhere."""
    from hf_lifealign.stream.errors import RefusedError
    from hf_lifealign.stream.sources import parse_source

    found = set()
    for split in ("train", "test"):
        try:
            files = parse_source(getattr(task, split), split).files
        except RefusedError:
            return None
        if len(files) != 1 or files[0].parts[-3:] != (_RESPONSES, "preference", f"{split}.jsonl"):
            return None
        found.add(files[0].parents[2])
    root = found.pop()
    return root if not found and (root / _RESPONSES / MANIFEST).is_file() else None


def _changed(root: Path, what: str) -> str:
    return (
        f"{what} in {root} were changed since they were made, so that what the run tells is not of them. Put them "
        "back; or copy the files of pairs to another folder, and name them as train and test of a task."
    )


def _refuse_other_pairs(store: StageStore, manifest: Mapping[str, Any]) -> None:
    """The files that are published hold the pairs of the rows, in one form or the other."""
    folder = store.folder(_RESPONSES) / "preference"
    held = Counter(_texts(row) for split in ("train", "test") for row in read_lines(folder / f"{split}.jsonl"))
    made: Counter[tuple[str, ...]] = Counter()
    for row in store.rows(_RESPONSES):
        if row.get("rejected") is not None:
            texts = (row["prompt"], row["completion"], row["rejected"])
            # the request of a plain text stands in a frame, which is not known here
            made[texts if manifest["made_of"].get("messages") else texts[1:]] += 1
    if held != made:
        raise ValueError(_changed(store.root, "The pairs"))


def _texts(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Prompt and answers of messages; of plain texts the answers, without the space in front."""
    if isinstance(row["prompt"], str):
        return tuple(str(row[name]).removeprefix(" ") for name in ("chosen", "rejected"))
    return tuple(str(row[name][-1]["content"]) for name in ("prompt", "chosen", "rejected"))


def _recorded(root: Path, made_of: Mapping[str, Any]) -> tuple[tuple[Principle, ...], dict[str, Any]]:
    """Principles and writer of the record that belongs to the rows; else the shipped principles, if it was they."""
    file = root / RECORD
    record = read_json(file) if file.is_file() else {}
    if isinstance(record, dict) and record.get("constitution") == made_of["constitution"]:
        try:
            principles = tuple(Principle(**each) for each in record["principles"])
            writer = {"model": record["writer"]["model"], **record["writer"]}
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"The record {file} is damaged ({error}). Give the command `lifealign self-align RECIPE.yaml` of this "
                "run once more, which writes it anew."
            ) from error
        return principles, writer if record.get("generator") == made_of["generator"] else {}
    shipped = load_constitution()
    if shipped.digest() == made_of["constitution"]:
        return shipped.principles, {}
    raise ValueError(
        f"The principles by which the rows in {root} were made are not known: its {RECORD} is not there, or of another "
        "run, and they are not the shipped ones. Give the command `lifealign self-align RECIPE.yaml` of this run once "
        "more, which makes no finished stage again and keeps them; in Python, run it once more, too."
    )
