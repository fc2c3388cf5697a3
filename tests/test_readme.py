"""What the README and the pages it links to claim, run: their scripts, loading lines, commands and links."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.life import tiny_life
from support.tiny import preference_rows, tiny_model, write_jsonl

from hf_lifealign.compare.figures import Margins, compared
from hf_lifealign.lifelong.adapters import default_adapter_type
from hf_lifealign.strategies import resolve_strategies

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {page.stem: page.read_text() for page in (ROOT / "docs").glob("*.md")}
EVERYTHING = {"README.md": README} | {f"docs/{name}.md": text for name, text in PAGES.items()}


def scripts(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def commands(text: str) -> list[str]:
    return re.findall(r"^(?:lifealign|accelerate launch) .*$", text, flags=re.MULTILINE)


SCRIPT, LOADING = scripts(README)
[PUBLISHED], [STEERED], [WATCHED], [PRINCIPLED] = (
    scripts(PAGES[page]) for page in ("hub", "meta_aligner", "dynamics", "self_align")
)


def test_the_script_and_what_it_leaves(tmp_path: Path, tiny_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Word for word, but for the model's name and the arguments that keep a tiny CPU run short."""
    monkeypatch.chdir(tmp_path)
    for name, start in (("helpful", 0), ("harmless", 50)):
        write_jsonl(Path("data") / name / "train.jsonl", preference_rows(8, start=start))
        write_jsonl(Path("data") / name / "test.jsonl", preference_rows(4, start=start + 20))
    short = "bf16=False, use_cpu=True, gradient_checkpointing=False, disable_tqdm=True, "
    script = SCRIPT.replace("Qwen/Qwen2.5-0.5B-Instruct", tiny_dir).replace('"unused", ', f'"unused", {short}')
    assert short in script
    scope: dict[str, Any] = {"base": tiny_model()}
    exec(script, scope)
    run = Path("runs/assistant")
    for name in ("adapters/01-helpful", "adapters/02-harmless", "matrix.json", "matrix.png", "curves.png", "report.md"):
        assert (run / name).exists(), name
    first, second = LOADING.rsplit("model = ", 1)
    exec(first, scope)
    plain = scope["model"]
    assert plain.peft_config["default"].peft_type == "LORA"
    scope["base"] = tiny_model()
    exec("model = " + second, scope)
    assert scope["model"].peft_config["default"].peft_type == "SLMC"
    assert scope["model"].base_model.memory.entries[-1]["task"] == "harmless"


PRELUDE = """
import sys
from peft import PeftModel
from hf_lifealign import load_adapter
from support.tiny import tiny_model
base = tiny_model()
"""


