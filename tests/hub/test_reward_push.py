"""Rewards on the Hub: published once, fetched to the bit, never over somebody else's work, nothing private."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import yaml
from support.hub_server import Fault, HubServer
from support.tiny import preference_rows
from support.tiny_encoder import save_tiny_encoder

from hf_lifealign import MiniLMBradleyTerryReward, resolve_reward
from hf_lifealign.hub.errors import DamagedRevisionError, HubError, NotPublishableError
from hf_lifealign.hub.remote import Remote
from hf_lifealign.rewards import storage


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> MiniLMBradleyTerryReward:
    """A reward on an encoder of this machine."""
    folder = save_tiny_encoder(tmp_path_factory.mktemp("models") / "tiny-bert")
    return MiniLMBradleyTerryReward.fit(preference_rows(20), name="yes", embedding=folder, progress=False)


@pytest.fixture
def reward(local: MiniLMBradleyTerryReward) -> MiniLMBradleyTerryReward:
    """The same, as if its encoder could be had by others."""
    record = replace(local.record, embedding="embedded:minilm-l6-v2", dataset="pairs that say yes")
    return MiniLMBradleyTerryReward(local.weight, local.probe, record)


def test_what_is_published_comes_back(hub: HubServer, reward: MiniLMBradleyTerryReward, remote) -> None:
    url = reward.push_to_hub("me/yes")
    assert url == f"{hub.url}/me/yes"
    loaded = MiniLMBradleyTerryReward.from_pretrained("me/yes")
    assert torch.equal(loaded.weight, reward.weight)
    assert torch.equal(loaded.probe, reward.probe)
    assert loaded.record == reward.record
    # the same again makes no commit
    handle: Remote = remote("me/yes")
    head = handle.resolve(None)
    reward.push_to_hub("me/yes")
    assert handle.resolve(None) == head
    assert torch.equal(MiniLMBradleyTerryReward.from_pretrained("me/yes", revision=head).weight, reward.weight)
    assert set(handle.tree(head)) - {".gitattributes"} == {"README.md", "reward.json", "reward.safetensors"}


def test_the_card_tells_what_it_is_and_no_folder(hub: HubServer, reward: MiniLMBradleyTerryReward, remote) -> None:
    record = replace(reward.record, dataset="rows of /home/somebody/data/train.jsonl")
    MiniLMBradleyTerryReward(reward.weight, reward.probe, record).push_to_hub("me/yes", private=True)
    handle = remote("me/yes")
    commit = handle.resolve(None)
    assert handle.api.repo_info("me/yes").private
    card = handle.download("README.md", commit).decode()
    facts = yaml.safe_load(card.split("---")[1])
    assert facts["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert facts["hf_lifealign_reward"] == "yes"
    assert 'from_pretrained("me/yes")' in card
    assert "rows of train.jsonl" in card
    assert "/home/somebody" not in card + handle.download("reward.json", commit).decode()
    assert f"{reward.record.accuracy:.3f}" in card


def test_resolve_finds_it_and_leaves_classifiers_to_trl(
    hub: HubServer, reward: MiniLMBradleyTerryReward, remote: Callable[..., Remote]
) -> None:
    reward.push_to_hub("me/yes")
    assert resolve_reward("me/yes").__name__ == "yes"
    head = remote("me/yes").resolve(None)
    assert resolve_reward(f"me/yes@{head}").__name__ == "yes"
    api = remote().api
    api.create_repo("me/classifier")
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="me/classifier")
    assert resolve_reward("me/classifier") == "me/classifier"
    with pytest.raises(ValueError, match="by its id alone"):
        resolve_reward("me/classifier@main")
    api.create_repo("me/empty")
    with pytest.raises(ValueError, match=r"neither reward\.json"):
        resolve_reward("me/empty")
    with pytest.raises(HubError, match="no such repository"):
        resolve_reward("me/nothing")
    with pytest.raises(HubError, match="is no reward"):
        MiniLMBradleyTerryReward.from_pretrained("me/classifier")


def test_nothing_of_others_is_replaced(hub: HubServer, reward: MiniLMBradleyTerryReward, remote) -> None:
    api = remote().api
    api.create_repo("me/model")
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="me/model")
    with pytest.raises(HubError, match=r"config\.json"):
        reward.push_to_hub("me/model")
    reward.push_to_hub("me/yes")
    other = MiniLMBradleyTerryReward(reward.weight, reward.probe, replace(reward.record, name="no"))
    with pytest.raises(HubError, match="holds the reward 'yes'"):
        other.push_to_hub("me/yes")
    better = MiniLMBradleyTerryReward(reward.weight * 2, reward.probe, reward.record)
    better.push_to_hub("me/yes")
    assert torch.equal(MiniLMBradleyTerryReward.from_pretrained("me/yes").weight, reward.weight * 2)


def test_what_is_private_stays(hub: HubServer, local: MiniLMBradleyTerryReward, reward, remote) -> None:
    with pytest.raises(NotPublishableError, match="folder of this machine"):
        local.push_to_hub("me/yes")
    told = MiniLMBradleyTerryReward(reward.weight, reward.probe, replace(reward.record, dataset="hf_" + "Ab1" * 8))
    with pytest.raises(NotPublishableError, match="access token"):
        told.push_to_hub("me/yes")
    with pytest.raises(ValueError, match="owner/name"):
        reward.push_to_hub("yes")
    assert remote("me/yes").head() is None


def test_a_stranger_cannot_make_it_read_too_much_or_a_folder(
    hub: HubServer, reward: MiniLMBradleyTerryReward, remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward.push_to_hub("me/yes")
    monkeypatch.setattr(storage, "LARGEST", storage.LARGEST | {"reward.json": 10})
    with pytest.raises(DamagedRevisionError, match="nothing was"):
        MiniLMBradleyTerryReward.from_pretrained("me/yes")
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def test_an_embedding_model_by_path_is_refused_from_the_hub(hub: HubServer, reward, remote) -> None:
    reward.push_to_hub("me/yes")
    content = reward.record.to_json() | {"embedding": "/etc/model"}
    remote().api.upload_file(path_or_fileobj=json.dumps(content).encode(), path_in_repo="reward.json", repo_id="me/yes")
    with pytest.raises(ValueError, match="is no Hub id"):
        MiniLMBradleyTerryReward.from_pretrained("me/yes")


def test_without_the_hub_the_cache_is_taken(hub: HubServer, reward, monkeypatch: pytest.MonkeyPatch) -> None:
    reward.push_to_hub("me/yes")
    MiniLMBradleyTerryReward.from_pretrained("me/yes")
    hub.fail(Fault(step="*", kind="status", status=503, times=None))
    assert resolve_reward("me/yes").__name__ == "yes"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert resolve_reward("me/yes").__name__ == "yes"
    with pytest.raises(HubError, match="cache does not hold"):
        MiniLMBradleyTerryReward.from_pretrained("me/other")
