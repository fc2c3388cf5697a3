"""The model card of a meta-aligned policy, rendered from hub_cards/."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_lifealign._files import write_text
from hf_lifealign.report.card import hub_id, literal, render_card
from hf_lifealign.report.document import settings_table
from hf_lifealign.report.privacy import public_model_name, without_folders, without_secrets

TEMPLATE = "meta_aligner_card.md.jinja"


def write_policy_card(folder: str | Path, context: Mapping[str, Any]) -> Path:
    """Writes the `README.md` of a meta-aligned policy's folder; nothing in it names a folder of this machine.

    Args:
        folder (`str` or `Path`): where the policy is saved.
        context (`dict`): what the card tells:

            - `policy` (`dict`): content of `meta_aligner.json`.
            - `base_model` (`str`): Hub id, or a local path of which only the last component is published.
            - `training` (`dict`): settings of the trainer.
            - `repo_id` (`str`, *optional*): where it is published.
            - `datasets`, `tags` (`list[str]`, *optional*): for the front matter.
    """
    card = Path(folder) / "README.md"
    write_text(card, render_card(TEMPLATE, _variables(context)))
    return card


def _variables(context: Mapping[str, Any]) -> dict[str, Any]:
    given = without_secrets(without_folders(dict(context)))
    policy = given["policy"]
    base = public_model_name(str(context["base_model"] or ""))
    names = [str(name) for name in policy["objectives"]]
    statistics = policy["reward_statistics"] or {"mean": [None] * len(names), "std": [None] * len(names)}
    scale = zip(names, statistics["mean"], statistics["std"], strict=True)
    return {
        "front_matter": _front_matter(base, policy, given),
        "base_model": base,
        "base_literal": literal(base or "path-or-id-of-the-base-model"),
        "policy_literal": literal(given.get("repo_id") or "path-or-id-of-this-policy"),
        "objectives": names,
        "preference": _equal_weights(len(names)),
        "conditioning": policy["conditioning"],
        "has_adapter": policy["adapter"],
        "rewards": [(name, _number(mean), _number(std)) for name, mean, std in scale],
        "settings": settings_table(given["training"]),
    }


def _equal_weights(count: int) -> list[float]:
    """Weights that are equal but for rounding, and sum to 1."""
    share = round(1 / count, 3)
    return [share] * (count - 1) + [round(1 - share * (count - 1), 3)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _front_matter(base: str, policy: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The metadata block that the Hub reads, as YAML without its fences."""
    import yaml

    tags = list(dict.fromkeys(["trl", "meta-aligner", "hf-lifealign", "multi-objective", *(given.get("tags") or ())]))
    fields: dict[str, Any] = {}
    if hub_id(base):
        fields |= {"base_model": base, "base_model_relation": "adapter"}
    library = "peft" if policy["adapter"] else "hf-lifealign"
    fields |= {"library_name": library, "pipeline_tag": "text-generation", "tags": tags}
    fields |= {"datasets": given["datasets"]} if given.get("datasets") else {}
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True).rstrip()
