"""Which reward a recipe or a command means by a text."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_lifealign.rewards.head import MiniLMBradleyTerryReward
from hf_lifealign.rewards.storage import RECORD

REWARDS = "hf_lifealign.rewards"
RewardFunction = Callable[..., list[float]]

_NAME = re.compile(r"[A-Za-z0-9_][\w-]*", re.ASCII)
_CLASSIFIER = "config.json"


def resolve_reward(spec: str, token: str | None = None) -> RewardFunction | str:
    """The reward that a text names.

    Tried in this order; the first that fits decides:

    1. a name in the entry-point group `hf_lifealign.rewards`, e.g. `"brevity"`; a class is made without arguments;
    2. a local folder: that of a reward (`reward.json`), or of a sequence classifier (`config.json`);
    3. `"package.module:function"`, which is imported;
    4. a repository of the Hub, `owner/name` or `owner/name@revision`, that holds a reward or a sequence classifier.
       Where the Hub cannot be reached the cache is asked.

    Args:
        spec (`str`): what a recipe says.
        token (`str`, *optional*): access token for the Hub.

    Returns:
        `Callable` or `str`: a reward function; or, for a sequence classifier, the text as it is, which TRL's trainers
        load themselves.

    Raises:
        ValueError: if the text names none of these, saying what was tried, or what it names is no reward.
        ImportError: if what it names cannot be imported.
        HubError: if the Hub does not say what the repository holds, and the cache neither.
    """
    from hf_lifealign.strategies.registry import available, imported, is_function_path, load

    if not isinstance(spec, str) or not spec.strip():
        raise ValueError(f"You set the reward {spec!r}. Set a text, e.g. 'brevity'.")
    spec = spec.strip()
    if _NAME.fullmatch(spec) and spec in available(REWARDS):
        return _callable(load(REWARDS, spec), spec)
    if Path(spec).expanduser().is_dir():
        return _from_folder(Path(spec).expanduser(), spec)
    if is_function_path(spec):
        return _callable(imported(spec, "reward"), spec)
    if re.fullmatch(r"[\w.-]+/[\w.-]+(?:@\S+)?", spec, re.ASCII) and spec[0] not in ".-":
        return _from_hub(spec, token)
    raise ValueError(_nothing(spec, sorted(available(REWARDS))))


def _nothing(spec: str, names: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(spec, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"You set the reward {spec!r}.{hint} It was looked for as a reward of an installed package (there are: "
        f"{', '.join(names) or 'none'}), as a local folder (there is none), as 'package.module:function' and as a Hub "
        "repository 'owner/name' (it has not that form). Set one of these."
    )


def _callable(found: Any, spec: str) -> RewardFunction:
    """What was imported, as a function that TRL can call; a class is made first."""
    if isinstance(found, type):
        try:
            found = found()
        except TypeError as error:
            raise ValueError(
                f"You set the reward {spec!r}, a class that cannot be made without arguments ({error}). Name a "
                "function, or an instance of it."
            ) from error
    if not callable(found):
        raise ValueError(f"You set the reward {spec!r}, which is a {type(found).__name__} and cannot be called.")
    return found


def _from_folder(folder: Path, spec: str) -> RewardFunction | str:
    if (folder / RECORD).is_file():
        return MiniLMBradleyTerryReward.from_pretrained(folder)
    if (folder / _CLASSIFIER).is_file():
        return str(folder)
    raise ValueError(
        f"You set the reward {spec!r}, a folder with neither {RECORD} (a reward) nor {_CLASSIFIER} (a sequence "
        "classifier). Set another folder; if a Hub repository is meant, start elsewhere: the folder hides it."
    )


def _from_hub(spec: str, token: str | None) -> RewardFunction | str:
    from hf_lifealign.hub.fetch import split_revision

    repo_id, revision = split_revision(spec)
    held = _held(repo_id, revision, token)
    if RECORD in held:
        return MiniLMBradleyTerryReward.from_pretrained(repo_id, revision, token)
    if _CLASSIFIER not in held:
        raise ValueError(
            f"You set the reward {spec!r}. No installed package or folder has that name, and the repository holds "
            f"neither {RECORD} (a reward) nor {_CLASSIFIER} (a sequence classifier)."
        )
    if revision is not None:
        raise ValueError(
            f"You set the reward {spec!r}, a sequence classifier, which TRL loads by its id alone. Leave the revision "
            "out, or set a local folder of it."
        )
    return repo_id


def _held(repo_id: str, revision: str | None, token: str | None) -> set[str]:
    """Which of the two files that tell a repository's kind it holds, by the Hub or else by the cache."""
    from huggingface_hub import constants, try_to_load_from_cache

    from hf_lifealign.hub.errors import HubError
    from hf_lifealign.hub.patience import Patience
    from hf_lifealign.hub.remote import Remote

    kinds = (RECORD, _CLASSIFIER)
    remote = Remote(repo_id, token)
    reason = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            present = Patience(attempts=3).until_done(lambda: remote.tree(remote.resolve(revision)))
            return {name for name in kinds if name in present}
        except HubError as error:
            if not error.may_pass:
                raise HubError(f"{_tried(repo_id)}. {error}") from error
            reason = str(error).rstrip(".")
    held = {name for name in kinds if isinstance(try_to_load_from_cache(repo_id, name, revision=revision), str)}
    if not held:
        raise HubError(
            f"{_tried(repo_id)}, and the cache does not hold it ({reason}). Fetch it where there is a network, or "
            "set a local folder.",
            may_pass=True,
        )
    return held


def _tried(repo_id: str) -> str:
    return f"You set the reward {repo_id!r}. No folder has that name, so that it has to be a repository of the Hub"
