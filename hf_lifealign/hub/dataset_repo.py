"""Publishes the rows of a task as a dataset of the Hub, which `datasets` and a task of another stream can name."""

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lifealign._resources import resource_path
from hf_lifealign.hub.errors import NotPublishableError
from hf_lifealign.hub.self_align_card import MEANINGS, TAGS, made_by_principles
from hf_lifealign.hub.whole_commit import check_owner_and_name, commit_files, only_over
from hf_lifealign.report.privacy import find_private, without_folders, without_secrets
from hf_lifealign.report.table import markdown_table
from hf_lifealign.stream.errors import RefusedError
from hf_lifealign.stream.sources import parse_source
from hf_lifealign.stream.task import SPLITS, LoadedTask, Split, Task, fingerprint

if TYPE_CHECKING:
    from datasets import Dataset
    from huggingface_hub import HfApi

_MARKER = "hf_lifealign_task"
_FILES: dict[Split, str] = {split: f"data/{split}-00000-of-00001.parquet" for split in SPLITS}
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_IMAGES = ("images", "image")
_MEANINGS = {
    "prompt": "what is asked",
    "chosen": "the preferred answer",
    "rejected": "the other answer",
    "tools": "tools that the prompt's template lists",
    "chat_template_kwargs": "further arguments of the chat template",
    "images": "images of the prompt",
    "image": "image of the prompt",
}
# The Hub's classes of size, each up to a number of rows.
_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
)


def push_task_dataset(
    task: Task,
    repo_id: str,
    *,
    license: str | None = None,
    token: str | None = None,
    private: bool = False,
    api: "HfApi | None" = None,
) -> str:
    """Publishes the rows that a task loads as a dataset: one commit, and none where it holds the same rows already.

    `datasets.load_dataset(repo_id)` then reads them, and a task can name `repo_id` as its `train` and `test`. What is
    published are the rows as they are trained on: subset, renamed columns and explicit prompt included. The card shows
    no row and no local path; the rows themselves are not looked through. Of rows that SELF-ALIGN made it tells the
    principles, the settings, what was kept and why the rest was not.

    Args:
        task ([`Task`]): the task; it is loaded where it is not yet.
        repo_id (`str`): `owner/name` of the dataset; made if it is not there.
        license (`str`, *optional*): the Hub's identifier of the rows' licence, e.g. `"cc-by-4.0"`; the task's by
            default. The card says so where none is given.
        token (`str`, *optional*): access token; that of `hf auth login` or `HF_TOKEN` by default.
        private (`bool`, *optional*, defaults to `False`): make the dataset private.
        api (`HfApi`, *optional*): client to use.

    Returns:
        `str`: address of the dataset.

    Raises:
        ValueError: if `repo_id` or `license` cannot be one, or the rows of a run of SELF-ALIGN were changed since.
        StreamError: if the task cannot be loaded.
        NotPublishableError: if images are only named by their paths, or the card would hold a secret.
        HubError: if the repository holds something else, or the Hub refuses or does not answer.
    """
    if not isinstance(task, Task):
        raise ValueError(f"You set task with a {type(task).__name__}. Set a Task, e.g. one of a TaskStream.")
    check_owner_and_name(repo_id)
    license = task.license if license is None else license
    if license is not None and not (isinstance(license, str) and _LICENSE.fullmatch(license)):
        raise ValueError(
            f"You set license with {license!r}. The Hub takes identifiers such as 'apache-2.0', 'cc-by-4.0' or "
            "'other'. Set one of them, or leave it out."
        )
    card = dataset_card(task, repo_id, license)
    _refuse_private(card, task, _tokens(token, api))
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, bytes | Path] = {"README.md": card.encode()}
        for split in SPLITS:
            files[_FILES[split]] = _write_parquet(getattr(task.load(), split), Path(folder), split)
        done = commit_files(
            api,
            repo_id,
            files,
            "dataset",
            f"Publish the task {task.name}",
            token=token,
            private=private,
            check=only_over(_MARKER, task.name, "task"),
        )
    return done.url


