"""What the card of a dataset tells of rows that SELF-ALIGN made: principles, settings, counts; no row, and no path."""

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_lifealign.report.privacy import without_folders, without_secrets
from hf_lifealign.report.table import markdown_table
from hf_lifealign.self_align.settings import TASKS_DRAWN, TOPICS_DRAWN

if TYPE_CHECKING:
    from hf_lifealign.self_align.provenance import Provenance

TAGS = ("self-align", "synthetic")
# What the columns mean in place of what they mean elsewhere.
MEANINGS = {"chosen": "the answer by the principles", "rejected": "the answer without them"}


def made_by_principles(made: "Provenance") -> dict[str, Any]:
    """Markdown of each part, for the card's template.

    Args:
        made ([`Provenance`]): of the rows.

    Returns:
        `dict`: `preset`, `principles` (a list of numbered lines), and tables under `settings`, `counts`, `reasons`,
            `usage` and `digests`; those that have nothing to show are empty.
    """
    compact = made.responses["made_of"].get("preset") == "compact"
    return {
        "compact": compact,
        "principles": [
            f"{number}. **{_line(each.name)}**: {_line(each.text)}"
            + (f" *Shown as:* {_line(each.short)}" if compact and each.short != each.text else "")
            for number, each in enumerate(made.principles, start=1)
        ],
        "settings": _settings(made),
        "counts": _counts(made),
        "reasons": _reasons(made),
        "usage": _usage(made),
        "digests": _digests(made),
    }


def _settings(made: "Provenance") -> str:
    rows = [("who wrote", _writer(made.writer)), ("preset", made.responses["made_of"].get("preset"))]
    (heat, share), (topic_heat, topic_share) = TASKS_DRAWN, TOPICS_DRAWN
    drawn = f"temperature {heat}, top-p {share}; of topics and questions {topic_heat} and {topic_share}"
    rows.append(("tasks: drawn with", drawn))
    rows += [
        (f"{stage}: {key}", value)
        for stage, manifest in (("tasks", made.prompts), ("answers", made.responses))
        for key, value in [*manifest["made_of"]["settings"].items(), ("seed", manifest["made_of"].get("seed"))]
    ]
    versions = ", ".join(f"{name} {number}" for name, number in made.responses.get("versions", {}).items())
    rows += [("versions", versions)] if versions else []
    return markdown_table(("setting", "value"), [(_line(name), _value(value)) for name, value in rows], left=2)


def _writer(writer: Mapping[str, Any]) -> str:
    if not writer:
        return "not kept; its digest is told below"
    details = [f"{key} {_value(value)}" for key, value in writer.items() if key != "model"]
    return f"{writer['model']} ({', '.join(details)})"


def _counts(made: "Provenance") -> str:
    told, own = made.responses["told"], made.prompts["told"]
    rows: list[tuple[str, Any]] = []
    for name, what in (("self_instruct", "self-instruct"), ("red_team", "topics that tempt to a wrong answer")):
        if part := own.get(name):
            rows.append((f"tasks by {what}, of {part['generations']} generations", part["accepted"]))
    rows += [
        ("texts dropped as tasks", made.prompts["dropped"]),
        ("tasks that were asked", told["asked"]),
        ("answers by principles that were kept", told["kept"]),
        ("keep rate", f"{100 * told['keep_rate']:.1f} %" if told["keep_rate"] is not None else "-"),
        ("pairs with an answer without principles", told.get("pairs", 0)),
    ]
    return markdown_table(("count", "value"), [(name, str(value)) for name, value in rows])


def _reasons(made: "Provenance") -> str:
    parts = (
        ("tasks", made.prompts.get("reasons", {})),
        ("answers with principles", made.responses["told"].get("reasons", {})),
        ("answers without principles", made.responses["told"].get("reasons_without", {})),
    )
    rows = [(what, f"`{_line(reason)}`", str(count)) for what, counts in parts for reason, count in counts.items()]
    return markdown_table(("of", "dropped because", "texts"), rows, left=2) if rows else ""


def _usage(made: "Provenance") -> str:
    told = made.responses["told"]
    used, kept = told.get("principles", {}), told["kept"]
    rows = [
        (f"{number} {_line(each.name)}", str(used.get(each.name, 0)), _share(used.get(each.name, 0), kept))
        for number, each in enumerate(made.principles, start=1)
    ]
    none = told.get("without_a_principle", 0)
    rows.append(("none", str(none), _share(none, kept)))
    return markdown_table(("principle named in the note", "answers", "share"), rows)


def _share(count: int, kept: int) -> str:
    return f"{100 * count / kept:.1f} %" if kept else "-"


def _digests(made: "Provenance") -> str:
    rows = [("principles, examples, seeds, topics and templates", f"`{made.constitution}`")]
    identity = made.identity.split("-")
    if identity[0] == "transformers" and len(identity) == 3:
        rows.append(("weights and vocabulary of who wrote", f"`{identity[1]}`"))
    else:
        # what it is made of may be an address, or names of this machine
        digest = hashlib.sha256(made.identity.encode()).hexdigest()
        rows.append(("who wrote, by the name that calls are kept under", f"`{digest}`"))
    rows += [
        (f"rows of the stage {name}", f"`{manifest['rows_sha256']}`")
        for name, manifest in (("prompts", made.prompts), ("responses", made.responses))
    ]
    return markdown_table(("SHA-256 of", "digest"), rows, left=2)


def _value(value: Any) -> str:
    """A setting, without folders and secrets."""
    open_value = without_secrets(without_folders(value))
    return open_value if isinstance(open_value, str) else json.dumps(open_value, ensure_ascii=False)


def _line(text: str) -> str:
    """A text on one line, without folders and secrets."""
    return str(without_secrets(without_folders(" ".join(str(text).split()))))
