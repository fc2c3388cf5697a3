"""Publishes a reward: its card, what must not be in it, and one commit on the Hub."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hf_lifealign.hub.bundle import check_private
from hf_lifealign.hub.contents import Content
from hf_lifealign.hub.errors import NotPublishableError
from hf_lifealign.hub.remote import Remote
from hf_lifealign.hub.whole_commit import check_owner_and_name, commit_files, only_over
from hf_lifealign.models import public_name
from hf_lifealign.report.card import render_card
from hf_lifealign.report.privacy import without_folders, without_secrets
from hf_lifealign.report.table import markdown_table
from hf_lifealign.rewards.record import RewardRecord, is_public
from hf_lifealign.rewards.storage import CARD, RECORD, WEIGHTS, tensor_bytes

_MARKER = "hf_lifealign_reward"
_READS = {
    "completion": "the answer alone",
    "turn": "what the user said last, a line break, the answer",
    "dialogue": "the whole prompt, a line break, the answer",
}


def push_reward(
    weight: torch.Tensor, probe: torch.Tensor, record: RewardRecord, repo_id: str, token: str | None, private: bool
) -> str:
    """See [`MiniLMBradleyTerryReward.push_to_hub`]."""
    check_owner_and_name(repo_id)
    if not is_public(record.embedding):
        raise NotPublishableError(
            f"The reward {record.name!r} reads the embeddings of {record.embedding}, a folder of this machine that "
            "others do not have. Nothing was sent. Publish that model, and fit the reward with its Hub id."
        )
    record = replace(record, dataset=without_folders(record.dataset))
    told = json.dumps(record.to_json(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    files: dict[str, bytes | Path] = {
        WEIGHTS: tensor_bytes(weight, probe),
        RECORD: told.encode(),
        CARD: reward_card(record, repo_id).encode(),
    }
    secrets = Remote(repo_id, token).secrets
    check_private({name: Content(files[name]) for name in (RECORD, CARD)}, secrets, [Path.cwd()])
    check = only_over(_MARKER, record.name, "reward")
    message = f"Publish the reward {record.name}"
    return commit_files(None, repo_id, files, "model", message, token=token, private=private, check=check).url


def reward_card(record: RewardRecord, repo_id: str | None = None) -> str:
    """The `README.md` of a reward; nothing in it names a folder of this machine.

    Args:
        record ([`RewardRecord`]): the reward.
        repo_id (`str`, *optional*): where it is published, for the examples.
    """
    embedding = public_name(record.embedding)
    return render_card(
        "reward_card.md.jinja",
        {
            "front_matter": _front_matter(record, embedding),
            "name": record.name,
            "embedding": embedding,
            "repo_id": repo_id or "path-or-id-of-this-reward",
            "reads": _READS[record.template],
            "max_tokens": record.max_tokens,
            "dataset": " ".join(without_secrets(without_folders(record.dataset)).split()),
            "numbers": _numbers(record),
            "measured": record.accuracy is not None,
        },
    )


def _front_matter(record: RewardRecord, embedding: str) -> str:
    """The metadata block, as YAML without its fences."""
    import yaml

    fields: dict[str, Any] = {"library_name": "hf-lifealign"}
    if is_public(record.embedding):
        fields |= {"base_model": embedding}
    fields |= {"tags": ["trl", "reward-model", "bradley-terry", "sentence-embeddings", "hf-lifealign"]}
    fields |= {_MARKER: record.name}
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True).rstrip()


def _numbers(record: RewardRecord) -> str:
    rows = [
        ("accuracy", "-" if record.accuracy is None else f"{record.accuracy:.3f}", "on held-out pairs; chance is 0.5"),
        ("held-out pairs", str(record.held_out_pairs), "not seen in fitting"),
        ("accuracy in fitting", f"{record.fit_accuracy:.3f}", "on the pairs it was fitted on"),
        ("pairs", str(record.pairs), "fitted on"),
        ("mean", f"{record.mean:+.3f}", "of the rewards of the answers it was fitted on"),
        ("standard deviation", f"{record.std:.3f}", "of the same, to weigh it against other rewards"),
        ("l2", f"{record.l2:g}", "penalty of the fit"),
    ]
    return markdown_table(("number", "value", "meaning"), rows, left=3)
