"""The life of an adapter: begin, consolidate, veto, failures that change nothing, frozen copies, LoRA's options."""

import copy

import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict
from slmc_helpers import disturb, live, logits, same, slmc_config, snapshot, tiny_base, tiny_model

from hf_lifealign.slmc import ConsolidationError, ConsolidationReport, ConsolidationVetoed, SLMCModel
from hf_lifealign.slmc.model import find_tuner

SPACES = ["factors", "delta"]


def assert_untouched(model, before):
    after = snapshot(model)
    assert same(before["weights"], after["weights"])
    assert same(before["tensors"], after["tensors"])
    assert before["entries"] == after["entries"]
    assert before["running"] == after["running"]


@pytest.mark.parametrize("space", SPACES)
def test_one_pair_of_calls_is_one_history_entry(space):
    model = tiny_model(space=space)
    objects = [id(p) for p in model.parameters()]
    assert not model.is_task_running
    model.begin_task("first", phase="fpo")
    assert model.is_task_running
    disturb(model, 0)
    report = model.consolidate()
    assert not model.is_task_running
    assert (report.task, report.phase, report.index) == ("first", "fpo", 0)
    assert report.totals["history_share"] == 0
    live(model, 1)
    assert model.memory.length == 2
    entries = model.memory.entries
    assert [entry["task"] for entry in entries] == ["first", "task0"]
    assert ConsolidationReport.from_dict(entries[0]["report"]) == report
    assert len(entries[0]["adapter_sha256"]) == 64
    assert [id(p) for p in model.parameters()] == objects
    assert "\n" not in report.summary()
    assert "first (fpo)" in report.summary()


def test_repeating_a_change_lies_in_the_history():
    model = tiny_model(denoising_threshold=1.0)
    for _ in range(2):
        model.begin_task("same")
        disturb(model, 7)
        report = model.consolidate()
    assert report.totals["history_share"] == pytest.approx(1.0, abs=1e-6)
    assert report.totals["refined_norm"] == pytest.approx(0.5 * report.totals["denoised_norm"], rel=1e-5)


def test_calls_out_of_order_are_refused():
    model = tiny_model()
    for call in (model.consolidate, model.abandon_task):
        with pytest.raises(RuntimeError, match="no task is running"):
            call()
    model.begin_task("a")
    with pytest.raises(RuntimeError, match="'a'"):
        model.begin_task("b")
    model.begin_task("b", force=True)
    assert model.memory.running.task == "b"


def test_abandoning_can_restore_the_start():
    model = tiny_model()
    before = snapshot(model)
    model.begin_task("a")
    disturb(model, 0)
    model.abandon_task(restore=True)
    assert_untouched(model, before)


def test_a_frozen_adapter_cannot_begin():
    model = tiny_model()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        model.begin_task("a")


def test_empty_shards_cannot_begin():
    model = tiny_model()
    last = find_tuner(model)._adapted_modules("default")[-1]
    last.B.data = last.B.data[:0]
    with pytest.raises(ValueError, match="ZeRO-3"):
        model.begin_task("a")


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_and_inf_change_nothing_and_are_named(space, poison):
    model = tiny_model(space=space)
    live(model, 1)
    model.begin_task("bad")
    disturb(model, 5)
    last = find_tuner(model)._adapted_modules("default")[-1]
    with torch.no_grad():
        last.B[0, 0] = poison
    before = snapshot(model)
    with pytest.raises(ConsolidationError, match=rf"{last.name}.*NaN or Inf"):
        model.consolidate()
    after = snapshot(model)
    assert torch.equal(
        torch.nan_to_num(last.B), torch.nan_to_num(before["weights"][f"{last.name}.lora_B.default.weight"])
    )
    others = {k: v for k, v in before["weights"].items() if v.isfinite().all()}
    assert same(others, {k: v for k, v in after["weights"].items() if k in others})
    assert same(before["tensors"], after["tensors"])
    assert model.is_task_running
    assert len(model.memory.entries) == 1


@pytest.mark.parametrize("space", SPACES)
def test_changed_shape_and_missing_parameter_change_nothing(space):
    model = tiny_model(space=space)
    model.begin_task("bad")
    disturb(model, 5)
    name = next(iter(model.memory.running.previous))
    kept = model.memory.running.previous[name]
    model.memory.running.previous[name] = kept[:-1]
    before = snapshot(model)
    with pytest.raises(ConsolidationError, match="shape"):
        model.consolidate()
    assert_untouched(model, before)
    del model.memory.running.previous[name]
    before = snapshot(model)
    with pytest.raises(ConsolidationError, match="only now or only at the start"):
        model.consolidate()
    assert_untouched(model, before)


