"""The stages in order through the real trainer: what each leaves, kills, other settings, and the command."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import load_dataset
from peft import PeftModel
from support.openai_server import OpenAIServer
from support.self_align import Mortal, at_length, obedient
from support.tiny import save_tiny, tiny_model, tiny_tokenizer
from transformers import TrainerCallback
from trl import SFTConfig

from hf_lifealign import SelfAlign, SelfAlignConfig, TaskStream
from hf_lifealign._recipes import build
from hf_lifealign.cli.main import main
from hf_lifealign.lifelong.recipe import build_adapter
from hf_lifealign.report.self_align import write_self_align_report
from hf_lifealign.self_align.config import STAGES as STAGES_OF
from hf_lifealign.self_align.config import read_config
from hf_lifealign.self_align.generators import ScriptedGenerator
from hf_lifealign.self_align.rendering import NOTE, REPLY, REQUEST
from hf_lifealign.self_align.settings import CloningSettings, EngraveSettings
from hf_lifealign.self_align.stages.outcome import GaveUpError
from hf_lifealign.self_align.stages.prompts import PromptSettings
from hf_lifealign.stream import StreamError

STAGES = STAGES_OF["verbose_cloning"]
ROOT = Path(__file__).resolve().parents[2]
TRAINING = {"per_device_train_batch_size": 4, "max_length": 384, "logging_steps": 1, "disable_tqdm": True}
ADAPTER = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


def config(folder: Path, base: str, **given: Any) -> SelfAlignConfig:
    settings: dict[str, Any] = {
        "prompts": PromptSettings(self_instruct=12, red_team=8),
        "engrave": EngraveSettings(ADAPTER, TRAINING, checkpoint_steps=2, answers=2),
        "refine": CloningSettings(ADAPTER, TRAINING, checkpoint_steps=2, answers=2),
        "preset": "compact",
    }
    return SelfAlignConfig(str(folder), base, **(settings | given))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("base"))


def run_of(folder: Path, base: str, callbacks: Any = (), writer: Any = None, **given: Any) -> SelfAlign:
    made = writer or ScriptedGenerator(obedient, batch_size=4)
    if given.get("engrave", True) is None:
        given["refine"] = None
    verbose = ScriptedGenerator(at_length, name="engraved", batch_size=4)
    return SelfAlign(config(folder, base, **given), made, verbose, callbacks, disable_tqdm=True)


def files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.parts[len(root.parts)] in STAGES
    }


def test_what_the_stages_leave(tmp_path: Path, base: str) -> None:
    run = run_of(tmp_path / "run", base)
    told = run.run()
    assert list(told) == list(STAGES)
    assert told["prompts"]["self_instruct"]["accepted"] == 12
    assert told["responses"]["keep_rate"] == 1.0
    assert told["responses"]["principles"]["informative"] == 20
    parts = {kind: load_dataset(str(tmp_path / "run" / "responses" / kind)) for kind in ("sft", "preference")}
    assert {k: {s: len(rows) for s, rows in p.items()} for k, p in parts.items()} == {
        k: {"train": 18, "test": 2} for k in parts
    }
    assert parts["sft"]["train"].column_names == ["prompt", "completion"]
    assert parts["sft"]["train"][0]["prompt"][0]["role"] == "user", "the tiny tokenizer has a chat template"
    stream = TaskStream.from_config([{"name": "self", "self_align": "run", "max_train": 9}], tmp_path)
    assert (len(stream["self"].load().train), len(stream["self"].load().test)) == (9, 2)
    engraved = told["engrave"]
    assert engraved["after"]["loss"] < engraved["before"]["loss"]
    assert engraved["steps"] == 5
    assert len(engraved["after"]["answers"]) == 2
    loaded = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "run" / "engrave"))
    assert loaded.peft_config["default"].peft_type == "LORA"
    assert not (tmp_path / "run" / "engrave" / "README.md").exists()
    assert not (tmp_path / "run" / "work" / "engrave").exists()
    cloned = told["cloning"]
    assert (cloned["asked"], cloned["kept"], cloned["words"]) == (20, 17, [9] * 17)
    assert run.store.manifest("cloning")["reasons"] == {"unfinished": 3}
    asked = [row["prompt"][0]["content"] for row in run.data("sft", "train", "cloning")]
    plain = {row["prompt"] for row in run.store.rows("prompts")}
    assert 6 <= sum(text in plain for text in asked) <= 9, "every second one asks as users do"
    assert all("at length" in text for text in asked if text not in plain)
    assert (told["engrave"]["cut_away"], told["refine"]["cut_away"]) == (0, 0)
    assert told["refine"]["after"]["loss"] < told["refine"]["before"]["loss"]
    again = run_of(tmp_path / "run", base)
    before = files(tmp_path / "run")
    assert again.run() == told
    assert again.calls.made == 0
    assert files(tmp_path / "run") == before


def test_a_task_that_was_never_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(StreamError, match="It holds no pairs"):
        TaskStream.from_config([{"name": "self", "self_align": "run"}], tmp_path)
    with pytest.raises(StreamError, match="You set self_align and train"):
        TaskStream.from_config([{"name": "self", "self_align": "run", "train": "t.jsonl"}], tmp_path)


def test_rows_that_are_cut_away_are_told(tmp_path: Path, base: str, caplog: pytest.LogCaptureFixture) -> None:
    data = run_of(tmp_path, base, engrave=None)
    data.run()
    asked = [row["prompt"] for split in ("train", "test") for row in data.data("sft", split)]
    lengths = [len(tiny_tokenizer().apply_chat_template(p, add_generation_prompt=True)["input_ids"]) for p in asked]
    assert min(lengths) < max(lengths)

    def tight(room: int) -> SelfAlign:
        settings = EngraveSettings(ADAPTER, TRAINING | {"max_length": room}, answers=0)
        return run_of(tmp_path, base, engrave=settings, refine=None)

    with pytest.raises(ValueError, match=f"max_length={min(lengths)}, which the prompts of all rows"):
        tight(min(lengths)).run()
    run = tight(max(lengths))
    told = run.run()["engrave"]
    assert told["cut_away"] == lengths.count(max(lengths)) == 20 - told["train_rows"] - told["held_out_rows"]
    assert f"{told['cut_away']} have a prompt that fills max_length={max(lengths)}" in caplog.text
    report = write_self_align_report(tmp_path, {stage: run.store.manifest(stage) for stage in STAGES[:3]})
    assert f"**{told['cut_away']} rows have a prompt" in report.read_text()


def test_plain_texts_where_there_is_no_chat_template(tmp_path: Path, base: str) -> None:
    run = run_of(tmp_path, base, conversational=False, engrave=None)
    assert list(run.run()) == ["prompts", "responses"]
    row = run.data("sft", "train")[0]
    asked = {row["prompt"] for row in run.store.rows("prompts")}
    request, _, rest = row["prompt"].removeprefix(f"{REQUEST} ").partition("\n")
    assert request in asked
    assert rest == REPLY
    assert row["completion"].startswith(" ")
    ids = [tiny_tokenizer()(text)["input_ids"] for text in (row["prompt"], row["completion"])]
    assert tiny_tokenizer()(row["prompt"] + row["completion"])["input_ids"] == ids[0] + ids[1], "no token across"
    assert NOTE not in json.dumps(run.data("preference", "train"))


class Killer(TrainerCallback):
    def __init__(self, stage: str, at: int):
        self.stage, self.at = stage, at

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if Path(args.output_dir).name == self.stage and state.global_step == self.at:
            raise KeyboardInterrupt


def test_a_kill_at_any_point_changes_nothing(tmp_path: Path, base: str) -> None:
    whole = run_of(tmp_path / "whole", base)
    whole.run()
    expected, calls = files(tmp_path / "whole"), whole.calls.made
    for _ in range((calls - 1) // 3):
        with pytest.raises(KeyboardInterrupt):
            run_of(tmp_path / "killed", base, writer=Mortal(obedient, 3), engrave=None).run()
    for stage, at in (("engrave", 0), ("engrave", 3), ("refine", 1), ("refine", 3)):
        with pytest.raises(KeyboardInterrupt):
            run_of(tmp_path / "killed", base, callbacks=[Killer(stage, at)]).run()
    last = run_of(tmp_path / "killed", base)
    last.run()
    assert last.calls.made == 0
    assert len(list((tmp_path / "killed" / "calls").rglob("*.json"))) == calls + 5, "none was made twice"
    found = files(tmp_path / "killed")
    assert set(found) == set(expected)
    for name, content in expected.items():
        assert found[name] == content, name


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(tmp_path: Path, base: str) -> None:
    slow, fast = (EngraveSettings(ADAPTER, TRAINING | {"learning_rate": rate}, 2, 2) for rate in (1e-4, 1e-2))
    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path / "killed", base, callbacks=[Killer("engrave", 3)], engrave=slow, refine=None).run()
    assert list((tmp_path / "killed" / "work" / "engrave").glob("checkpoint-*"))
    run_of(tmp_path / "killed", base, engrave=fast, refine=None).run()
    run_of(tmp_path / "whole", base, engrave=fast, refine=None).run()
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_the_engraved_model_itself_is_asked(tmp_path: Path, base: str) -> None:
    """What a tiny random one says is not kept; what was made before stays."""
    run = SelfAlign(config(tmp_path, base), ScriptedGenerator(obedient, batch_size=4), disable_tqdm=True)
    run.config = replace(run.config, refine=CloningSettings(ADAPTER, TRAINING, max_new_tokens=8, least_words=5))
    with pytest.raises(ValueError, match=r"Of 20 tasks 0 have an answer.*unfinished"):
        run.run()
    assert (tmp_path / "engrave" / "manifest.json").is_file()
    assert not (tmp_path / "cloning").exists()
    plain = SelfAlign(replace(config(tmp_path, base), refine=None), ScriptedGenerator(obedient, batch_size=4))
    assert list(plain.run()) == list(STAGES[:3])
    identity = run.engraved_generator.identity()
    assert identity != plain.config.load_generator().identity()


def test_a_stage_is_made_anew_with_all_after_it(tmp_path: Path, base: str) -> None:
    run = run_of(tmp_path, base)
    run.run()
    before = files(tmp_path)
    with pytest.raises(ValueError, match="other settings"):
        run_of(tmp_path, base, responses=replace(run.config.responses, temperature=0.2)).run()
    assert files(tmp_path) == before
    hotter = run_of(tmp_path, base, responses=replace(run.config.responses, temperature=0.2))
    hotter.run("responses")
    after = files(tmp_path)
    assert {name.split("/")[0] for name in before if before[name] != after[name]} == {"responses"}
    assert hotter.calls.made == 10, "answers to 20 tasks, with and without principles; the same rows, so weights"
    with pytest.raises(ValueError, match="'rl'"):
        hotter.run("rl")
    rows = tmp_path / "prompts" / "rows.jsonl"
    rows.write_text(rows.read_text().replace("Write", "Wrote", 1))
    with pytest.raises(ValueError, match="were changed since"):
        run_of(tmp_path, base).run()


def test_a_stage_that_gives_up_leaves_what_it_dropped(tmp_path: Path, base: str) -> None:
    writer = ScriptedGenerator(lambda p, s, i: " Too short\n\n", batch_size=4)
    with pytest.raises(GaveUpError, match="too_short") as told:
        run_of(tmp_path, base, writer=writer).run()
    (note,) = told.value.__notes__
    assert str(tmp_path / "work" / "prompts" / "dropped.jsonl") in note
    assert len((tmp_path / "work" / "prompts" / "dropped.jsonl").read_text().splitlines()) >= 12
    assert not (tmp_path / "prompts").exists()


def test_too_few_answers_are_no_data(tmp_path: Path, base: str) -> None:
    def silent(prompt: str, seed: int, place: int) -> str:
        return " Hm." if "notes for itself" in prompt else obedient(prompt, seed, place)

    with pytest.raises(ValueError, match=r"Of 20 tasks 0 have an answer.*no_reply"):
        run_of(tmp_path, base, writer=ScriptedGenerator(silent, batch_size=4)).run()
    assert (tmp_path / "prompts" / "manifest.json").is_file()
    assert not (tmp_path / "responses").exists()


@pytest.mark.parametrize(("limit", "parts"), [(1, (1, 0)), (5, (3, 2)), (10, (6, 4)), (20, (12, 8)), (90, (12, 8))])
def test_a_limit_keeps_the_proportion(tmp_path: Path, limit: int, parts: tuple[int, int]) -> None:
    limited = config(tmp_path, "base").limited(limit).prompts
    assert (limited.self_instruct, limited.red_team) == parts


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"presets": "compact"}, "Did you mean 'preset'"),
        ({"preset": "short"}, "preset='short'"),
        ({"prompts": {"self_instrct": 3}}, "Did you mean 'self_instruct'"),
        ({"generator": {"backend": "ollama"}}, "backend 'ollama'"),
        ({"held_out": 1.0}, "held_out=1.0"),
        ({"engrave": {"checkpoint_steps": 0}}, "checkpoint_steps=0"),
        ({"constitution": {"principle": "p.yaml"}}, "Did you mean 'principles'"),
        ({"model": None}, "empty output_dir or model"),
        ({"refine": {"method": "dpo"}}, "method='dpo'"),
        ({"refine": {}, "engrave": None}, "engrave is null"),
    ],
)
def test_wrong_settings(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"model": "base", "output_dir": "run"} | change))
    with pytest.raises(ValueError, match=why):
        read_config(tmp_path / "r.yaml")


def test_generator_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Did you mean 'batch_size'"):
        config(tmp_path, "base", generator={"batchsize": 3}).load_generator()
    with pytest.raises(ValueError, match="and no model"):
        config(tmp_path, "base", generator={"backend": "server"}).load_generator()
    with pytest.raises(ValueError, match="--limit 0"):
        config(tmp_path, "base").limited(0)


def test_the_command_from_end_to_end(
    tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A constitution of the user's own, and a server that writes: in a process of its own, with no word of code."""
    principles = [{"name": "kind", "text": "Be kind.", "may_decline": False}, {"name": "informative", "text": "Tell."}]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(principles))
    exemplar = {"request": "Hello?", "thoughts": "A greeting.", "reply": "Hello to you.", "principles": ["kind"],
                "compact": True}  # fmt: skip
    (tmp_path / "shown.yaml").write_text(yaml.safe_dump([exemplar]))
    server = OpenAIServer()
    server.answer = obedient
    recipe = {
        "model": base, "output_dir": "run", "preset": "compact", "seed": 3,
        "constitution": {"principles": "mine.yaml", "exemplars": "shown.yaml"},
        "generator": {"backend": "server", "base_url": server.url, "model": "m", "chat": False},
        "prompts": {"self_instruct": 40, "red_team": 20},
        "engrave": {"adapter": ADAPTER, "training": TRAINING},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def lifealign(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "hf_lifealign.cli.main", "self-align", "recipe.yaml", *words]
        return subprocess.run(line, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True)

    import threading

    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        dry = lifealign("--dry-run", "--set", "refine.max_new_tokens=300")
        assert dry.returncode == 0, dry.stderr[-2000:]
        assert "1 (kind): Be kind." in dry.stdout
        assert "answer with principles" in dry.stdout
        (row,) = [line for line in dry.stdout.splitlines() if line.startswith("| answer at length")]
        assert [cell.strip() for cell in row.split("|")][3:6] == ["300", "?", "yes"]
        assert not server.asked
        assert not (tmp_path / "run").exists()
        done = lifealign("--limit", "12", "--set", "responses.temperature=0.3")
        assert done.returncode == 0, done.stderr[-2000:]
        asked = len(server.asked)
        monkeypatch.chdir(tmp_path)
        again = ["self-align", "recipe.yaml", "--limit", "12"]
        assert main([*again, "--set", "responses.temperature=0.3"]) == 0
        assert len(server.asked) == asked, "all of it is there"
        capsys.readouterr()
        assert main(again) == 2
        assert "made with other settings" in capsys.readouterr().err
    finally:
        server.shutdown()
    for line in ("Tasks:   12", "Answers: 12 (100.0 % kept)", "Adapter: run/engrave", "Report:  run/report.md"):
        assert line in done.stdout
    report = (tmp_path / "run" / "report.md").read_text()
    for text in ("keep rate", "informative", "loss on held-out answers", "65 and 70 billion", "![principles]"):
        assert text in report
    for picture in ("principles.png", "kinds.png"):
        assert (tmp_path / "run" / picture).stat().st_size > 1000
    manifest = json.loads((tmp_path / "run" / "responses" / "manifest.json").read_text())
    assert manifest["made_of"]["settings"]["temperature"] == 0.3
    assert torch.isfinite(torch.tensor(json.loads((tmp_path / "run" / "engrave" / "manifest.json").read_text())["told"]
                                       ["after"]["loss"]))  # fmt: skip


def test_the_shipped_recipe_is_a_run(tmp_path: Path) -> None:
    recipe = Path(__file__).resolve().parents[2] / "recipes" / "self_align" / "compact.yaml"
    shipped = read_config(recipe, output_dir=str(tmp_path / "run"))
    assert (shipped.preset, shipped.model) == ("compact", "embedded:smollm2-135m")
    assert shipped.engrave is not None
    assert build_adapter(dict(shipped.engrave.adapter)).r == 16
    args = build(SFTConfig, shipped.engrave.training, "engrave.training", output_dir=str(tmp_path), bf16=False)
    assert args.max_length == 256
    assert SelfAlign(shipped).constitution.principles
