"""What the Hub checks in a README's front matter."""

import re
from typing import Any

import yaml

FRONT_MATTER = re.compile(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|$))")
HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?")
RELATIONS = ("adapter", "merge", "quantized", "finetune")


def front_matter(content: str) -> Any:
    """The README's metadata as YAML reads it, None without any."""
    found = FRONT_MATTER.search(content)
    return yaml.safe_load(found.group(2)) if found else None


def card_data(readme: bytes | None) -> dict[str, Any]:
    """The metadata as a repo's info shows it, empty where it can't be read."""
    try:
        data = front_matter((readme or b"").decode())
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    return data if isinstance(data, dict) else {}


def validate(content: str) -> tuple[list[str], list[str]]:
    """Errors and warnings."""
    try:
        data = front_matter(content)
    except yaml.YAMLError as error:
        return [f"YAML metadata could not be parsed: {error}"], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(data, dict):
        return ["YAML metadata must be a mapping"], []
    errors = []
    if not isinstance(data.get("model-index", []), list):
        errors.append('"model-index" must be an array')
    if not isinstance(data.get("license", ""), str):
        errors.append('"license" must be a string')
    if data.get("base_model_relation", "adapter") not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of [{", ".join(RELATIONS)}]')
    base = data.get("base_model", [])
    for name in base if isinstance(base, list) else [base]:
        if not isinstance(name, str) or not HUB_ID.fullmatch(name):
            errors.append(f'"base_model" with value "{name}" is not valid. Use a model id from https://hf.co/models.')
    return errors, []
