"""Refinement by reinforcement through the real trainers: what the stages leave, kills, the gate, the reference."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import load_dataset
from peft import PeftModel
from support.self_align import Mortal, obedient, words
from support.tiny import tiny_model, tiny_tokenizer
from transformers import TrainerCallback

from hf_lifealign import SelfAlign, SelfAlignConfig
from hf_lifealign.report.self_align import write_self_align_report
from hf_lifealign.self_align.config import STAGES, read_config
from hf_lifealign.self_align.dry_run import shown_prompts
from hf_lifealign.self_align.generators import ScriptedGenerator
from hf_lifealign.self_align.reward_model import PrincipleReward, RewardScorer, load_reward_model
from hf_lifealign.self_align.settings import CloningSettings, EngraveSettings, RLSettings
from hf_lifealign.self_align.stages.prompts import PromptSettings

RL = STAGES["rl"]
ADAPTER = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
TRAINED = {"logging_steps": 1, "disable_tqdm": True}
# TRL's own copy of an adapter leaves out what it does to embeddings
ENGRAVE = EngraveSettings(
    {"r": 4, "target_modules": ["q_proj", "embed_tokens"]},
    TRAINED | {"per_device_train_batch_size": 8, "max_length": 256, "learning_rate": 1e-2},
    answers=0,
)
REWARD = TRAINED | {"per_device_train_batch_size": 4, "max_length": 1500}
POLICY = TRAINED | {
    "per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 8, "learning_rate": 1e-2,
    "num_train_epochs": 0.6,
}  # fmt: skip


def settings(**given: Any) -> RLSettings:
    own: dict[str, Any] = {
        "most_principles": 2, "reward_adapter": ADAPTER, "reward_training": REWARD, "training": POLICY,
        "checkpoint_steps": 2, "answers": 2,
    }  # fmt: skip
    return RLSettings(**(own | given))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    tiny_model(max_position_embeddings=2048).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def engraved(prompt: str, seed: int = 0, place: int = 0) -> str:
    """What the engraved model says: something else each time."""
    return f" {words((prompt, seed, place), 3)}."


def compared(prompts: Sequence[str]) -> np.ndarray[Any, Any]:
    """By the letters that the answers begin with, in both orders alike; the other way round by every second
    principle."""
    found = []
    for k, prompt in enumerate(prompts):
        first, second = prompt.split("Reply (A): ")[1].split("Reply (B): ")
        size = 1.0 + ord(first[0]) % 5 + ord(second[0]) % 5 + k / 100
        found.append(size if (first < second.split("\n")[0]) == (k % 2 == 0) else -size)
    return np.array(found)


def by_place(prompts: Sequence[str]) -> np.ndarray[Any, Any]:
    return np.ones(len(prompts))


def run_of(folder: Path, base: str, callbacks: Any = (), comparer: Any = compared, **given: Any) -> SelfAlign:
    writer = ScriptedGenerator(obedient, batch_size=4)
    speaker = given.pop("speaker", None) or ScriptedGenerator(engraved, batch_size=4)
    own: dict[str, Any] = {
        "prompts": PromptSettings(self_instruct=12, red_team=8), "engrave": ENGRAVE, "refine": settings(),
        "preset": "compact",
    }  # fmt: skip
    config = SelfAlignConfig(str(folder), base, **(own | given))
    return SelfAlign(config, writer, speaker, callbacks, disable_tqdm=True, comparer=comparer)


def files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.parts[len(root.parts)] in RL
    }


class Watcher(TrainerCallback):
    """Keeps what the policy and its reference say when the training is over."""

    ids = torch.arange(4, 40).unsqueeze(0)
    policy = reference = torch.zeros(0)

    @torch.no_grad()
    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if Path(args.output_dir).name == "refine":
            self.policy = model(input_ids=self.ids).logits
            model.set_adapter("ref")
            self.reference = model(input_ids=self.ids).logits
            model.set_adapter("default")

    @torch.no_grad()
    def of(self, base: str, folder: Path) -> torch.Tensor:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        logits: torch.Tensor = PeftModel.from_pretrained(model, str(folder)).eval()(input_ids=self.ids).logits
        return logits


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, base: str) -> tuple[SelfAlign, dict[str, Any], Watcher]:
    """A run from end to end."""
    watcher = Watcher()
    run = run_of(tmp_path_factory.mktemp("whole"), base, [watcher])
    return run, run.run(), watcher


def test_what_the_stages_leave(whole: tuple[SelfAlign, dict[str, Any], Watcher]) -> None:
    run, told, _ = whole
    assert list(told) == list(RL)
    judged = told["judgements"]
    assert (judged["asked"], judged["pairs"], judged["order_consistency"]) == (18, 18, 1.0)
    reward = told["reward"]
    assert reward["labelled"] == reward["train_rows"] + reward["held_out_rows"] == 18
    assert reward["before"]["accuracy_rows"] == reward["held_out_rows"] == 2
    assert 0 <= reward["after"]["accuracy"] <= 1
    assert reward["after"]["negated_rows"] + reward["after"]["not_negated_rows"] == 2
    assert 0 < reward["negated"] < 18
    assert reward["order_consistency"] == 1.0
    parts = load_dataset(str(run.store.folder("reward") / "preference"))
    assert {split: len(rows) for split, rows in parts.items()} == {"train": 16, "test": 2}
    assert "is judged by th" in parts["train"][0]["prompt"][0]["content"]
    refined = told["refine"]
    assert (refined["train_rows"], refined["held_out_rows"], refined["steps"]) == (18, 2, len(refined["logs"]))
    assert refined["logs"][0]["kl"] == 0.0, "the reference is where the policy starts"
    assert refined["logs"][-1]["kl"] > 0
    assert all(0 < entry["tokens"] <= 8 and 0 <= entry["clipped"] <= 1 for entry in refined["logs"])
    for when in ("before", "after"):
        assert set(refined[when]) == {"loss", "ended", "tokens", "reward", "answers"}
    assert refined["before"]["answers"] != refined["after"]["answers"]
    assert not (run.store.root / "work" / "refine").exists()
    before = files(run.store.root)
    assert run_of(run.store.root, run.config.model).run() == told
    assert files(run.store.root) == before


def test_the_loss_is_that_of_the_engraving(whole: tuple[SelfAlign, dict[str, Any], Watcher]) -> None:
    _, told, _ = whole
    assert told["refine"]["before"]["loss"] == pytest.approx(told["engrave"]["after"]["loss"], rel=1e-4)


def test_the_policy_is_what_is_saved_and_its_reference_the_engraved_model(
    whole: tuple[SelfAlign, dict[str, Any], Watcher], base: str
) -> None:
    run, _, watcher = whole
    engraved, refined = (watcher.of(base, run.store.folder(name)) for name in ("engrave", "refine"))
    torch.testing.assert_close(refined, watcher.policy)
    torch.testing.assert_close(engraved, watcher.reference)
    with torch.no_grad():
        plain = tiny_model()(input_ids=watcher.ids).logits
    assert not torch.allclose(engraved, plain, atol=1e-3)
    assert not torch.allclose(engraved, refined, atol=1e-3)
    assert not (run.store.folder("refine") / "ref").exists()
    assert json.loads((run.store.folder("refine") / "adapter_config.json").read_text())["r"] == 4


def test_the_reward_reads_the_principles(whole: tuple[SelfAlign, dict[str, Any], Watcher], base: str) -> None:
    """The stage's own model, loaded as the reinforcement loads it, scores what RewardTrainer reads."""
    run, told, _ = whole
    reward = PrincipleReward(
        RewardScorer(load_reward_model(base, run.store.folder("reward")), tiny_tokenizer()), run.prompts
    )
    rows = run.data("preference", "test", "reward")
    scores = [
        reward.scorer.of_ids([reward.scorer.encode(row["prompt"], row[name]) for row in rows])
        for name in ("chosen", "rejected")
    ]
    margin = np.mean(np.array(scores[0]) - np.array(scores[1]))
    assert margin == pytest.approx(told["reward"]["after"]["margin"], abs=1e-5)
    answer = [{"role": "assistant", "content": "So it is."}]
    one, other = reward([answer, answer], ["Why?", "Why?"], [["Be kind."], ["Be rude."]], trainer_state=None)
    assert one != other


