"""The strategy "routed_memory" in a life, and what is loaded of it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from support.life import Stop, life_files, slmc, swapped, tiny_life
from support.tiny import preference_rows, tiny_model, tiny_tokenizer, write_jsonl

from hf_lifealign import LifelongTrainer, Strategy, Task, TaskStream, load_routed
from hf_lifealign.lifelong import examiner
from hf_lifealign.lifelong.evaluation import generate_answers
from hf_lifealign.routing import Gate
from hf_lifealign.strategies import resolve_strategies


class OtherRoutes(Strategy):
    """Routes prompts too."""

    name = "other"

    def routes(self, run: Any, rows: Any) -> list[str] | None:
        return ["one"] * len(rows)


def asked(word: str, count: int, start: int = 0) -> Dataset:
    """Rows whose prompts begin with a word."""
    rows = preference_rows(count, start=start)
    for row in rows:
        row["prompt"][0]["content"] = f"{word} {word} {row['prompt'][0]['content']}"
    return Dataset.from_list(rows)


def stream() -> TaskStream:
    """Three tasks whose prompts look different; the second one wants the opposite of the others."""
    words = ("alpha", "omega", "kappa")
    tasks = []
    for i, word in enumerate(words):
        rows = [asked(word, 12, 40 * i), asked(word, 6, 40 * i + 20)]
        if i == 1:
            rows = [swapped(each) for each in rows]
        tasks.append(Task(word, *rows))
    return TaskStream(tasks)


def life(folder: Path, given: TaskStream | None = None, lean: float = 0.25, **options: Any) -> LifelongTrainer:
    options = {"warm_start": False} | options
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    strategies = [{"name": "routed_memory", "lean": lean}]
    return tiny_life(folder, given or stream(), strategies=strategies, peft_config=config, **options)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("routed") / "run"
    return folder, life(folder).train()


def test_what_contradicts_itself_is_kept_where_prompts_tell_it_apart(lived: Any, tmp_path: Path) -> None:
    kept = lived[1]["matrices"]["margin"]
    assert lived[1]["matrices"]["preference_accuracy"] == [[1.0], [1.0, 1.0], [1.0, 1.0, 1.0]]
    assert min(kept[1][0], kept[2][0]) > 0.8 * kept[0][0]
    assert kept[2][1] > 0.8 * kept[1][1]
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    plain = tiny_life(tmp_path, stream(), strategies=[], peft_config=config, warm_start=False).train()
    lost = plain["matrices"]["margin"]
    assert lost[1][0] < 0.5 * lost[0][0]
    assert lost[2][1] < 0.5 * lost[1][1]


def test_the_published_adapter_is_the_mean_of_the_updates(lived: Any) -> None:
    folder = lived[0]
    updates = [load_file(folder / "routed_memory" / f"0{i + 1}-{name}.safetensors")
               for i, name in enumerate(stream().names)]  # fmt: skip
    final = load_file(folder / "adapters" / "03-kappa" / "adapter_model.safetensors")
    for name in (name for name in final if "lora_A" in name):
        a, b = (key.replace(".weight", ".default.weight") for key in (name, name.replace("lora_A", "lora_B")))
        dense = sum(u[b] @ u[a] for u in updates) / 3
        left_out = float(torch.linalg.svdvals(dense)[4:].square().sum() / dense.square().sum())
        product = final[name.replace("lora_A", "lora_B")] @ final[name]
        assert float((product - dense).square().sum() / dense.square().sum()) == pytest.approx(left_out, abs=1e-5)
    files = sorted(path.name for path in (folder / "routed_memory").iterdir())
    assert files == ["01-alpha.safetensors", "02-omega.safetensors", "03-kappa.safetensors",
                     "gate-03-kappa.safetensors", "initial.safetensors"]  # fmt: skip


def test_loaded_it_answers_as_in_the_life(lived: Any, tmp_path: Path) -> None:
    """Each prompt by the view of its task, PEFT's own mixed batches, and views as plain adapters on disk."""
    folder = lived[0]
    policy = load_routed(tiny_model(), folder / "adapters" / "03-kappa", tiny_tokenizer())
    rows = [row for task in stream() for row in task.load().test]
    prompts = [row["prompt"] for row in rows]
    tasks = policy.route(prompts)
    assert tasks == [name for name in stream().names for _ in range(6)]
    answers = policy.generate(prompts, max_new_tokens=4, batch_size=3)
    assert policy.model.active_adapters == ["default"]
    assert not [name for name, parameter in policy.model.named_parameters() if parameter.requires_grad]
    for i, name in enumerate(stream().names):
        policy.model.set_adapter(policy.adapters[name])
        told = generate_answers(policy.model, policy.tokenizer, rows[6 * i : 6 * i + 6], 4, 6)
        assert answers[6 * i : 6 * i + 6] == told
    swapped_views = policy.generate(prompts[:2], max_new_tokens=4, tasks=["omega", "alpha"])
    policy.model.set_adapter(policy.adapters["omega"])
    assert swapped_views[0] == generate_answers(policy.model, policy.tokenizer, rows[:1], 4, 1)[0]
    assert swapped_views[1] == answers[1]
    for tasks, match in ((["omega"], "2 prompts and 1 tasks"), (["omega", "beta"], r"among them \['beta'\]")):
        with pytest.raises(ValueError, match=match):
            policy.generate(prompts[:2], tasks=tasks)
    policy.model.set_adapter("default")
    batch = policy.tokenizer(["alpha", "omega"], return_tensors="pt", padding=True)
    mixed = policy.model(**batch, adapter_names=[policy.adapters[name] for name in ("alpha", "omega")]).logits
    policy.model.set_adapter(policy.adapters["omega"])
    torch.testing.assert_close(mixed[1], policy.model(**batch).logits[1])

    policy.model.save_pretrained(tmp_path)
    for name in policy.adapters.values():
        assert (tmp_path / name / "adapter_model.safetensors").is_file()


