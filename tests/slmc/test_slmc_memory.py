"""Saving and loading: plain LoRA at the root, a verified memory beside it, and a life that goes on unchanged."""

import json
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from slmc_helpers import disturb, live, logits, same, slmc_config, tiny_base, tiny_model
from transformers import AutoModelForCausalLM

from hf_lifealign import load_adapter
from hf_lifealign.slmc import Memory, SLMCMemoryError
from hf_lifealign.slmc.memory import public_name

SPACES = ["factors", "delta"]


@pytest.fixture
def saved(tmp_path):
    model = tiny_model(space="delta")
    live(model, 2)
    model.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("memory_rank", [None, 2])
def test_a_saved_and_loaded_life_equals_one_that_never_left(tmp_path, space, memory_rank):
    model = tiny_model(space=space, memory_rank=memory_rank)
    live(model, 3)
    model.save_pretrained(tmp_path)
    again = load_adapter(tiny_base(), tmp_path)
    assert same(model.memory.tensors(), again.memory.tensors())
    assert again.memory.entries == model.memory.entries
    assert again.peft_config["default"].slmc_settings() == model.peft_config["default"].slmc_settings()
    live(model, 2, first=3)
    live(again, 2, first=3)
    assert same(model.memory.tensors(), again.memory.tensors())
    assert same(dict(model.state_dict()), dict(again.state_dict()))


@pytest.mark.parametrize("space", SPACES)
def test_running_task_is_saved_with_its_start(tmp_path, space):
    model = tiny_model(space=space)
    live(model, 1)
    model.begin_task("second", phase="sft")
    disturb(model, 3)
    model.save_pretrained(tmp_path)
    again = load_adapter(tiny_base(), tmp_path)
    assert (again.memory.running.task, again.memory.running.phase) == ("second", "sft")
    model.consolidate()
    again.consolidate()
    assert same(dict(model.state_dict()), dict(again.state_dict()))