@pytest.mark.parametrize("space", SPACES)
def test_failed_decomposition_changes_nothing(space, monkeypatch):
    model = tiny_model(space=space)
    model.begin_task("bad")
    disturb(model, 5)
    before, calls, svd = snapshot(model), [], torch.linalg.svd

    def fails_late(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise torch.linalg.LinAlgError("did not converge")
        return svd(*args, **kwargs)

    monkeypatch.setattr(torch.linalg, "svd", fails_late)
    with pytest.raises(ConsolidationError, match="did not converge"):
        model.consolidate()
    assert_untouched(model, before)


@pytest.mark.parametrize("space", SPACES)
def test_veto_changes_nothing_and_hooks_can_be_removed(space):
    model, seen = tiny_model(space=space), []
    handle = model.register_consolidation_hook(lambda stage, report: "scores fell." if stage == "before" else None)
    watcher = model.register_consolidation_hook(lambda stage, report: seen.append((stage, report)))
    model.begin_task("a")
    disturb(model, 1)
    before = snapshot(model)
    with pytest.raises(ConsolidationVetoed, match=r"scores fell\.") as caught:
        model.consolidate()
    assert caught.value.reason == "scores fell."
    assert_untouched(model, before)
    handle.remove()
    handle.remove()
    report = model.consolidate()
    assert seen == [("before", report), ("after", report)]
    watcher.remove()
    live(model, 1)
    assert len(seen) == 2


def test_raising_hook_changes_nothing():
    def hook(stage, report):
        raise ZeroDivisionError

    model = tiny_model()
    model.register_consolidation_hook(hook)
    model.begin_task("a")
    disturb(model, 1)
    before = snapshot(model)
    with pytest.raises(ZeroDivisionError):
        model.consolidate()
    assert_untouched(model, before)


def test_ref_copy_with_the_same_config_object_has_no_memory(tmp_path):
    model = tiny_model()
    model.add_adapter("ref", model.peft_config["default"])
    assert model.peft_config["ref"] is not model.peft_config["default"]
    assert model.peft_config["ref"].owner is None
    frozen = {k: v.clone() for k, v in model.named_parameters() if ".ref." in k}
    live(model, 2)
    assert same(frozen, {k: v for k, v in model.named_parameters() if ".ref." in k})
    assert all("ref" not in name for name in model.memory.history)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "slmc" / "memory.json").is_file()
    assert (tmp_path / "ref" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "ref" / "slmc").exists()


def test_another_adapter_name_owns_the_memory(tmp_path):
    model = get_peft_model(tiny_base(), slmc_config(), adapter_name="policy")
    model.begin_task("a")
    disturb(model, 0, adapter="policy")
    model.consolidate()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "policy" / "slmc" / "memory.json").is_file()
    assert model.base_model.memory_adapter == "policy"


@pytest.mark.parametrize("space", SPACES)
def test_patterns_rslora_and_embeddings(space):
    model = tiny_model(
        space=space,
        target_modules=["q_proj", "down_proj", "embed_tokens"],
        rank_pattern={"down_proj": 2},
        alpha_pattern={"down_proj": 3},
        use_rslora=True,
    )
    live(model, 2)
    tuner = find_tuner(model)
    by_name = {m.name.rsplit(".", 1)[-1]: m for m in tuner._adapted_modules("default")}
    assert by_name["down_proj"].A.shape[0] == 2
    assert by_name["down_proj"].scaling == pytest.approx(3 / 2**0.5)
    assert by_name["embed_tokens"].A.shape == (4, 64)
    assert len(model.memory.entries) == 2


@pytest.mark.parametrize("space", SPACES)
def test_bf16_adapter_keeps_its_dtype_and_float32_memory(space):
    model = get_peft_model(tiny_base().bfloat16(), slmc_config(space=space), autocast_adapter_dtype=False)
    live(model, 2)
    assert all(p.dtype is torch.bfloat16 for p in model.parameters())
    tensors = model.memory.tensors()
    assert {t.dtype for k, t in tensors.items() if k.startswith("history")} == {torch.float32}


def test_modules_to_save_are_listed_and_left_alone():
    model = tiny_model(modules_to_save=["norm"])
    model.begin_task("a")
    disturb(model, 0)
    wrapped = next(p for n, p in model.named_parameters() if "modules_to_save.default" in n)
    with torch.no_grad():
        wrapped.add_(1)
    value = wrapped.clone()
    report = model.consolidate()
    assert torch.equal(wrapped, value)
    assert any("modules_to_save.default" in name for name in report.unconsolidated)
    assert get_peft_model_state_dict(model).keys() >= {"base_model.model.model.norm.weight"}


def test_peft_utilities_work_on_the_type():
    model = tiny_model()
    plain = logits(tiny_base())
    live(model, 2)
    adapted = logits(model)
    assert not torch.allclose(adapted, plain)
    with model.disable_adapter():
        assert torch.allclose(logits(model), plain, atol=1e-6)
    model.add_adapter("ref", model.peft_config["default"])
    model.add_weighted_adapter(["default", "ref"], [1.0, 0.0], "mix", combination_type="svd")
    assert model.peft_config["mix"].owner is None
    model.delete_adapter("mix")
    model.delete_adapter("ref")
    assert model.memory.length == 2
    merged = model.merge_and_unload()
    assert torch.allclose(logits(merged), adapted, atol=1e-5)


def test_deleting_the_owner_ends_its_memory():
    model = tiny_model()
    model.add_adapter("ref", model.peft_config["default"])
    model.delete_adapter("default")
    assert not model.is_task_running
    with pytest.raises(RuntimeError, match="no SLMC adapter"):
        model.begin_task("a")


def test_a_copied_model_lives_on_its_own(tmp_path):
    model = tiny_model()
    live(model, 1)
    twin = copy.deepcopy(model)
    live(model, 1, first=1)
    assert (model.memory.length, twin.memory.length) == (2, 1)
    assert isinstance(twin.base_model, SLMCModel)
    assert twin.peft_config["default"].owner is twin.base_model
    live(twin, 1, first=1)
    assert same(model.memory.tensors(), twin.memory.tensors())


def test_a_model_without_slmc_is_named():
    with pytest.raises(TypeError, match="LlamaForCausalLM"):
        find_tuner(tiny_base())
