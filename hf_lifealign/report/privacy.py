"""Takes folders of a machine and secrets out of what is published, and finds what slipped through."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_WHOLE = re.compile(r"(?:file://|~?/|\.{1,2}[\\/]|[A-Za-z]:[\\/]|\\\\)")
# Inside a longer text. Backslashes count only after a drive letter, since a regular expression is full of them.
_POSIX = re.compile(r"(?:\bfile://|(?<![\w:/.\\*)\]]))(?:~|\.{1,2})?/(?:[^\s/'\",;]+/)*([^\s/'\",;]+)/?")
_WINDOWS = re.compile(r"(?<!\w)[A-Za-z]:[\\/](?:[^\s\\/'\",;]+[\\/])*([^\s\\/'\",;]+)[\\/]?")

# Names of settings that hold secrets; those of a tokenizer, such as pad_token, do not.
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:hub|auth|access|api|hf|bearer|session)_?token$|^token$|secret|passw(?:or)?d|api_?key|credential", re.I
)
_SECRET = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bsk-[A-Za-z0-9_-]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bAKIA[0-9A-Z]{16}\b"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_HIDDEN = "(hidden)"


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


def without_secrets(value: Any) -> Any:
    """A tree of settings with "(hidden)" in the place of tokens, keys and passwords."""
    if isinstance(value, dict):
        return {
            key: _HIDDEN if _SECRET_NAME.search(str(key)) and item else without_secrets(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return _SECRET.sub(_HIDDEN, value) if isinstance(value, str) else value


def find_private(text: str, secrets: Iterable[str] = (), folders: Iterable[str | Path] = ()) -> str | None:
    """What must not be published in a text, in words, or `None` if there is nothing of the kind.

    Args:
        text (`str`): what is about to be published.
        secrets (`Iterable[str]`): secrets in use, a token, say.
        folders (`Iterable[str | Path]`): folders of this machine, beside the user's own.
    """
    if any(secret and secret in text for secret in secrets):
        return "the access token in use"
    if _SECRET.search(text):
        return "something that looks like an access token or a private key"
    for folder in {str(Path.home()), *map(str, folders)}:
        if len(folder) > 1 and re.search(rf"(?<![\w.-]){re.escape(folder)}(?![\w-])", text):
            return f"the local path {folder}"
    return None


def public_model_name(name_or_path: str) -> str:
    """A model's Hub id as it is; of a local folder its last component."""
    local = _WHOLE.match(name_or_path) or name_or_path.count("/") > 1 or "\\" in name_or_path
    return _last(name_or_path) if local or os.path.isdir(name_or_path) else name_or_path


def _last(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]