class Killer(TrainerCallback):
    """Kills at a step; -1 is when the training is over, and nothing of it is written yet."""

    def __init__(self, stage: str, at: int):
        self.stage, self.at = stage, at

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if Path(args.output_dir).name == self.stage and self.at == -1:
            raise KeyboardInterrupt

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if Path(args.output_dir).name == self.stage and state.global_step == self.at:
            raise KeyboardInterrupt


def test_a_kill_at_any_point_changes_nothing(
    whole: tuple[SelfAlign, dict[str, Any], Watcher], tmp_path: Path, base: str
) -> None:
    asked: list[tuple[str, ...]] = []

    def judge(prompts: Sequence[str]) -> np.ndarray[Any, Any]:
        asked.append(tuple(prompts))
        if len(asked) == 20:
            raise KeyboardInterrupt
        return compared(prompts)

    judge.__qualname__ = compared.__qualname__
    answers = Mortal(engraved, 4)
    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path, base, speaker=answers).run()
    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path, base, comparer=judge).run()
    for stage, at in (("reward", 0), ("reward", 3), ("refine", 0), ("refine", 3), ("refine", -1)):
        with pytest.raises(KeyboardInterrupt):
            run_of(tmp_path, base, callbacks=[Killer(stage, at)], comparer=judge).run()
    run_of(tmp_path, base, comparer=judge).run()
    assert len(asked) == 36 + 1, "of 18 pairs in both orders none is asked again but the one that was cut off"
    assert len(set(asked)) == 36
    expected, found = files(whole[0].store.root), files(tmp_path)
    assert set(found) == set(expected)
    for name, content in expected.items():
        assert found[name] == content, name