def test_publishing_and_going_on(tmp_path: Path, tiny_dir: str) -> None:
    """The commands, each in a process of its own, against a Hub on this machine; then the Python lines."""
    from support.hub_server import HubServer, client_environment

    recipe: dict[str, Any] = {
        "model": tiny_dir,
        "output_dir": "runs/assistant",
        "adapter": {"r": 2, "target_modules": ["q_proj"]},
        "training": {"num_train_epochs": 1, "gradient_checkpointing": False, "bf16": False, "use_cpu": True},
    }
    for number, name in enumerate(("helpful", "harmless", "kind")):
        for split, start in (("train", 0), ("test", 50)):
            write_jsonl(tmp_path / name / f"{split}.jsonl", preference_rows(6, chosen=name, start=100 * number + start))
    tasks = [
        {"name": n, "train": f"{n}/train.jsonl", "test": f"{n}/test.jsonl"} for n in ("helpful", "harmless", "kind")
    ]
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(recipe | {"tasks": tasks[:2]}))
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(recipe | {"tasks": tasks[2:]}))
    with HubServer() as hub:
        environment = client_environment(hub, tmp_path / "home") | {"PYTHONPATH": str(ROOT / "tests")}

        def run(*command: str) -> str:
            done = subprocess.run(
                [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr[-3000:]
            return done.stdout

        run("-m", "hf_lifealign.cli.main", "run", "first.yaml")
        told = [run("-m", "hf_lifealign.cli.main", *line.split()[1:]) for line in commands(PAGES["hub"])]
        assert told[0].count("sent") == 2
        assert "all is well" in told[5]
        run("-c", PRELUDE + PUBLISHED.replace("load_adapter(base,", "load_adapter(tiny_model(),"))
        repo = hub.repo("me/assistant-lifelong")
        assert set(repo.tags) == {"task-01-helpful", "task-02-harmless"}
        assert (tmp_path / "runs" / "more" / "adapters" / "03-kind").is_dir()
        assert "bwt.py" in hub.repo("me/bwt", repo_type="space").files("main")


def test_a_policy_steered_by_weights(tmp_path: Path, tiny_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script word for word, but for the model, the embedding and the arguments that keep a tiny CPU run short."""
    from support.tiny_encoder import save_tiny_encoder

    monkeypatch.chdir(tmp_path)
    for name, start in (("helpful", 0), ("harmless", 50)):
        write_jsonl(Path("data") / name / "train.jsonl", preference_rows(8, start=start))
    short = "bf16=False, use_cpu=True, gradient_checkpointing=False, max_completion_length=6, num_rounds=1, "
    script = STEERED.replace("Qwen/Qwen2.5-0.5B-Instruct", tiny_dir).replace('"runs/meal", l', f'"runs/meal", {short}l')
    encoder = save_tiny_encoder(tmp_path / "encoder")
    script = script.replace("name=name)", f"name=name, embedding={encoder!r})")
    assert short in script
    assert encoder in script
    scope: dict[str, Any] = {}
    exec(script, scope)
    assert scope["policy"].objective_names == ["helpful", "harmless"]
    assert Path("runs/meal/meta_aligner/meta_aligner.safetensors").is_file()


def test_the_recipe_and_its_front(tmp_path: Path, tiny_dir: str) -> None:
    """Both lines, each in a process of its own; the recipe on the tiny model, with rewards that need no fitting."""
    launch, front = commands(PAGES["meta_aligner"])
    for task in ("detailed", "harmless"):
        for split, rows in (("train", 4), ("test", 2)):
            folder = tmp_path / "recipes" / "quickstart" / "data" / task
            write_jsonl(folder / f"{split}.jsonl", preference_rows(rows, chosen=task))
    launch = launch.replace("recipes/", f"{ROOT}/recipes/")
    short = (
        f"--model_name_or_path {tiny_dir} --reward_funcs support.tiny_rewards:short support.tiny_rewards:vowels "
        "--max_completion_length 5 --num_rounds 1 --prompts_per_round 4 --save_strategy no"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    for words in ([*launch.split()[2:], *short.split()], front.split()[1:]):
        program = "accelerate.commands.launch" if words[0].endswith(".py") else "hf_lifealign.cli.main"
        line = [sys.executable, "-m", program, *words]
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "runs" / "meta-aligner" / "pareto" / "front.png").is_file()


def test_the_table_of_methods_is_what_was_measured() -> None:
    """Its numbers are those of the evidence, and what it calls the default is one."""
    held = json.loads((ROOT / "docs" / "evidence" / "final" / "comparison.json").read_text())["orders"]["first"]
    section = README.split("| method | BWT | Last | AP |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()[2:]]
    assert {row[0] for row in rows} == set(held["methods"])
    for method, *told in rows:
        entry = held["methods"][method]
        assert len(entry["seeds"]) == 3
        figures = [entry["accuracy"]["figures"][name] for name in ("bwt", "last_performance", "average_performance")]
        assert told == ["" if figure is None else f"{figure['value']:.3f}" for figure in figures]
    assert "three seeds" in README
    assert sum(held["pairs"]) == 800
    for name in ("last_performance", "average_performance"):
        figures = {method: entry["accuracy"]["figures"][name] for method, entry in held["methods"].items()}
        known = {method: figure for method, figure in figures.items() if figure is not None}
        assert max(known, key=lambda method: known[method]["value"]) == "lifealign"
        assert max(figure["low"] for figure in known.values()) < min(figure["high"] for figure in known.values())
        assert all((figure["high"] - figure["low"]) / 2 == pytest.approx(0.03, abs=0.005) for figure in known.values())


def test_what_it_tells_of_gem_was_measured() -> None:
    """From the runs themselves, pair by pair."""
    told = re.search(
        r"one seed GEM was ahead of it in BWT, by (\S+) \[(\S+), (\S+)\], in (\S+) times the time",
        " ".join(README.split()),
    )
    assert told
    runs = {}
    for method, stage in (("lifealign", "final"), ("gem", "baselines")):
        file = ROOT / "docs" / "evidence" / "runs" / stage / "first" / method / "seed-0.json"
        runs[method] = json.loads(file.read_text())
    margins: dict[str, dict[int, Margins]] = {
        method: {0: [[np.array(pairs) for pairs in row] for row in run["margins"]]} for method, run in runs.items()
    }
    difference = compared(margins, "lifealign")["gem"]["differences"]["bwt"]
    assert difference is not None
    assert float(told.group(1)) == pytest.approx(difference.value, abs=5e-4)
    assert float(told.group(2)) == pytest.approx(difference.low, abs=3e-3)
    assert float(told.group(3)) == pytest.approx(difference.high, abs=3e-3)
    seconds = [runs[method]["seconds"]["training"] for method in ("gem", "lifealign")]
    assert float(told.group(4)) == pytest.approx(seconds[0] / seconds[1], abs=0.05)


def test_what_it_tells_of_other_orders_was_measured() -> None:
    parts = {name: ROOT / "docs" / "evidence" / name / "comparison.json" for name in ("orders", "final")}
    orders, final = (json.loads(file.read_text())["orders"] for file in parts.values())
    text = " ".join(README.split())
    told = re.search(
        r"with helpful learnt first, `lifealign` ends at (\S+) of its pairs \(one seed\), and "
        r"`strategy: routed_memory`, which ends the same in whatever order, at (\S+) \(three seeds\)", text,
    )  # fmt: skip
    assert told
    assert orders["reverse"]["tasks"][0] == "helpful"

    def end(held: dict[str, Any], method: str) -> dict[str, float]:
        return dict(zip(held["tasks"], held["methods"][method]["matrix"][-1], strict=True))

    assert len(orders["reverse"]["methods"]["lifealign"]["seeds"]) == 1
    assert f"{end(orders['reverse'], 'lifealign')['helpful']:.3f}" == told.group(1)
    assert len(final["first"]["methods"]["routed_memory"]["seeds"]) == 3
    assert f"{end(final['first'], 'routed_memory')['helpful']:.3f}" == told.group(2)
    assert end(orders["reverse"], "routed_memory") == end(orders["mixed"], "routed_memory")


def test_the_command_of_the_table_is_one(tmp_path: Path) -> None:
    """Its stages and methods are those of the benchmark, and the rows of the table are its methods."""
    line = re.search(r"`python (benchmarks/stream/run\.py [^`]*)`", README)
    assert line
    words = line.group(1).split()
    methods = words[words.index("--methods") + 1 :]
    known = yaml.safe_load((ROOT / "benchmarks" / "stream" / "methods.yaml").read_text())["methods"]
    assert set(methods) <= set(known)
    section = README.split("| method | BWT | Last | AP |")[1].split("\n\n")[0]
    assert methods == [row.strip("| ").split(" | ")[0] for row in section.splitlines()[2:]]
    words[words.index("DATA")] = str(tmp_path / "nothing")
    done = subprocess.run([sys.executable, *words, "--output", str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert "nothing" in done.stderr.splitlines()[-1], "all but the data was understood"


def test_the_default_is_what_the_table_calls_so(tmp_path: Path) -> None:
    methods = yaml.safe_load((ROOT / "benchmarks" / "stream" / "methods.yaml").read_text())["methods"]
    measured = methods["lifealign"]["settings"]
    life = tiny_life(tmp_path)
    assert life.peft_config.peft_type.value.lower() == measured["adapter"]["type"] == default_adapter_type(None)
    assert life.training_args.focal_gamma == measured["training"]["focal_gamma"]
    expected = resolve_strategies(measured["strategies"])
    assert [(s.name, s.settings()) for s in life.strategies] == [(s.name, s.settings()) for s in expected]


def test_commands_and_links_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w+)", README):
        assert f"\n{target}:" in makefile, target
    for page, text in EVERYTHING.items():
        for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
            assert (ROOT / page).parent.joinpath(link).exists(), (page, link)
        for recipe in re.findall(r"recipes/[\w/]+\.yaml", text):
            assert (ROOT / recipe).is_file(), (page, recipe)
    assert not commands(README), "what the README tells to type is run by no test"
    for page in PAGES:
        assert f"](docs/{page}.md)" in README, page


def test_alignment_is_watched(tmp_path: Path, tiny_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script under watch, and its three commands, each in a process of its own."""
    from support.life import tiny_life
    from support.tiny import preference_dataset, tiny_tokenizer

    from hf_lifealign import Task, TaskStream

    monkeypatch.chdir(tmp_path)
    rows = preference_rows(12)
    write_jsonl(Path("data/answers.jsonl"), [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows])
    write_jsonl(Path("data/harmless/test.jsonl"), preference_rows(4, start=50))
    short = "max_steps=4, bf16=False, use_cpu=True, gradient_checkpointing=False, disable_tqdm=True, report_to=[]"
    script = WATCHED.replace('SFTConfig("runs/sft")', f'SFTConfig("runs/sft", {short})')
    script = script.replace("every=20", "every=2, max_new_tokens=6")
    script = script.replace("callbacks=[watch])", "callbacks=[watch], processing_class=tokenizer)")
    assert script.count(short) == script.count("every=2, ") == script.count("=tokenizer)") == 1
    scope: dict[str, Any] = {"model": tiny_model(), "tokenizer": tiny_tokenizer()}
    exec(script, scope)
    assert [entry["step"] for entry in scope["watch"].entries] == [0, 2, 4]
    assert sum("dynamics/score" in entry for entry in scope["trainer"].state.log_history) == 3

    pairs = preference_dataset(8), preference_dataset(4, start=20)
    stream = TaskStream([Task("harmless", *pairs), Task("kind", preference_dataset(8, start=40), pairs[1])])
    tiny_life("runs/assistant", stream, warm_start=False).train()
    for split, start in (("train", 60), ("test", 80)):
        write_jsonl(Path(f"new/{split}.jsonl"), preference_rows(8, start=start))
    Path("new.yaml").write_text("name: new\ntrain: new/train.jsonl\ntest: new/test.jsonl\n")
    told = {}
    for line in commands(PAGES["dynamics"]):
        words = line.split()
        command = [sys.executable, "-m", "hf_lifealign.cli.main", *words[1:]]
        if words[1] == "preflight":
            command += ["--base", tiny_dir, "--max-new-tokens", "6"]
        done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
        assert done.returncode == 0, done.stderr[-3000:]
        told[words[1]] = done.stdout
    assert set(told) == {"dynamics", "diversity", "preflight"}
    assert Path("runs/sft/dynamics/score.png").is_file()
    assert "all" in told["preflight"]
    assert "non-aligned" in told["preflight"], "a random model does not refuse"


def test_rehearsal_follows_the_forces(tmp_path: Path) -> None:
    """What the page writes of `LifelongConfig` is a configuration."""
    written = re.findall(r"`(LifelongConfig\(\.\.\., rehearsal[^`]*)`", PAGES["dynamics"])
    assert len(written) == 1
    from hf_lifealign import LifelongConfig

    config = eval(
        written[0].replace("...", "str(tmp_path)"), {"LifelongConfig": LifelongConfig, "tmp_path": tmp_path, "str": str}
    )
    assert config.rehearsing(["replay", "consolidation"])[0]["name"] == "dynamic_replay"


def test_a_task_from_principles(tmp_path: Path, tiny_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script and the commands on the tiny model, with one who writes what is asked for; what they leave as a task.

    The recipe trains on texts of up to 256 tokens; those of a tokenizer of characters are longer.
    """
    import threading

    from support.openai_server import OpenAIServer
    from support.self_align import obedient

    from hf_lifealign import TaskStream
    from hf_lifealign.cli.main import main
    from hf_lifealign.self_align.generators import ScriptedGenerator
    from hf_lifealign.self_align.stages.prompts import PromptSettings

    monkeypatch.chdir(tmp_path)
    rows: list[dict[str, Any]] = [{"question": "Is ice cold?", "choices": ["Yes.", "No."], "best": 0}]
    write_jsonl(Path("questions.jsonl"), rows)
    script = PRINCIPLED.replace("Qwen/Qwen2.5-0.5B-Instruct", tiny_dir)
    script = script.replace('preset="compact")', 'preset="compact", prompts=few, engrave=None), generator=writer')
    scope: dict[str, Any] = {"few": PromptSettings(6, 4), "writer": ScriptedGenerator(obedient, batch_size=4)}
    exec(script, scope)
    assert set(scope["told"]) == {"prompts", "responses"}
    assert scope["run"].data("preference", "train")
    server = OpenAIServer()
    server.answer = obedient
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # of what a random model says at length nothing can be kept
    short = [
        f"model={tiny_dir}", f"generator={{backend: server, base_url: {server.url}, model: m, chat: false}}",
        "engrave.training.max_length=768", "engrave.answers=1", "refine=null",
    ]  # fmt: skip
    try:
        for line in commands(PAGES["self_align"]):
            told = line.replace("recipes/", f"{ROOT}/recipes/").replace("embedded:smollm2-135m", tiny_dir)
            words = told.replace("runs/principles/refine", "runs/principles/engrave").split()[1:]
            if words[0] == "self-align":
                words += ["--limit", "8", *(word for setting in short for word in ("--set", setting))]
            assert main(words) == 0, line
    finally:
        server.shutdown()
    for stage in ("prompts", "responses", "engrave"):
        assert (Path("runs/principles") / stage / "manifest.json").is_file()
    stream = TaskStream.from_config([{"name": "principled", "self_align": "runs/principles"}])
    assert len(stream["principled"].load().train)
