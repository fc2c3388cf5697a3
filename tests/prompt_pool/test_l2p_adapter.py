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
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from hf_lifealign import FPOConfig, FPOTrainer, L2PConfig
from hf_lifealign.fpo.extra_loss import ExtraLossMixin
from hf_lifealign.lifelong.phases import with_extra_loss
from hf_lifealign.lifelong.scoring import encode_pairs, score_pairs
from hf_lifealign.prompt_pool import pools_of, told_prompts
from hf_lifealign.prompt_pool.layer import PromptPool
from hf_lifealign.prompt_pool.training import PromptPoolMixin, prompt_lengths

IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])


def pooled(**options: Any) -> Any:
    torch.manual_seed(0)
    settings = {"pool_size": 4, "prompt_length": 2, "top_k": 2, "task_type": "CAUSAL_LM"} | options
    return get_peft_model(tiny_model(), L2PConfig(**settings)).eval()


class Told(TrainerCallback):
    """Whether prompts were told while the first batch of each phase was read."""

    def __init__(self, told: list[bool]):
        self.told = told

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        pools = pools_of(model)[0]
        pool = pools.l2p_pool["default"]

        def look(module: Any, given: Any) -> None:
            self.told.append(pools.prompt_lengths is not None)
            handle.remove()

        handle = pool.register_forward_pre_hook(look)


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
    with pytest.raises(ValueError, match="return_dict=False"):
        model.get_base_model().model(input_ids=IDS, return_dict=False)
    # generate() takes what the cache holds for tokens of the row
    row, options = torch.arange(5, 13)[None], {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
    filled = model.generate(input_ids=row, attention_mask=torch.ones_like(row), return_dict_in_generate=True, **options)
    turn = torch.cat([filled.sequences, row], dim=1)
    with pytest.raises(ValueError, match="the same call has filled"):
        model.generate(input_ids=turn, attention_mask=torch.ones_like(turn),
                       past_key_values=filled.past_key_values, **options)  # fmt: skip


def test_other_models_are_refused() -> None:
    small = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 16}
    experts = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
               "num_key_value_heads": 2, "vocab_size": 16, "num_local_experts": 2}  # fmt: skip
    others = (T5ForConditionalGeneration(T5Config(**small)), tiny_model().model,
              MixtralForCausalLM(MixtralConfig(**experts)))  # fmt: skip
    for model in others:
        with pytest.raises(ValueError, match="You gave L2P a"):
            get_peft_model(model, L2PConfig())
    positions = GPT2LMHeadModel(GPT2Config(n_positions=8, n_embd=8, n_layer=1, n_head=2, vocab_size=16))
    model = get_peft_model(positions, L2PConfig(pool_size=2, prompt_length=2, top_k=2))
    assert model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.shape[1] == 4
    with pytest.raises(ValueError, match="has 9 tokens, and the model has room for 8"):
        model(input_ids=torch.ones(1, 5, dtype=torch.long))


def test_prompts_begin_as_what_the_base_reads_for_tokens() -> None:
    """Some bases scale what their table of embeddings holds."""

    class Scaled(torch.nn.Embedding):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids) * 10

    embed = Scaled(16, 4)
    pool = PromptPool(L2PConfig(), embed)
    tokens = embed.weight.detach() * 10
    assert torch.cdist(pool.prompts.flatten(0, 1), tokens).min(dim=1).values.max() < 0.1


def test_training_and_evaluation_choose_alike() -> None:
    pool = pools_of(pooled())[0].l2p_pool["default"]
    query = torch.randn(3, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pool(query)[1]
    torch.testing.assert_close(found, pool(query)[1], rtol=0, atol=0)


def test_all_parameters_are_found_in_the_output(tmp_path: Path) -> None:
    """By strategies that take gradients of log-probabilities, and by DDP, with the loss of the keys and without."""
    model = pooled().train()
    parameters = [each for each in model.parameters() if each.requires_grad]
    gradients = torch.autograd.grad(model(input_ids=IDS).logits.logsumexp(-1).sum(), parameters)
    assert sorted(bool(gradient.any()) for gradient in gradients) == [False, True]
    copied = copy.deepcopy(model)  # after a forward with gradients
    assert pools_of(copied)[0].take_pull() is None
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for searches in (True, False):
            parallel = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=searches)
            for pulls in (True, False):
                loss = parallel(input_ids=IDS).logits.logsumexp(-1).sum()
                pull = pools_of(parallel)[0].take_pull()
                assert pull is not None
                (loss + pull if pulls else loss).backward()
                model.zero_grad()
    finally:
        torch.distributed.destroy_process_group()


def test_keys_are_pulled_to_the_batch_whatever_else_is_read() -> None:
    model = pooled().train()

    class Bare(PromptPoolMixin, ExtraLossMixin):
        pass

    def reads_others(model: Any, inputs: Any) -> torch.Tensor:
        read: torch.Tensor = 0 * model(input_ids=IDS[:1]).logits.sum()
        return read

    trainer = Bare()
    model(input_ids=IDS)
    expected = trainer.compute_extra_loss(model, {})
    assert expected is not None
    trainer.extra_losses = (reads_others,)
    model(input_ids=IDS)
    found = trainer.compute_extra_loss(model, {})
    torch.testing.assert_close(found, expected)
    assert trainer.compute_extra_loss(model, {}).item() == 0  # type: ignore[union-attr]


def test_a_trainer_of_its_own_seam_gets_what_it_lacks(tmp_path: Path) -> None:
    class Own(ExtraLossMixin, DPOTrainer):
        pass

    assert issubclass(with_extra_loss(Own), PromptPoolMixin)
    assert with_extra_loss(FPOTrainer) is FPOTrainer
    for packed in ({"packing": True, "max_length": 32}, {"padding_free": True, "max_length": None}):
        trainer = with_extra_loss(SFTTrainer)(
            model=pooled(), args=SFTConfig(**arguments(tmp_path, **packed)),
            train_dataset=preference_dataset(12).rename_column("chosen", "completion").remove_columns("rejected"),
            processing_class=tiny_tokenizer(),
        )  # fmt: skip
        with pytest.raises(ValueError, match=f"You set {next(iter(packed))}=True with an L2P adapter"):
            trainer.train()


def test_a_life_of_any_trainer_tells_prompts_and_trains_keys(tmp_path: Path) -> None:
    told = []
    config = L2PConfig(pool_size=4, prompt_length=2, top_k=2, task_type="CAUSAL_LM")
    life = tiny_life(tmp_path, strategies=["l2p"], peft_config=config, trainer_class=DPOTrainer,
                     callbacks=[Told(told)])  # fmt: skip
    life.train()
    assert len(told) == 6  # two phases of three tasks
    assert all(told)
    keys = [load_file(file)["base_model.model.model.prompt_pools.l2p_pool.keys"]
            for file in sorted((tmp_path / "adapters").glob("*/adapter_model.safetensors"))]  # fmt: skip
    assert not torch.equal(keys[0], keys[1])
    assert not torch.equal(keys[1], keys[2])


def test_it_is_found_in_a_process_of_its_own(tmp_path: Path, tiny_dir: str) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_dir), L2PConfig(task_type="CAUSAL_LM"))
    model.save_pretrained(str(tmp_path))
    lines = [
        "from transformers import AutoModelForCausalLM",
        "from hf_lifealign.self_align.choice_evaluation import _with_adapter",
        f"base = AutoModelForCausalLM.from_pretrained({tiny_dir!r})",
        f"print(type(_with_adapter(base, {str(tmp_path)!r}, 'it').base_model).__name__)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "L2PModel", done.stderr[-2000:]


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