def test_equal_lives_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        model = tiny_model(target_modules=["v_proj", "o_proj", "q_proj"])
        live(model, 2)
        model.save_pretrained(tmp_path / name)
    for file in ("adapter_model.safetensors", "adapter_config.json", "slmc/memory.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    header = json.loads((tmp_path / "one" / "slmc" / "memory.json").read_text())
    assert header["entries"][-1]["adapter_sha256"] == header["adapter"]["fingerprint"]
    assert not list((tmp_path / "one" / "slmc").glob(".*"))


PLAIN_LOAD = """
import sys, warnings
class Block:
    def find_spec(self, name, *rest):
        if name.split(".")[0] == "hf_lifealign":
            raise ImportError(name)
sys.meta_path.insert(0, Block())
warnings.simplefilter("error", UserWarning)
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out = sys.argv[1:]
ids = torch.arange(12).reshape(2, 6)
for load in ("peft", "transformers"):
    model = AutoModelForCausalLM.from_pretrained(base)
    if load == "peft":
        model = PeftModel.from_pretrained(model, adapter)
    else:
        model.load_adapter(adapter)
    model.eval()
    with torch.no_grad():
        torch.save(model(input_ids=ids).logits, f"{out}/{load}.pt")
"""


@pytest.mark.parametrize("space", SPACES)
def test_loads_as_plain_lora_where_the_package_is_missing(tmp_path, space):
    tiny_base().save_pretrained(tmp_path / "base")
    model = tiny_model(space=space)
    live(model, 2)
    model.save_pretrained(tmp_path / "adapter")
    arguments = [str(tmp_path / "base"), str(tmp_path / "adapter"), str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", PLAIN_LOAD, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for load in ("peft", "transformers"):
        assert torch.allclose(torch.load(tmp_path / f"{load}.pt"), logits(model), atol=1e-5)


def test_transformers_and_ids_as_base(tmp_path):
    tiny_base().save_pretrained(tmp_path / "base")
    model = tiny_model()
    live(model, 1)
    model.save_pretrained(tmp_path / "adapter")
    loaded = load_adapter(str(tmp_path / "base"), str(tmp_path / "adapter"), is_trainable=False)
    assert torch.allclose(logits(loaded), logits(model), atol=1e-6)
    assert not any(p.requires_grad for p in loaded.parameters())
    with pytest.raises(ValueError, match="frozen"):
        loaded.begin_task("x")
    native = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    native.add_adapter(slmc_config())
    native.save_pretrained(tmp_path / "native")
    assert json.loads((tmp_path / "native" / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_named_adapter_is_loaded_from_its_folder(tmp_path):
    model = tiny_model()
    live(model, 1)
    model.save_pretrained(tmp_path)
    named = load_adapter(tiny_base(), tmp_path, adapter_name="policy")
    assert named.base_model.memory_adapter == "policy"
    assert same(named.memory.tensors(), model.memory.tensors())


def test_truncated_tensors(saved):
    path = saved / "slmc" / "memory.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(SLMCMemoryError, match=r"memory\.safetensors does not match the sha256"):
        load_adapter(tiny_base(), saved)


def test_flipped_bit(saved):
    path = saved / "slmc" / "memory.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(SLMCMemoryError, match=r"memory\.safetensors"):
        load_adapter(tiny_base(), saved)


def edit(path, change):
    header = json.loads(path.read_text())
    change(header)
    path.write_text(json.dumps(header))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(format_version=99), "format version 99"),
        (lambda h: h["slmc"].update(projection_weight=0.1), "was edited"),
        (lambda h: h.pop("entries"), "keys"),
        (lambda h: h.update(format="other"), "not an SLMC memory"),
    ],
)
def test_edited_header(saved, change, message):
    edit(saved / "slmc" / "memory.json", change)
    with pytest.raises(SLMCMemoryError, match=message):
        load_adapter(tiny_base(), saved)


def test_truncated_header(saved):
    path = saved / "slmc" / "memory.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(SLMCMemoryError, match=r"memory\.json is not valid JSON"):
        load_adapter(tiny_base(), saved)


def test_missing_tensors(saved):
    (saved / "slmc" / "memory.safetensors").unlink()
    with pytest.raises(SLMCMemoryError, match="is missing beside"):
        load_adapter(tiny_base(), saved)


@pytest.mark.parametrize("overrides", [{"vocab_size": 65}, {"num_hidden_layers": 3}, {"intermediate_size": 50}])
def test_other_base_model(tmp_path, overrides):
    model = tiny_model(target_modules=["q_proj"])
    live(model, 1)
    model.save_pretrained(tmp_path)
    if "intermediate_size" in overrides:
        load_adapter(tiny_base(**overrides), tmp_path)  # nothing the adapter touches has changed
        return
    with pytest.raises(SLMCMemoryError, match="another base model"):
        load_adapter(tiny_base(**overrides), tmp_path)


def test_other_adapter_weights(saved):
    path = saved / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[next(iter(tensors))] += 1e-3
    save_file(tensors, path)
    with pytest.raises(SLMCMemoryError, match="other LoRA weights"):
        load_adapter(tiny_base(), saved)


def test_folder_without_memory_is_explained(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    (tmp_path / "slmc" / "memory.json").unlink()
    with pytest.raises(SLMCMemoryError, match=r"PeftModel\.from_pretrained"):
        load_adapter(tiny_base(), tmp_path)
    started = PeftModel.from_pretrained(tiny_base(), tmp_path, is_trainable=True, config=slmc_config())
    live(started, 1)
    assert started.memory.length == 1


def test_pickles_are_neither_read_nor_written_beside_a_memory(tmp_path):
    model = tiny_model()
    with pytest.raises(SLMCMemoryError, match="safe_serialization"):
        model.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(SLMCMemoryError, match="never read"):
        load_adapter(tiny_base(), tmp_path)


def test_neither_folder_nor_repository(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a folder nor a Hub repository"):
        load_adapter(tiny_base(), str(tmp_path / "missing" / "adapter"))


def test_space_of_a_history_cannot_change(saved):
    model = tiny_model(space="factors")
    with pytest.raises(SLMCMemoryError, match="set space='delta'"):
        model.attach_memory(Memory.load(saved / "slmc"))


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B"),
        ("gpt2", "gpt2"),
        ("/data/models/llama", "llama"),
        ("./models/llama/", "llama"),
        ("~/llama", "llama"),
        ("C:\\models\\llama", "llama"),
        ("", None),
        (None, None),
    ],
)
def test_local_paths_are_not_published(name, public):
    assert public_name(name) == public
