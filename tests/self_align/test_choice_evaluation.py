"""Questions from files, and a tiny model that is asked them alone and with an adapter."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from support.tiny import tiny_model, tiny_tokenizer, write_jsonl

from hf_lifealign import SLMCConfig, evaluate_choices, load_questions
from hf_lifealign.self_align.choices import Question, answer_choices

ROWS = [
    {"question": f"Which is {i}?", "choices": [f"{i}.", "none", "all"][: 2 + i % 2], "best": i % 2} for i in range(9)
]
QUESTIONS = [Question(row["question"], tuple(row["choices"]), row["best"]) for row in ROWS]


def saved(folder: Path, config: Any, strength: float = 1.0) -> str:
    """An adapter of the tiny model that was not trained, but changes what it says."""
    torch.manual_seed(1)
    model: Any = get_peft_model(tiny_model(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter) * strength)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return saved(tmp_path_factory.mktemp("adapters") / "lora", config)


# Files


def test_the_same_questions_from_every_kind_of_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "b.json").write_text(json.dumps(ROWS))
    (tmp_path / "c.json").write_text(json.dumps({"name": "task", "examples": ROWS}, indent=1))
    lines = [f"{r['question']};{json.dumps(r['choices'])};{r['best']}".replace('"', '""') for r in ROWS]
    fields = ['"' + '","'.join(line.split(";")) + '"' for line in lines]
    (tmp_path / "d.csv").write_text("question,choices,best\n" + "\n".join(fields) + "\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "e.parquet")
    for file in sorted(tmp_path.iterdir()):
        assert load_questions(str(file)) == QUESTIONS, file.name
    table = '\ufeffType,Question,Best Answer,Incorrect Answers\nx,"Is it, really?",No,"Yes; Always"\n'
    (tmp_path / "TruthfulQA.csv").write_text(table, encoding="utf-8")
    assert load_questions(tmp_path / "TruthfulQA.csv") == [Question("Is it, really?", ("No", "Yes", "Always"), 0)]


def test_answers_that_are_keys_do_not_mix(tmp_path: Path) -> None:
    rows = [{"input": f"{i}?", "target_scores": {f"good {i}": 1, f"bad {i}": 0}} for i in range(3)]
    write_jsonl(tmp_path / "hhh.jsonl", rows)
    found = [Question(f"{i}?", (f"good {i}", f"bad {i}"), 0) for i in range(3)]
    assert load_questions(str(tmp_path / "hhh.jsonl")) == found
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "hhh.parquet")
    again = load_questions(str(tmp_path / "hhh.parquet"))
    assert [(q.question, set(q.choices), q.choices[q.best]) for q in again] == [
        (q.question, set(q.choices), q.choices[0]) for q in found
    ]


def test_a_part_of_them(tmp_path: Path) -> None:
    file = str(write_jsonl(tmp_path / "a.jsonl", ROWS))
    part = load_questions(file, limit=4)
    assert len(part) == 4
    assert part == [question for question in QUESTIONS if question in part], "in their order"
    assert part == load_questions(file, limit=4)
    assert {tuple(load_questions(file, limit=4, seed=seed)) for seed in range(5)} != {tuple(part)}
    assert load_questions(file, limit=9) == QUESTIONS


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("gone.jsonl", None, "which does not exist. Name a file ending in .json"),
        ("a.txt", "x", "which is not read. Name a file"),
        ("a.jsonl", '{"question": "Q"}\n{', "cannot be read: line 2 is no JSON"),
        ("a.jsonl", "[1]\n", "hold something other than rows"),
        ("a.json", '{"best": 1}', "hold something other than rows"),
        ("a.json", "[]", "There are no questions"),
        ("a.json", '[{"question": "Q"}]', "Row 0 is no question with answers"),
        ("a.parquet", "no", "cannot be read"),
        ("a.csv", b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, name: str, content: Any, told: str) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"You set the questions .*") as caught:
        load_questions(str(file))
    assert told in str(caught.value)


def test_what_a_file_does_not_have(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(ValueError, match="You set config and split for the file"):
        load_questions(file, config="x", split="test")
    with pytest.raises(ValueError, match="which is a folder"):
        load_questions(tmp_path)
    with pytest.raises(ValueError, match="limit=0"):
        load_questions(file, limit=0)
    with pytest.raises(ValueError, match=r"'me/none' .*no file and cannot be loaded from the Hub"):
        load_questions("me/none")


def test_the_only_split_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, asked = datasets.Dataset.from_list(ROWS), []

    def load(found: Any) -> Any:
        return lambda path, **given: asked.append((path, given)) or found

    monkeypatch.setattr(datasets, "load_dataset", load(datasets.DatasetDict({"validation": rows})))
    assert load_questions("me/questions", config="multiple_choice", revision="v1") == QUESTIONS
    assert asked == [("me/questions", {"name": "multiple_choice", "split": None, "revision": "v1"})]
    monkeypatch.setattr(datasets, "load_dataset", load(rows))
    assert load_questions("me/questions", split="test") == QUESTIONS
    monkeypatch.setattr(datasets, "load_dataset", load(datasets.DatasetDict({"a": rows, "b": rows})))
    with pytest.raises(ValueError, match=r"have the splits \['a', 'b'\]\. Set split to one"):
        load_questions("me/questions")


# Models


def test_a_saved_model_and_an_adapter_on_it(tiny_dir: str, adapter: str) -> None:
    report = evaluate_choices(tiny_dir, QUESTIONS, adapter, batch_size=4)
    assert report.result == answer_choices(tiny_model(), tiny_tokenizer(), QUESTIONS), "the model alone"
    merged: Any = PeftModel.from_pretrained(tiny_model(), adapter).merge_and_unload()
    assert report.adapted == answer_choices(merged, tiny_tokenizer(), QUESTIONS), "the adapter is on"
    assert report.adapted.answers != report.result.answers
    assert report.difference is not None
    assert report.difference.difference == pytest.approx(report.adapted.accuracy - report.result.accuracy)
    assert (report.model, report.adapter) == ("tiny-llama", "lora")
    content = json.loads(json.dumps(report.to_json()))
    assert content["difference"]["low"] <= content["difference"]["difference"] <= content["difference"]["high"]
    assert str(Path(tiny_dir).parent) not in json.dumps(content)
    text = report.text()
    assert "9 questions, each in two orders of its answers" in text
    assert "| with lora" in text
    assert "Both orders agree on fewer than half of the questions" in text, "a random model says one letter"
    assert "With the adapter, accuracy: " in text
    assert "With the adapter, over both orders: " in text
    change = report.combined_difference
    assert change is not None
    assert change.difference == pytest.approx(report.adapted.combined - report.result.combined)


def test_a_model_that_is_given_stays_as_it_was(tmp_path: Path) -> None:
    config = SLMCConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model: Any = tiny_model()
    names, before = list(model.state_dict()), answer_choices(model, tiny_tokenizer(), QUESTIONS)
    told = evaluate_choices(model, QUESTIONS, saved(tmp_path / "on", config, 3.0), tiny_tokenizer())
    assert told.result == before
    assert told.adapted is not None
    assert told.adapted.answers != before.answers
    assert list(model.state_dict()) == names
    assert answer_choices(model, tiny_tokenizer(), QUESTIONS) == before
    idle = evaluate_choices(model, QUESTIONS, saved(tmp_path / "off", config, 0.0), tiny_tokenizer())
    assert idle.adapted == idle.result
    assert idle.difference is not None
    assert (idle.difference.difference, idle.difference.better, idle.difference.worse) == (0.0, 0, 0)


def test_what_cannot_be_asked(tiny_dir: str, adapter: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size=0"):
        evaluate_choices(tiny_dir, QUESTIONS, batch_size=0)
    with pytest.raises(ValueError, match=r"You set the language model .* cannot be loaded"):
        evaluate_choices(str(tmp_path), QUESTIONS)
    with pytest.raises(FileNotFoundError, match=r"has no adapter_config.json. Give the folder of a PEFT adapter"):
        evaluate_choices(tiny_dir, QUESTIONS, str(tmp_path))
    with pytest.raises(FileNotFoundError, match="neither a folder nor a Hub repository"):
        evaluate_choices(tiny_dir, QUESTIONS, "./gone")
    with pytest.raises(ValueError, match="which does not fit the model"):
        evaluate_choices(tiny_model(hidden_size=64), QUESTIONS, adapter, tiny_tokenizer())
