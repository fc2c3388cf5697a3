"""Takes the folders of a machine out of what is published: only the last component of a local path remains."""

import os
import re
from typing import Any

_WHOLE = re.compile(r"(?:file://|~?/|\.{1,2}[\\/]|[A-Za-z]:[\\/]|\\\\)")
# Inside a longer text. Backslashes count only after a drive letter, since a regular expression is full of them.
_POSIX = re.compile(r"(?:\bfile://|(?<![\w:/.\\*)\]]))(?:~|\.{1,2})?/(?:[^\s/'\",;]+/)*([^\s/'\",;]+)/?")
_WINDOWS = re.compile(r"(?<!\w)[A-Za-z]:[\\/](?:[^\s\\/'\",;]+[\\/])*([^\s\\/'\",;]+)[\\/]?")


def without_folders(value: Any) -> Any:
    """A setting, or a tree of settings, with every local path cut to its last component; Hub ids and URLs stay."""
    if isinstance(value, dict):
        return {without_folders(key): without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    if not isinstance(value, str):
        return value
    if _WHOLE.match(value) and "\n" not in value and ", " not in value:
        return _last(value)
    return _WINDOWS.sub(r"\1", _POSIX.sub(r"\1", value))


def public_model_name(name_or_path: str) -> str:
    """A model's Hub id as it is; of a local folder its last component."""
    local = _WHOLE.match(name_or_path) or name_or_path.count("/") > 1 or "\\" in name_or_path
    return _last(name_or_path) if local or os.path.isdir(name_or_path) else name_or_path


def _last(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]
