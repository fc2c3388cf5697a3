"""A routed memory on the Hub: published with its views, fetched and checked, and the card says how it was measured."""

from pathlib import Path

import pytest
from routing.test_routed_life import life, stream
from support.hub_server import HubServer
from support.tiny import tiny_model, tiny_tokenizer

from hf_lifealign import TaskStream, load_routed
from hf_lifealign.hub.errors import DamagedRevisionError
from hf_lifealign.hub.publish import push_run


def test_published_and_loaded_from_a_repository(hub: HubServer, remote, options, tmp_path: Path) -> None:
    life(tmp_path / "run", TaskStream(list(stream())[:2])).train()
    push_run(tmp_path / "run", remote(), options)
    files = hub.repo("me/life").files("task-02-omega")
    place = "slmc/strategies/routed_memory/"
    assert {path.removeprefix(place) for path in files if path.startswith(place)} == {
        "initial.safetensors", "01-alpha.safetensors", "02-omega.safetensors", "gate-02-omega.safetensors",
    }  # fmt: skip
    card = files["README.md"].decode()
    assert "hf_lifealign.load_routed(" in card
    assert "each prompt is answered by the view" in card

    policy = load_routed(tiny_model(), "me/life", tiny_tokenizer())
    local = load_routed(tiny_model(), tmp_path / "run" / "adapters" / "02-omega", tiny_tokenizer())
    prompts = [row["prompt"] for task in list(stream())[:2] for row in task.load().test]
    assert policy.route(prompts) == local.route(prompts)
    assert policy.generate(prompts[4:8], max_new_tokens=4) == local.generate(prompts[4:8], max_new_tokens=4)
    assert load_routed(tiny_model(), "me/life", tiny_tokenizer(), revision="task-01-alpha").gate.tasks == ("alpha",)


def test_a_gate_that_was_changed_is_not_believed(hub: HubServer, remote, options, tmp_path: Path) -> None:
    life(tmp_path / "run", TaskStream(list(stream())[:1])).train()
    push_run(tmp_path / "run", remote(), options)
    path = "slmc/strategies/routed_memory/gate-01-alpha.safetensors"
    hub.elsewhere("me/life", {path: hub.repo("me/life").files("main")[path][:-8] + b"\1" * 8})
    with pytest.raises(DamagedRevisionError):
        load_routed(tiny_model(), "me/life", tiny_tokenizer())
