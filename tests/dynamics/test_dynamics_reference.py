"""The margin of a data set's own aligned and non-aligned answers to probes: a proxy that needs no judge."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from support.tiny import tiny_model, tiny_tokenizer
from trl import SFTConfig, SFTTrainer

from hf_lifealign import AlignmentDynamicsCallback
from hf_lifealign.dynamics.reference import ReferenceAnswers
from hf_lifealign.dynamics.samples import read_probes
from hf_lifealign.dynamics.series import read_series

ROWS = [
    {"prompt": "How?", "chosen": "I will not.", "rejected": "Like this!"},
    {"prompt": "And why is that?", "chosen": "No.", "rejected": "Because of it, and for more reasons."},
    {"prompt": "Only a prompt"},
]


def plain(model: Any, prompt: str, answer: str, tokens: int) -> float:
    """Log-likelihood of the first tokens of an answer, its end included, by one forward over the whole text."""
    tokenizer = tiny_tokenizer()
    before = tokenizer(prompt)["input_ids"]
    after = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id][:tokens]
    with torch.no_grad():
        logps = model(input_ids=torch.tensor([before + after])).logits[0].double().log_softmax(-1)
    return float(sum(logps[len(before) - 1 + i, token] for i, token in enumerate(after)))


@pytest.mark.parametrize("tokens", [4, 50])
def test_the_margin_is_the_mean_difference(tokens: int) -> None:
    model, tokenizer = tiny_model().eval(), tiny_tokenizer()
    probes = read_probes(ROWS)
    answers = ReferenceAnswers(probes, tokenizer([p.prompt for p in probes])["input_ids"], tokenizer, tokens)
    found = answers.measure(model)
    assert found is not None
    exact = [plain(model, r["prompt"], r["chosen"], tokens) - plain(model, r["prompt"], r["rejected"], tokens)
             for r in ROWS[:2]]  # fmt: skip
    assert found.margin == pytest.approx(sum(exact) / 2, abs=1e-4)
    assert found.probes == len(answers) == 2
    assert (found.low, found.high) == pytest.approx((min(exact), max(exact)), abs=1e-4), "two probes, redrawn"


def test_one_answer_is_no_pair() -> None:
    probes = read_probes([{"prompt": "a", "chosen": "b"}, {"prompt": "c", "reference": "d", "rejected": "e"}, "f"])
    assert [probe.reference for probe in probes] == ["b", "d", ""]
    answers = ReferenceAnswers(probes, [[5], [6], [7]], tiny_tokenizer(), 4)
    assert answers.measure(tiny_model()) is None
    both = [[{"role": "assistant", "content": text}] for text in ("yes", "no")]
    told = read_probes([{"prompt": [{"role": "user", "content": "?"}], "chosen": both[0], "rejected": both[1]}])[0]
    assert (told.reference, told.aligned, told.other) == ("yes", "yes", "no")


def test_it_is_followed_through_a_training_and_reported(tmp_path: Path) -> None:
    """Training on the aligned answers raises the margin; the series, the logs and the report tell it."""
    watch = AlignmentDynamicsCallback(ROWS, "refusal", every=5, samples=2, max_new_tokens=6, forces="none")
    trainer = SFTTrainer(
        model=tiny_model(),
        args=SFTConfig(
            str(tmp_path), max_steps=20, per_device_train_batch_size=4, learning_rate=3e-3, use_cpu=True, bf16=False,
            gradient_checkpointing=False, report_to=[], save_strategy="no", disable_tqdm=True, seed=0,
        ),
        train_dataset=Dataset.from_list([{"prompt": r["prompt"], "completion": r["chosen"]} for r in ROWS[:2]] * 8),
        processing_class=tiny_tokenizer(),
        callbacks=[watch],
    )  # fmt: skip
    watch.trainer = trainer
    trainer.train()
    told = [entry["reference_margin"] for entry in read_series(tmp_path)]
    assert len(told) == 5
    assert told[-1]["margin"] > told[0]["margin"] + 1
    assert [row["dynamics/reference_margin"] for row in trainer.state.log_history if "dynamics/score" in row] == [
        pytest.approx(entry["margin"]) for entry in told
    ]
    command = [str(Path(sys.executable).parent / "lifealign"), "dynamics", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = next(path for path in tmp_path.rglob("*.md") if path.name != "README.md").read_text(encoding="utf-8")
    row = next(line for line in report.splitlines() if line.startswith("| reference margin"))
    assert f"{told[0]['margin']:+.2f} to {told[-1]['margin']:+.2f}".replace("-", "−") in row.replace("-", "−")
    assert "a proxy, not S" in row
