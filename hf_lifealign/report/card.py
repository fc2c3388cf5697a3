"""The model card of an adapter, rendered from the templates in hub_cards/."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_lifealign._files import read_json, write_text
from hf_lifealign._resources import resource_path
from hf_lifealign.report.document import settings_table
from hf_lifealign.report.lineage import lineage_table
from hf_lifealign.report.privacy import public_model_name, without_folders
from hf_lifealign.report.table import markdown_table, summary_rows, view_table
from hf_lifealign.report.view import matrix_names, view_matrix

_REQUIRED = ("base_model",)
_OPTIONAL = (
    "tasks", "matrix", "settings", "repo_id", "revision", "versions", "license", "language", "datasets", "tags",
)  # fmt: skip
LORA = "LORA"
# What the Hub takes for the id of a model; anything else in the front matter would be refused on upload.
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w.-]+")


def write_adapter_card(folder: str | Path, context: Mapping[str, Any]) -> Path:
    """Writes the `README.md` of an adapter's folder, ready for the Hub; nothing in it names a folder of this machine.

    Args:
        folder (`str` or `Path`): a saved adapter. With `slmc/memory.json` in it the card tells its lineage.
        context (`dict`): what the card tells:

            - `base_model` (`str`): Hub id, or a local path of which only the last component is published.
            - `tasks` (`list[str]`, *optional*): tasks trained so far, in order.
            - `matrix` (`dict`, *optional*): content of `matrix.json`; stages after the last of `tasks` are left out.
            - `settings`, `versions` (`dict`, *optional*): of the run, as in its `state.json`.
            - `repo_id`, `revision` (`str`, *optional*): where the adapter is published, for the loading examples.
            - `license` (`str`), `language`, `datasets`, `tags` (`list[str]`, *optional*): for the front matter.

    Returns:
        `Path`: the card.

    Raises:
        ValueError: if `base_model` is missing, a key is unknown, or the matrix does not fit.
    """
    unknown = sorted(set(context) - {*_REQUIRED, *_OPTIONAL})
    missing = [key for key in _REQUIRED if key not in context]
    if unknown or missing:
        raise ValueError(
            f"The context of an adapter card {'lacks' if missing else 'has unknown keys'}: "
            f"{', '.join(missing or unknown)}. It takes {', '.join(_REQUIRED)} and, if known, {', '.join(_OPTIONAL)}."
        )
    folder = Path(folder)
    card = folder / "README.md"
    write_text(
        card, render_card("adapter_card.md.jinja", adapter_variables(_lineage(folder), context, _peft_type(folder)))
    )
    return card


def render_card(template: str, variables: Mapping[str, Any]) -> str:
    """A template of hub_cards/ with its variables.

    Raises:
        jinja2.UndefinedError: if the template names a variable that is not there.
    """
    from jinja2 import FileSystemLoader, StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(
        loader=FileSystemLoader(resource_path("hub_cards")), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    return environment.get_template(template).render(variables)


def adapter_variables(
    entries: list[dict[str, Any]], context: Mapping[str, Any], peft_type: str = LORA
) -> dict[str, Any]:
    """Everything the adapter card's template names; what is unknown is an empty string, since it refuses undefined
    names.

    Args:
        entries (`list[dict]`): entries of the adapter's memory.
        context (`dict`): see [`write_adapter_card`], and `model_index` for the front matter.
        peft_type (`str`): of the adapter as it is saved.
    """
    given = {key: without_folders(value) for key, value in context.items() if key not in ("matrix", "base_model")}
    base = public_model_name(str(context["base_model"] or ""))
    settings = given.get("settings") or {}
    tasks = [str(task) for task in given.get("tasks") or ()]
    trainer = str(settings.get("trainer") or "")
    return {
        "front_matter": _front_matter(base, trainer, bool(entries), given, peft_type),
        "kind": "LoRA" if peft_type == LORA else peft_type,
        "base_model": base,
        "base_literal": literal(base or "path-or-id-of-the-base-model"),
        "adapter_literal": literal(given.get("repo_id") or "path-or-id-of-this-adapter"),
        "revision_literal": literal(given["revision"]) if given.get("revision") else "",
        "tasks": [task.replace("|", " ") for task in tasks],
        "trainer": trainer,
        # a baseline owes nothing to LifeAlign
        "cites_lifealign": trainer != "DPOTrainer" or bool(entries),
        "strategies": [strategy.get("name") for strategy in settings.get("strategies") or ()],
        "lineage": lineage_table(entries) if entries else "",
        "measures": _measures(context.get("matrix"), len(tasks) or None),
        "settings": settings_table(settings) if settings else "",
        "versions": ", ".join(f"{name} {number}" for name, number in (given.get("versions") or {}).items()),
    }


def _front_matter(base: str, trainer: str, has_memory: bool, given: Mapping[str, Any], peft_type: str) -> str:
    """The metadata block that the Hub reads, as YAML without its fences."""
    import yaml

    tags = ["trl", peft_type.lower(), "lifelong-alignment", "hf-lifealign"]
    tags += [trainer.removesuffix("Trainer").lower()] if trainer else []
    tags += ["slmc"] if has_memory else []
    tags += [tag for tag in given.get("tags") or () if tag not in tags]
    fields: dict[str, Any] = {}
    if hub_id(base):
        fields |= {"base_model": base, "base_model_relation": "adapter"}
    fields |= {"library_name": "peft", "pipeline_tag": "text-generation", "tags": tags}
    fields |= {key: given[key] for key in ("license", "language", "datasets") if given.get(key)}
    fields |= {"model-index": given["model_index"]} if given.get("model_index") else {}
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True).rstrip()


def hub_id(name: str) -> bool:
    """Whether the Hub takes `name` for the id of a model."""
    return _HUB_ID.fullmatch(name) is not None


def literal(text: Any) -> str:
    """A Python string literal for the code examples."""
    return json.dumps(str(text), ensure_ascii=False)


def _peft_type(folder: Path) -> str:
    """The adapter's type as it is saved: an SLMC adapter is saved as LoRA."""
    file = folder / "adapter_config.json"
    return str(read_json(file).get("peft_type", LORA)) if file.is_file() else LORA


def _lineage(folder: Path) -> list[dict[str, Any]]:
    """Entries of the memory beside the adapter; whether the memory is whole is for its loader to check."""
    file = folder / "slmc" / "memory.json"
    return list(read_json(file).get("entries") or ()) if file.is_file() else []


def _measures(matrix: Mapping[str, Any] | None, stages: int | None) -> list[dict[str, str]]:
    """Title, table and numbers of each measure, up to a stage."""
    shown = []
    for name in matrix_names(matrix or {}):
        view = view_matrix(matrix or {}, name)
        view = view.up_to(min(stages or view.trained, view.trained))
        if view.trained:
            rows = [row for row in summary_rows(view) if row[1] != "-"]
            numbers = markdown_table(("number", "value", "meaning"), rows, left=3) if rows else ""
            shown.append({"title": view.title, "table": view_table(view), "numbers": numbers})
    return shown