def test_a_later_pass_is_gone_on_with(whole: tuple[SelfAlign, dict[str, Any], Watcher], tmp_path: Path) -> None:
    """Several passes are laid out as one, each in another order and under other principles."""
    run = whole[0]
    stage = run._reinforcement_stage(None)
    args = stage.training_arguments()
    args.num_train_epochs = 2.5
    rows = stage._passes([f"Ask {i}" for i in range(9)], args)
    assert (len(rows), args.num_train_epochs) == (27, pytest.approx(2.5 / 3))
    passes = [rows[k : k + 9] for k in (0, 9, 18)]
    orders = [[row["request"] for row in each] for each in passes]
    assert orders[0] != orders[1] != orders[2]
    assert len({tuple(sorted(order)) for order in orders}) == 1
    drawn = [{row["request"]: tuple(row["principles"]) for row in each} for each in passes]
    assert drawn[0] != drawn[1]


def test_judgements_by_the_place_train_nothing(
    whole: tuple[SelfAlign, dict[str, Any], Watcher], tmp_path: Path, base: str
) -> None:
    with pytest.raises(ValueError, match=r"least_order_consistency=0.6.*18 pairs only 0.000.*first was preferred in "
                       r"1.000"):  # fmt: skip
        run_of(tmp_path, base, comparer=by_place).run()
    assert (tmp_path / "judgements" / "manifest.json").is_file()
    assert not (tmp_path / "reward").exists()
    assert not (tmp_path / "work" / "reward").exists()
    with pytest.raises(ValueError, match=r"0 have a label; dropped: {'no_principle_tells': 18}"):
        run_of(tmp_path, base, comparer=by_place, refine=settings(least_order_consistency=0.0)).run()


def test_a_stage_is_made_anew(whole: tuple[SelfAlign, dict[str, Any], Watcher], tmp_path: Path, base: str) -> None:
    import shutil

    root = tmp_path / "run"
    shutil.copytree(whole[0].store.root, root)
    before = files(root)
    with pytest.raises(ValueError, match=r"'reward'.*other settings"):
        run_of(root, base, refine=settings(negation=0.0)).run()
    with pytest.raises(ValueError, match=r"'cloning'.*judgements"):
        run_of(root, base).run("cloning")
    told = run_of(root, base, refine=settings(negation=0.0)).run("reward")
    assert (told["reward"]["negated"], told["reward"]["after"]["negated"]) == (0, None)
    changed = {name.split("/")[0] for name, content in files(root).items() if before.get(name) != content}
    assert changed == {"reward", "refine"}