def test_whoever_knows_the_task_asks_no_gate(lived: Any, tmp_path: Path) -> None:
    """The same training; each learnt task's prompts go to its own view, and those of nobody to the gate."""
    samples = {"sample_prompts": ["alpha alpha tell me"], "evaluate_all_tasks": True}
    mixed = [row for task in stream() for row in task.load().test]
    given = stream()
    told = TaskStream([Task(t.name, t.load().train, Dataset.from_list(mixed[i::3])) for i, t in enumerate(given)])
    strategies = [{"name": "routed_memory", "lean": 0.25, "task_known": True}]
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    options = {"peft_config": config, "warm_start": False} | samples
    known, asked_gate = tmp_path / "known", tmp_path / "gate"
    tiny_life(known, told, strategies=strategies, **options).train()
    life(asked_gate, told, **samples).train()
    for folder in (known, asked_gate):
        assert (
            life_files(folder)["adapters/03-kappa/adapter_model.safetensors"]
            == life_files(lived[0])["adapters/03-kappa/adapter_model.safetensors"]
        )

    def routes(folder: Path, after: str, task: str) -> dict[str, int]:
        found: dict[str, int] = json.loads((folder / "evaluation" / after / f"{task}.json").read_text())["routes"]
        return found

    assert routes(known, "after-03-kappa", "omega") == {"omega": 6}
    assert len(routes(asked_gate, "after-03-kappa", "omega")) > 1
    assert routes(known, "after-01-alpha", "omega") == {"alpha": 6}, "not learnt yet: the gate knows one task"
    with pytest.raises(ValueError, match="true or false"):
        resolve_strategies([{"name": "routed_memory", "task_known": "maybe"}])
    assert "task_known" not in resolve_strategies(["routed_memory"])[0].settings()