def _refuse_private(card: str, task: Task, secrets: list[str]) -> None:
    found = find_private(card, secrets, folders=[os.getcwd()])
    if found:
        raise NotPublishableError(
            f"The card of the task {task.name!r} holds {found}, so nothing was sent. Take it out of the task's "
            "description, or of the principles by which its rows were made."
        )


def dataset_card(task: Task, repo_id: str, license: str | None = None) -> str:
    """The card of a task's dataset, with the front matter that the Hub and `datasets` read; it shows no row.

    Args:
        task ([`Task`]): the task; it is loaded where it is not yet.
        repo_id (`str`): `owner/name` of the dataset, for the examples.
        license (`str`, *optional*): identifier of the rows' licence.

    Raises:
        StreamError: if the task cannot be loaded.
        ValueError: if its rows are of a run of SELF-ALIGN, and were changed since.
    """
    import yaml
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    from hf_lifealign.self_align.provenance import read_provenance, run_of_task

    loaded = task.load()
    run = run_of_task(task)
    made = None if run is None else made_by_principles(read_provenance(run))
    environment = SandboxedEnvironment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    template = environment.from_string(resource_path("hub_cards", "dataset_card.md.jinja").read_text(encoding="utf-8"))
    formats = {facts.format for facts in loaded.facts.values()}
    return template.render(
        front_matter=_front_matter(task, loaded, license, () if made is None else TAGS),
        name=task.name,
        # A name such as 1 or on would be no text to YAML without quotes.
        name_line=yaml.safe_dump({"name": task.name}).strip(),
        repo_id=repo_id,
        description=_one_line(task.description),
        counts=_counts(loaded),
        notes=_notes(loaded),
        format=formats.pop() if len(formats) == 1 else "standard in one split and conversational in the other",
        columns=markdown_table(
            ("column", "type", "meaning"), _columns(loaded.train, _MEANINGS | (MEANINGS if made else {})), left=3
        ),
        origins=[
            _origin(task, loaded, split, "what was made by principles" if made else _source_name(task, split))
            for split in SPLITS
        ],
        made=made,
        fingerprint=fingerprint(task),
        license=license or "",
    )


def _front_matter(task: Task, loaded: LoadedTask, license: str | None, tags: Sequence[str] = ()) -> str:
    """The metadata block, as YAML without its fences; it names the files, so that others beside them are not read."""
    import yaml

    rows = len(loaded.train) + len(loaded.test)
    with_images = any(name in loaded.train.column_names for name in _IMAGES)
    fields: dict[str, Any] = {"pretty_name": f"{task.name}: preference pairs"}
    fields |= {"license": license} if license else {}
    fields |= {
        "task_categories": ["image-text-to-text" if with_images else "text-generation"],
        "tags": ["preference", "dpo", "trl", "hf-lifealign", *tags],
        "size_categories": [next((label for most, label in _SIZES if rows < most), "n>1T")],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": _FILES[split]} for split in SPLITS],
            }
        ],
        _MARKER: task.name,
    }
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True).rstrip()


def _counts(loaded: LoadedTask) -> str:
    rows = [
        (
            split,
            str(facts.rows),
            f"{facts.mean_prompt_chars:.0f}",
            f"{facts.mean_chosen_chars:.0f}",
            f"{facts.mean_rejected_chars:.0f}",
        )
        for split, facts in loaded.facts.items()
    ]
    return markdown_table(("split", "rows", "mean characters of prompt", "of chosen", "of rejected"), rows, left=1)


def _notes(loaded: LoadedTask) -> list[str]:
    """What somebody who trains on the rows should know, in counts."""
    notes = []
    for split, facts in loaded.facts.items():
        if facts.equal_pairs:
            notes.append(
                f"In {len(facts.equal_pairs)} {split} rows chosen and rejected are the same; they teach nothing."
            )
        if facts.repeated_prompts:
            notes.append(f"In {len(facts.repeated_prompts)} {split} rows both answers begin with the prompt again.")
    if loaded.dropped_overlap:
        notes.append(f"{loaded.dropped_overlap} train rows were left out, since test has their prompts.")
    return notes