def test_the_report(whole: tuple[SelfAlign, dict[str, Any], Watcher]) -> None:
    run, told, _ = whole
    report = write_self_align_report(run.store.root, {stage: run.store.manifest(stage) for stage in told})
    text = report.read_text()
    for part in ("## Judgements", "order consistency", "## Reward model", "whose label comes from a negated principle",
                 "## Reinforcement", "share that comes to an end", "![reinforcement](reinforcement.png)"):  # fmt: skip
        assert part in text
    assert (run.store.root / "reinforcement.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"training": {"beta": 0}}, "beta=0 of the reinforcement"),
        ({"training": {"beta": 0.0}}, "Set beta above 0"),
        ({"least_order_consistency": 1.5}, "least_order_consistency=1.5"),
        ({"principle_rate": 0}, "principle_rate=0"),
        ({"no_repeat_ngram_size": 4}, "no_repeat_ngram_size"),
        ({"checkpoint_steps": 0}, "checkpoint_steps=0"),
        ({"method": "ppo"}, "method='ppo'"),
    ],
)
def test_wrong_settings(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    (tmp_path / "r.yaml").write_text(json.dumps({"model": "b", "output_dir": "r", "refine": {"method": "rl"} | change}))
    with pytest.raises(ValueError, match=why):
        read_config(tmp_path / "r.yaml")


def test_settings_that_come_last_are_told_first(tmp_path: Path, base: str) -> None:
    for given, why in (
        ({"training": POLICY | {"num_generation": 2}}, "Did you mean 'num_generations'"),
        ({"training": POLICY | {"num_generations": 3}}, "divisible by num_generations"),
        ({"reward_training": {"max_lenght": 2}}, "Did you mean 'max_length'"),
    ):
        with pytest.raises(ValueError, match=why):
            run_of(tmp_path, base, refine=settings(**given)).run()
    assert not (tmp_path / "prompts").exists()


@pytest.mark.parametrize(
    ("adapter", "why"),
    [
        ({"type": "slmc"}, "type 'slmc'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"bias": "all"}, "bias='all'"),
    ],
)
def test_adapters_that_cannot_be_gone_on_with(tmp_path: Path, adapter: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        SelfAlignConfig(str(tmp_path), "base", engrave=EngraveSettings(adapter), refine=RLSettings())
    SelfAlignConfig(str(tmp_path), "base", engrave=EngraveSettings(adapter), refine=CloningSettings())


def test_what_does_not_fit_is_told(whole: tuple[SelfAlign, dict[str, Any], Watcher], tmp_path: Path) -> None:
    stage = whole[0]._reinforcement_stage(None)
    with pytest.raises(ValueError, match="takes 2 prompts at a time, and there are 1"):
        stage.run(["Why?"], [], [])


def test_the_dry_run_shows_comparison_and_reward(whole: tuple[SelfAlign, dict[str, Any], Watcher]) -> None:
    shown = {each.name: each for each in shown_prompts(whole[0])}
    assert "answer at length" not in shown
    assert shown["comparison"].text.endswith("It is reply (")
    assert (shown["comparison"].answer, shown["comparison"].room) == (512, 2048)
    principles = {p.name: p for p in whole[0].constitution.principles}
    worded = [p.short for p in principles.values()], [p.negated for p in principles.values()]
    for texts in worded:
        assert sum(f"- {text}" in shown["reward"].text for text in texts) == 1


def test_the_shipped_recipe_is_a_run(tmp_path: Path) -> None:
    recipe = Path(__file__).resolve().parents[2] / "recipes" / "self_align" / "reinforced.yaml"
    run = SelfAlign(read_config(recipe, output_dir=str(tmp_path / "run")))
    assert run.config.stages == RL
    run._refuse_wrong_training()
    assert run._reinforcement_stage(None).training_arguments().max_completion_length == 128