def test_evaluations_are_of_the_views(lived: Any) -> None:
    from hf_lifealign._files import read_json
    from hf_lifealign.lifelong.evaluation import pair_margins
    from hf_lifealign.lifelong.scoring import encode_pairs, score_pairs

    folder = lived[0]
    policy = load_routed(tiny_model(), folder / "adapters" / "02-omega", tiny_tokenizer())
    assert policy.gate.tasks == ("alpha", "omega")
    pairs = encode_pairs(stream()["alpha"].load().test, tiny_tokenizer(), 1024)
    with policy.model.disable_adapter():
        reference = score_pairs(policy.model, pairs, 0)
    policy.model.set_adapter(policy.adapters["alpha"])
    margins = pair_margins(score_pairs(policy.model, pairs, 0), reference)
    kept = read_json(folder / "evaluation" / "after-02-omega" / "alpha.json")
    assert kept["routes"] == {"alpha": 6}
    told = kept["pair_margins"]
    assert told == pytest.approx(margins, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("warm_start", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_interrupted_life_ends_as_one_that_was_not(warm_start: bool, tmp_path: Path) -> None:
    life(tmp_path / "whole", warm_start=warm_start).train()
    with pytest.raises(KeyboardInterrupt):
        life(tmp_path / "broken", warm_start=warm_start, callbacks=[Stop()]).train()
    life(tmp_path / "broken", warm_start=warm_start).train()
    whole, broken = (life_files(tmp_path / run) for run in ("whole", "broken"))
    assert set(whole) == set(broken)
    told = [file for file in whole if file.endswith(".safetensors") or file.startswith(("evaluation", "matrix"))]
    assert not [file for file in told if whole[file] != broken[file]]


def test_killed_in_an_evaluation_it_goes_on_with_the_gate_of_that_task(
    lived: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = examiner.score_pairs

    def dying(*args: Any, **kwargs: Any) -> Any:
        if (tmp_path / "work" / "02-omega" / "after-preference").is_dir():
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(examiner, "score_pairs", dying)
    with pytest.raises(KeyboardInterrupt):
        life(tmp_path).train()
    monkeypatch.setattr(examiner, "score_pairs", real)
    assert life(tmp_path).train()["matrices"]["margin"] == lived[1]["matrices"]["margin"]


def test_a_life_goes_on_elsewhere(lived: Any, tmp_path: Path) -> None:
    names = stream().names
    folder = lived[0] / "adapters" / "02-omega"
    life(tmp_path, TaskStream([stream()[names[2]]]), continue_from=str(folder)).train()
    final = [load_file(run / "adapters" / "03-kappa" / "adapter_model.safetensors") for run in (lived[0], tmp_path)]
    for name in final[0]:
        torch.testing.assert_close(final[1][name], final[0][name], rtol=1e-4, atol=1e-5)


def test_judges_and_samples_ask_the_views(tmp_path: Path) -> None:
    heard: list[str] = []

    def length(prompts: Any, texts: Any, references: Any) -> list[float]:
        heard.extend(prompts)
        return [float(len(text)) for text in texts]

    run = life(tmp_path, TaskStream(list(stream())[:2]), judges={"length": length}, sample_prompts=["alpha alpha"])
    matrix = run.train()
    assert set(matrix["matrices"]) >= {"length"}
    assert any("omega" in prompt for prompt in heard)
    policy = load_routed(tiny_model(), tmp_path / "adapters" / "02-omega", tiny_tokenizer())
    rows = stream()["omega"].load().test
    answers = policy.generate(rows["prompt"], max_new_tokens=run.args.max_new_tokens)
    assert matrix["matrices"]["length"][1][1] == pytest.approx(sum(map(len, answers)) / len(answers), rel=1e-6)
    policy.model.set_adapter("default")
    mean = generate_answers(policy.model, policy.tokenizer, list(rows), run.args.max_new_tokens, 6)
    assert answers != mean
    (sample,) = json.loads((tmp_path / "samples.json").read_text())["after"]
    messages = [{"role": "user", "content": "alpha alpha"}]
    assert policy.generate([messages], max_new_tokens=run.args.max_new_tokens) == [sample]


def test_without_a_padding_token_from_a_relative_path_and_for_nobody(
    lived: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    monkeypatch.chdir(lived[0] / "adapters")
    policy = load_routed(tiny_model(), "03-kappa", tokenizer)
    assert tokenizer.pad_token is None
    messages = [{"role": "user", "content": "omega omega item 3?"}]
    assert len(policy.generate([messages, "alpha"], max_new_tokens=2)) == 2
    assert policy.route([]) == policy.generate([]) == []


def test_a_ridge_that_is_set_anew_counts(lived: Any, tmp_path: Path) -> None:
    folder = lived[0] / "adapters" / "02-omega"
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    strategies = [{"name": "routed_memory", "lean": 0.25, "ridge": 5.0}]
    tiny_life(tmp_path, TaskStream([stream()["kappa"]]), strategies=strategies, peft_config=config, warm_start=False,
              continue_from=str(folder)).train()  # fmt: skip
    gate, _ = Gate.load(tmp_path / "routed_memory" / "gate-03-kappa.safetensors")
    assert gate.ridge == 5.0


def test_what_does_not_fit_is_refused(lived: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'consolidation' needs what the task itself has left"):
        tiny_life(tmp_path / "a", strategies=["routed_memory", "consolidation"], peft_config=slmc())
    with pytest.raises(ValueError, match="each say which view"):
        tiny_life(tmp_path / "c", stream(), strategies=["routed_memory", OtherRoutes()], warm_start=False,
                  peft_config=LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")).train()  # fmt: skip
    for more in ({"target_modules": ["q_proj", "embed_tokens"]}, {"target_modules": ["q_proj"], "lora_bias": True}):
        config = LoraConfig(r=4, task_type="CAUSAL_LM", **more)
        with pytest.raises(ValueError, match="it trains"):
            tiny_life(tmp_path / f"d{len(more)}", stream(), strategies=["routed_memory"], peft_config=config).train()
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    for other in ("ewc", "weighed_memory"):
        with pytest.raises(ValueError, match="begins each task with the adapter as it was made"):
            tiny_life(tmp_path / "e", stream(), strategies=["routed_memory", other], peft_config=config)
    for option, value in (("lean", 1.5), ("lean", -0.1), ("ridge", 0)):
        with pytest.raises(ValueError, match=f"{option}={value}"):
            resolve_strategies([{"name": "routed_memory", option: value}])
    with pytest.raises(FileNotFoundError, match="no routed memory"):
        load_routed(tiny_model(), tmp_path, tiny_tokenizer())
    with pytest.raises(ValueError, match="the base that the life began with"):
        load_routed(tiny_model(hidden_size=64), lived[0] / "adapters" / "03-kappa", tiny_tokenizer())
    copy = shutil.copytree(lived[0], tmp_path / "copy")
    for file in copy.rglob("strategies/**/02-omega.safetensors"):
        file.unlink()
    with pytest.raises(ValueError, match="lacks"):
        load_routed(tiny_model(), copy / "adapters" / "03-kappa", tiny_tokenizer())


def test_the_ablation_tells_parts_apart(tiny_dir: str, tmp_path: Path) -> None:
    """The benchmark's script: what gate and views do, from a finished life."""
    stream_file = tmp_path / "rows"
    for task in stream():
        (stream_file / task.name).mkdir(parents=True)
        write_jsonl(stream_file / task.name / "validation.jsonl", list(task.load().test))
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    tiny_life(tmp_path / "run", stream(), strategies=["routed_memory"], peft_config=config, warm_start=False,
              model=tiny_dir).train()  # fmt: skip
    line = [sys.executable, "benchmarks/stream/ablate.py", str(tmp_path / "run"), str(stream_file), "--model", tiny_dir]
    done = subprocess.run(line, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "ablation.json").read_text())
    names = {"one adapter, the mean", "task known, lean 0.00", "gate, lean 0.00", "task known, lean 0.33"}
    assert set(told["accuracy"]) == names | {"gate, lean 0.33"}
    assert told["accuracy"]["gate, lean 0.33"] == dict.fromkeys(stream().names, 1.0)
    assert told["routes"]["omega"] == {"alpha": 0, "omega": 6, "kappa": 0}
