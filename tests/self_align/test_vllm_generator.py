"""The generator for vLLM, over a stand-in of vLLM's documented signatures: it has not been run on vLLM itself."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from support.fake_vllm import fake_vllm
from support.tiny import tiny_model, tiny_tokenizer

from hf_lifealign.self_align.config import SelfAlignConfig, read_config
from hf_lifealign.self_align.generators import (
    Call,
    CallCache,
    GeneratorError,
    Sampling,
    TransformersGenerator,
    VLLMGenerator,
)

PROMPTS = ("Hi", "What is it, and why?", "Write.")


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = fake_vllm()
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def test_it_says_what_transformers_says(vllm: Any, tiny_dir: str) -> None:
    """The likeliest tokens, plain and through the chat template; both put the same tokens in."""
    for chat in (False, True):
        call = Call(PROMPTS, Sampling(temperature=0, max_new_tokens=10), 0)
        local = TransformersGenerator(tiny_model(), tiny_tokenizer(), chat=chat)
        found = VLLMGenerator(tiny_dir, chat=chat).generate(call)
        assert found == local.generate(call)
        assert [row["prompt_token_ids"] for row in vllm.LLM.asked[-1][0]] == local._ids(PROMPTS)


def test_what_vllm_is_given(vllm: Any, tiny_dir: str) -> None:
    generator = VLLMGenerator(tiny_dir, dtype="float16", max_model_len=400, gpu_memory_utilization=0.5)
    assert not vllm.LLM.made, "the model is not loaded before it is needed"
    generator.generate(Call(PROMPTS, Sampling(0.5, 0.9, 7, stop=("###",)), 2**60 + 3))
    generator.generate(Call(PROMPTS[:1], Sampling(), 1))
    (made,) = vllm.LLM.made
    assert made == {
        "model": tiny_dir, "dtype": "float16", "seed": 0, "revision": None, "tokenizer_revision": None,
        "tokenizer": None, "load_format": "safetensors", "trust_remote_code": False, "tensor_parallel_size": 1,
        "max_model_len": 400, "gpu_memory_utilization": 0.5,
    }  # fmt: skip
    settings = vllm.LLM.asked[0][1]
    assert {(s.n, s.temperature, s.top_p, s.top_k, s.max_tokens, *s.stop) for s in settings} == {
        (1, 0.5, 0.9, 0, 7, "###")
    }
    assert len({s.seed for s in settings}) == 3
    assert all(0 <= s.seed < 2**31 for s in settings)
    plain = VLLMGenerator(tiny_dir)
    plain.generate(Call(PROMPTS[:1], Sampling(max_new_tokens=1), 1))
    assert vllm.LLM.made[1]["gpu_memory_utilization"] == 0.92, "what is not set stays vLLM's own"


def test_the_same_call_means_the_same_texts(vllm: Any, tiny_dir: str) -> None:
    generator = VLLMGenerator(tiny_dir)
    same = ("Hi", "Hi", "Hi")
    found = generator.generate(Call(same, Sampling(max_new_tokens=9), 5))
    assert generator.generate(Call(same, Sampling(max_new_tokens=9), 5)) == found
    assert generator.generate(Call(same, Sampling(max_new_tokens=9), 6)) != found
    assert len({each.text for each in found}) == 3, "each prompt of a call is drawn for itself"
    assert {each.tokens for each in found if not each.finished} <= {9}


def test_how_texts_end(vllm: Any, tiny_dir: str) -> None:
    generator = VLLMGenerator(tiny_dir)
    whole = generator.generate(Call(("Hi",), Sampling(0, 1.0, 12), 0))[0]
    assert (whole.finished, whole.tokens) == (False, 12)
    stop = whole.text[3:5]
    cut = generator.generate(Call(("Hi",), Sampling(0, 1.0, 12, stop=(stop,)), 0))[0]
    assert cut.finished
    assert cut.text == whole.text[: whole.text.index(stop)]
    vllm.LLM.ends_as = "abort"
    with pytest.raises(GeneratorError, match=r"broke a text off \(abort\)"):
        generator.generate(Call(("Hi",), Sampling(), 0))


def test_what_vllm_cannot_do_is_refused_before(vllm: Any, tiny_dir: str) -> None:
    generator = VLLMGenerator(tiny_dir, max_model_len=300)
    generator.refuse_too_long([], Sampling())
    generator.refuse_too_long(["a" * 100], Sampling(max_new_tokens=200))
    with pytest.raises(ValueError, match=r"100 tokens, its answer up to 201, and the model reads 300.*compact"):
        generator.refuse_too_long(["a", "a" * 100], Sampling(max_new_tokens=201))
    with pytest.raises(ValueError, match="the model reads 512"):
        VLLMGenerator(tiny_dir).refuse_too_long(["a" * 312], Sampling(max_new_tokens=201))
    for sampling, told in (
        (Sampling(no_repeat_ngram_size=6), "no_repeat_ngram_size=6, which vLLM does not know"),
        (Sampling(temperature=0.001), "temperature=0.001. vLLM draws with 0, or 0.01 to 2"),
        (Sampling(temperature=2.5), "temperature=2.5"),
    ):
        for refused in (lambda s: generator.refuse_too_long([], s), lambda s: generator.generate(Call(("a",), s, 0))):
            with pytest.raises(ValueError, match=told):
                refused(sampling)
    assert not vllm.LLM.made


def test_its_identity(vllm: Any, tiny_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = Path(shutil.copytree(tiny_dir, tmp_path / Path(tiny_dir).name))
    told = VLLMGenerator(tiny_dir).identity()
    assert told.startswith("vllm 0.31.0 tiny-llama sha256:")
    assert told.endswith(" auto plain 256 1")
    assert VLLMGenerator(str(moved)).identity() == told, "where a folder lies is not what it holds"
    assert str(tiny_dir) not in told
    others = {VLLMGenerator(tiny_dir, chat=True).identity(), VLLMGenerator(tiny_dir, dtype="bfloat16").identity(),
              VLLMGenerator(tiny_dir, batch_size=8).identity()}  # fmt: skip
    vllm.__version__ = "0.31.1"
    others.add(VLLMGenerator(tiny_dir).identity())
    vllm.__version__ = "0.31.0"
    tiny_model(1).save_pretrained(moved)
    others.add(VLLMGenerator(str(moved)).identity())
    assert len(others | {told}) == 6
    assert not vllm.LLM.made


def test_the_commit_that_a_name_means_is_what_is_loaded(
    vllm: Any, tiny_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    config, tokenizer = transformers.AutoConfig.from_pretrained(tiny_dir), tiny_tokenizer()
    config._commit_hash = "c0ffee" * 6 + "abcd"
    asked: list[Any] = []

    def load(kind: str, made: Any) -> Any:
        return lambda path, revision=None, **given: asked.append((kind, path, revision)) or made

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", load("config", config))
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", load("tokenizer", tokenizer))
    generator = VLLMGenerator("me/model", revision="v1")
    assert asked == [("config", "me/model", "v1"), ("tokenizer", "me/model", config._commit_hash)]
    assert generator.identity() == f"vllm 0.31.0 me/model {config._commit_hash} auto plain 256 1"
    vllm.LLM.__init__ = lambda self, **given: vllm.LLM.made.append(given)
    assert generator._model is generator._model
    assert vllm.LLM.made[0]["revision"] == vllm.LLM.made[0]["tokenizer_revision"] == config._commit_hash


def test_kept_calls_are_found_again(vllm: Any, tiny_dir: str, tmp_path: Path) -> None:
    cache = CallCache(VLLMGenerator(tiny_dir, batch_size=2), tmp_path)
    found = list(cache.texts(PROMPTS, Sampling(max_new_tokens=4), 3))
    assert (len(found), cache.made) == (3, 2)
    again = CallCache(VLLMGenerator(tiny_dir, batch_size=2), tmp_path)
    assert list(again.texts(PROMPTS, Sampling(max_new_tokens=4), 3)) == found
    assert (again.made, len(vllm.LLM.made)) == (0, 1), "nor was the model loaded again"


def test_failures(vllm: Any, tiny_dir: str, tmp_path: Path) -> None:
    generator = VLLMGenerator(tiny_dir)
    vllm.LLM.breaks = RuntimeError("EngineCore died\nCUDA out of memory")
    with pytest.raises(GeneratorError, match="gave no texts: EngineCore died CUDA out of memory"):
        generator.generate(Call(("Hi",), Sampling(), 0))
    vllm.LLM.breaks = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        generator.generate(Call(("Hi",), Sampling(), 0))
    with pytest.raises(ValueError, match=r"vLLM cannot load .*: not so many GPUs\. Set another model"):
        VLLMGenerator(tiny_dir, tensor_parallel_size=2).generate(Call(("Hi",), Sampling(), 0))
    for given in ({"batch_size": 0}, {"tensor_parallel_size": 0}, {"max_model_len": 1}):
        with pytest.raises(ValueError, match="Set at least 1, at least 1, and at least 2"):
            VLLMGenerator(tiny_dir, **given)
    with pytest.raises(ValueError, match=r"gpu_memory_utilization=1\.5"):
        VLLMGenerator(tiny_dir, gpu_memory_utilization=1.5)
    with pytest.raises(ValueError, match="config and tokenizer cannot be loaded"):
        VLLMGenerator(str(tmp_path))
    bare = tmp_path / "bare"
    shutil.copytree(tiny_dir, bare)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        VLLMGenerator(str(bare), chat=True)


def test_a_recipe_names_it(vllm: Any, tiny_dir: str, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"model: {tiny_dir}\ngenerator: {{backend: vllm, chat: true, batch_size: 32}}\n")
    made: Any = read_config(recipe, output_dir=str(tmp_path / "run")).load_generator()
    assert isinstance(made, VLLMGenerator)
    assert (made.chat, made.batch_size, made.path, made.concurrency) == (True, 32, tiny_dir, 1)
    with pytest.raises(ValueError, match="You set 'device' in generator"):
        SelfAlignConfig("run", tiny_dir, generator={"backend": "vllm", "device": "cpu"}).load_generator()
    with pytest.raises(ValueError, match=r"one of \['transformers', 'vllm', 'server'\]"):
        SelfAlignConfig("run", tiny_dir, generator={"backend": "vlm"})


def test_without_vllm(tiny_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match=r"vLLM cannot be imported.*`pip install vllm`.*backend: server"):
        SelfAlignConfig("run", tiny_dir, generator={"backend": "vllm"}).load_generator()
