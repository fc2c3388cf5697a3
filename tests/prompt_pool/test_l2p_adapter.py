"""L2P as an adapter: what it adds, what it leaves alone, and the way through trainers, lives and disk."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from support.life import Stop, life_files, tiny_life
from support.tiny import preference_dataset, preference_rows, tiny_model, tiny_tokenizer, write_jsonl
from transformers import DynamicCache, T5Config, T5ForConditionalGeneration
from trl import DPOConfig, DPOTrainer

from hf_lifealign import FPOConfig, FPOTrainer, L2PConfig
from hf_lifealign.lifelong.phases import with_extra_loss
from hf_lifealign.lifelong.scoring import encode_pairs, score_pairs
from hf_lifealign.prompt_pool import pools_of, told_prompts
from hf_lifealign.prompt_pool.training import prompt_lengths

IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])


def pooled(**options: Any) -> Any:
    torch.manual_seed(0)
    settings = {"pool_size": 4, "prompt_length": 2, "top_k": 2, "task_type": "CAUSAL_LM"} | options
    return get_peft_model(tiny_model(), L2PConfig(**settings)).eval()


def arguments(folder: Path, **options: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2,
        "logging_steps": 1, "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": [],
        "save_strategy": "no", "disable_tqdm": True,
    } | options  # fmt: skip


def test_the_prompts_stand_in_front_of_the_row() -> None:
    """As if their embeddings had been written there by hand."""
    model = pooled()
    base, pools = model.get_base_model(), pools_of(model)[0]
    with torch.no_grad():
        found = model(input_ids=IDS, output_hidden_states=True)
        with model.disable_adapter():
            hidden = base.model(input_ids=IDS).last_hidden_state
            plain = model(input_ids=IDS).logits
            pool = pools.l2p_pool["default"]
            cosines = torch.cosine_similarity(hidden.mean(dim=1)[:, None], pool.keys[None], dim=-1)
            front = pool.prompts[cosines.topk(2).indices].flatten(1, 2)
            embeds = torch.cat([front, base.get_input_embeddings()(IDS)], dim=1)
            by_hand = base(inputs_embeds=embeds).logits
    assert found.logits.shape == plain.shape
    torch.testing.assert_close(found.logits, by_hand[:, 4:])
    assert not torch.allclose(found.logits, plain, atol=1e-4)
    assert {state.shape[1] for state in found.hidden_states} == {5}


def test_nothing_but_the_pool_is_trained_and_saved(tmp_path: Path) -> None:
    model = pooled()
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[-1] for name in names} == {"prompts", "keys"}
    model.save_pretrained(str(tmp_path))
    kept = load_file(tmp_path / "adapter_model.safetensors")
    assert {key.split(".")[-1] for key in kept} == {"prompts", "keys"}
    again = PeftModel.from_pretrained(tiny_model(), str(tmp_path)).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=IDS).logits, model(input_ids=IDS).logits, rtol=0, atol=0)


def test_several_pools_and_none() -> None:
    model = pooled()
    with torch.no_grad():
        first = model(input_ids=IDS).logits
        model.add_adapter("other", L2PConfig(pool_size=3, prompt_length=1, top_k=1, task_type="CAUSAL_LM"))
        torch.testing.assert_close(model(input_ids=IDS).logits, first)
        model.set_adapter("other")
        second = model(input_ids=IDS).logits
        assert not torch.allclose(first, second, atol=1e-4)
        model.delete_adapter("other")
        torch.testing.assert_close(model(input_ids=IDS).logits, first)
        with model.disable_adapter():
            plain = model(input_ids=IDS).logits
        copied = copy.deepcopy(model)
        pools_of(copied)[0].l2p_pool["default"].prompts.data.zero_()
        torch.testing.assert_close(model(input_ids=IDS).logits, first)
        assert not torch.allclose(copied(input_ids=IDS).logits, first, atol=1e-4)
        with pytest.raises(ValueError, match="cannot be merged"):
            model.merge_and_unload()
        base = model.unload()
        torch.testing.assert_close(base(input_ids=IDS).logits, plain)
    assert not pools_of(base)


def test_padding_changes_nothing() -> None:
    model = pooled()
    short = IDS[:1, :3]
    right = torch.cat([short, torch.zeros(1, 2, dtype=torch.long)], dim=1)
    left = torch.cat([torch.zeros(1, 2, dtype=torch.long), short], dim=1)
    with torch.no_grad():
        alone = model(input_ids=short).logits
        padded = model(input_ids=right, attention_mask=torch.tensor([[1, 1, 1, 0, 0]])).logits
        mask = torch.tensor([[0, 0, 1, 1, 1]])
        places = (mask.cumsum(1) - 1).clamp(min=0)
        turned = model(input_ids=left, attention_mask=mask, position_ids=places).logits
    torch.testing.assert_close(padded[:, :3], alone)
    torch.testing.assert_close(turned[:, 2:], alone)


def test_the_prompt_alone_chooses() -> None:
    """Completions of one prompt are answered with the same prompts in front, and tokens look at none that follow."""
    model = pooled()
    pools = pools_of(model)[0]
    asked = []
    pools.l2p_pool["default"].register_forward_pre_hook(lambda module, args: asked.append(args[0]))
    rows = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 9, 9, 8]])
    with torch.no_grad():
        with told_prompts(model, torch.tensor([2, 2])):
            model(input_ids=rows)
        model(input_ids=rows[:1, :2])
        model(input_ids=rows)
    torch.testing.assert_close(asked[0][0], asked[0][1])
    torch.testing.assert_close(asked[0][:1], asked[1])
    assert not torch.allclose(asked[2][0], asked[2][1])
    assert pools.prompt_lengths is None
    with told_prompts(model, torch.tensor([2])), pytest.raises(ValueError, match="1 prompts were told, and 2 rows"):
        model(input_ids=rows)


def test_generation_goes_on_from_its_cache() -> None:
    """Token by token as without a cache, for rows of several lengths."""
    model = pooled()
    ids = torch.tensor([[0, 0, 5, 6, 7], [5, 6, 7, 8, 9]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    both = model.generate(input_ids=ids, attention_mask=mask, **options)
    whole = ids[:1, 2:]
    alone = model.generate(input_ids=whole, attention_mask=torch.ones_like(whole), **options)
    assert both[0, 2:].tolist() == alone[0].tolist()
    for _ in range(6):
        with torch.no_grad(), told_prompts(model, torch.tensor([3])):
            token = model(input_ids=whole).logits[:, -1:].argmax(dim=-1)
        whole = torch.cat([whole, token], dim=1)
    assert alone.tolist() == whole.tolist()


def test_a_cache_of_somebody_else_is_refused() -> None:
    model = pooled()
    cache = DynamicCache()
    with torch.no_grad(), model.disable_adapter():
        model(input_ids=IDS, past_key_values=cache, use_cache=True)
    new, mask = torch.tensor([[3], [4]]), torch.ones(2, 6, dtype=torch.long)
    with pytest.raises(ValueError, match="Start with an empty cache"):
        model(input_ids=new, attention_mask=mask, past_key_values=cache)
    with pytest.raises(ValueError, match="Switch pair packing"):
        model(input_ids=IDS, attention_mask=torch.ones(2, 1, 5, 5))


def test_other_models_are_refused() -> None:
    small = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 16}
    for model in (T5ForConditionalGeneration(T5Config(**small)), tiny_model().model):
        with pytest.raises(ValueError, match="You gave L2P a"):
            get_peft_model(model, L2PConfig())


def test_the_lengths_of_prompts_in_a_batch() -> None:
    ids = torch.zeros(2, 5)
    completion = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]])
    found = prompt_lengths({"input_ids": ids, "attention_mask": mask, "completion_mask": completion})
    assert found is not None
    assert found.tolist() == [2, 2]
    labels = torch.where(completion.bool(), 3, -100)
    found = prompt_lengths({"input_ids": ids, "labels": labels})
    assert found is not None
    assert found.tolist() == [2, 3]
    assert prompt_lengths({"input_ids": ids}) is None


@pytest.mark.parametrize("trainer", ["fpo", "dpo"])
def test_prompts_and_keys_learn(tmp_path: Path, trainer: str) -> None:
    """Keys too, by the pull alone: the preference does not depend on them."""
    held = {}
    for weight in (0.0, 0.5):
        model = pooled(pull_weight=weight).train()
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        kwargs: dict[str, Any] = {"model": model, "train_dataset": preference_dataset(12),
                                  "processing_class": tiny_tokenizer()}  # fmt: skip
        if trainer == "fpo":
            built: Any = FPOTrainer(args=FPOConfig(**arguments(tmp_path)), **kwargs)
            assert not built.is_packed
        else:
            built = with_extra_loss(DPOTrainer)(args=DPOConfig(**arguments(tmp_path)), **kwargs)
        built.train()
        after = dict(built.model.named_parameters())
        held[weight] = {name: not torch.equal(before[name], after[name]) for name in before}
        logged = [entry for entry in built.state.log_history if "loss" in entry]
        assert ("extra_loss" in logged[0]) == bool(weight)
    keys = "base_model.model.model.prompt_pools.l2p_pool.default.keys"
    prompts = keys.replace("keys", "prompts")
    assert held[0.5][keys]
    assert held[0.5][prompts]
    assert held[0.0][prompts]
    assert not held[0.0][keys]
    assert sum(held[0.5].values()) == 2


def test_scores_know_where_prompts_end() -> None:
    """As each pair would be scored by itself, its prompt alone asked."""
    model = pooled()
    rows = Dataset.from_list(preference_rows(3, "yes please now", "no"))
    pairs = encode_pairs(rows, tiny_tokenizer(), None)
    found = score_pairs(model, pairs, pad_token_id=0)
    for pair, (chosen, rejected) in zip(pairs, found, strict=True):
        for ids, start, told in (
            (pair.chosen, pair.chosen_start, chosen),
            (pair.rejected, pair.rejected_start, rejected),
        ):
            with torch.no_grad(), told_prompts(model, torch.tensor([start])):
                logits = model(input_ids=torch.tensor([ids])).logits[0]
            by_hand = logits.log_softmax(-1)[range(start - 1, len(ids) - 1), ids[start:]].sum()
            assert told == pytest.approx(by_hand.item(), abs=1e-4)


def test_an_interrupted_life_ends_as_one_that_was_not(tmp_path: Path) -> None:
    def life(folder: Path, **options: Any) -> Any:
        options = {"peft_config": L2PConfig(pool_size=4, prompt_length=2, top_k=2, task_type="CAUSAL_LM")} | options
        return tiny_life(folder, strategies=["l2p"], **options)

    life(tmp_path / "whole").train()
    with pytest.raises(KeyboardInterrupt):
        life(tmp_path / "cut", callbacks=[Stop()]).train()
    resumed = life(tmp_path / "cut")
    resumed.train()
    assert resumed.model.peft_config["default"].peft_type.value == "L2P"
    whole, cut = life_files(tmp_path / "whole"), life_files(tmp_path / "cut")
    assert set(whole) == set(cut)
    weights = [file for file in whole if file.endswith("adapter_model.safetensors")]
    assert len(weights) >= 3
    assert not [file for file in whole if file.endswith(".safetensors") and whole[file] != cut[file]]
    card = (tmp_path / "whole" / "adapters" / "03-three" / "README.md").read_text()
    assert "# L2P adapter" in card
    assert "- l2p" in card
    assert "import hf_lifealign.prompt_pool" in card
    assert "plain LoRA" not in card
    with pytest.raises(ValueError, match="Set the adapter's type to l2p"):
        life(tmp_path / "lora", peft_config=LoraConfig(r=2, task_type="CAUSAL_LM")).train()


def test_a_recipe_names_the_strategy_alone(tmp_path: Path, tiny_dir: str) -> None:
    for task, sides in (("one", ("yes", "no")), ("two", ("no", "yes"))):
        write_jsonl(tmp_path / f"{task}.jsonl", preference_rows(8, *sides))
    recipe = {
        "model": tiny_dir, "output_dir": "run", "strategy": "l2p",
        "tasks": [{"name": t, "train": f"{t}.jsonl", "test": f"{t}.jsonl"} for t in ("one", "two")],
        "training": arguments(tmp_path) | {"max_steps": 2},
        "run": {"general_text": "none", "disable_tqdm": True},
    }  # fmt: skip
    del recipe["training"]["output_dir"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    line = [sys.executable, "-m", "hf_lifealign.cli.main", "run", str(tmp_path / "recipe.yaml"), "--output-dir",
            str(tmp_path / "run")]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    adapters = sorted((tmp_path / "run" / "adapters").glob("*/adapter_model.safetensors"))
    assert len(adapters) == 2
    assert {key.split(".")[-1] for key in load_file(adapters[-1])} == {"prompts", "keys"}