def _columns(dataset: "Dataset", meanings: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Name, type and meaning of each column; of nested types no field is named, as those come from the rows."""
    from datasets import Value

    def kind(name: str) -> str:
        feature = dataset.features[name]
        if name in _IMAGES:
            return "list of images" if name == "images" else "image"
        if isinstance(feature, Value):
            return "text" if "string" in feature.dtype else feature.dtype
        return "list of messages" if name in ("prompt", "chosen", "rejected") else "nested"

    return [(f"`{name}`", kind(name), meanings[name]) for name in dataset.column_names]


def _origin(task: Task, loaded: LoadedTask, split: Split, source: str) -> str:
    """Where a split's rows come from, in words that name nothing of this machine."""
    kept, had = len(getattr(loaded, split)), loaded.source_rows[split]
    if kept == had:
        share = f"all {kept} rows"
    elif (task.max_train if split == "train" else task.max_test) is not None:
        share = f"a random subset (seed {task.seed}) of {kept} of the {had} rows"
    else:
        share = f"{kept} of the {had} rows"
    told_apart = (
        "; the prompt was told apart from what chosen and rejected share" if loaded.implicit_prompt[split] else ""
    )
    return f"{split}: {share} of {source}{told_apart}."


def _source_name(task: Task, split: Split) -> str:
    try:
        source = parse_source(getattr(task, split), split)
    except RefusedError:  # a file that went away after it was loaded
        return "local files"
    if source.dataset is not None:
        return "a dataset in memory"
    # `datasets` takes a folder of the name before it asks the Hub.
    if source.files or os.path.exists(source.hub["path"]):
        return "local files"
    path = source.hub["path"]
    named = f"[{path}](https://huggingface.co/datasets/{path})"
    details = [f"split `{source.split}`"]
    details += [
        f"{word} `{source.hub[key]}`"
        for key, word in (("name", "configuration"), ("revision", "revision"))
        if key in source.hub
    ]
    return f"{named}, {', '.join(details)}"


def _write_parquet(dataset: "Dataset", folder: Path, split: Split) -> Path:
    """Writes a split as one Parquet file that needs no other file."""
    images = [name for name in _IMAGES if name in dataset.column_names]
    if images:
        dataset = _with_image_bytes(dataset, images, folder / f"{split}.arrow")
    path = folder / f"{split}.parquet"
    try:
        dataset.to_parquet(path)
    except NotImplementedError as error:
        raise NotPublishableError(
            f"The {split} rows cannot be written as Parquet ({' '.join(str(error).split())}), so nothing was sent. "
            "Take the column out, or give it at least one field."
        ) from error
    return path


def _with_image_bytes(dataset: "Dataset", images: list[str], cache: Path) -> "Dataset":
    """The rows with their images inside, each with its file's name alone in the place of a path."""
    from datasets import Image
    from datasets.table import embed_table_storage

    for name in images:
        feature = dataset.features[name]
        if not isinstance(getattr(feature, "feature", feature), Image):
            raise NotPublishableError(
                f"The column {name} holds {feature} and no images of `datasets`: what would be published are paths of "
                "this machine, or nothing that a trainer can read. Cast it with dataset.cast_column."
            )
    embedded = dataset.with_format("arrow").map(
        embed_table_storage, batched=True, batch_size=100, cache_file_name=str(cache), load_from_cache_file=False
    )
    return embedded.with_format(None)


def _tokens(token: str | None, api: "HfApi | None") -> list[str]:
    """Secrets that a text may not hold."""
    from huggingface_hub import get_token

    return [text for text in (token, getattr(api, "token", None), get_token()) if isinstance(text, str)]


def _one_line(description: str | None) -> str:
    """A task's description as one paragraph, without local folders and secrets."""
    return str(without_secrets(without_folders(" ".join((description or "").split()))))
