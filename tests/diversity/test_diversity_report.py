"""The report: calibration, every form of data, warnings at their thresholds, samples, and what is refused."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from support.tiny import preference_rows, tiny_tokenizer, write_jsonl
from support.tiny_encoder import save_tiny_encoder
from tokenizers.processors import TemplateProcessing

from hf_lifealign import diversity_report
from hf_lifealign.diversity import vendi_score
from hf_lifealign.diversity.judgement import judge
from hf_lifealign.diversity.rendering import visible
from hf_lifealign.rewards import encoder


def fresh_words() -> Iterator[str]:
    number = 0
    while True:
        number += 1
        yield f"w{number}"


def answers_of_templates(templates: int, rows: int, shared: int = 0) -> list[str]:
    """Rows that each repeat one of some templates of 12 words, the first `shared` of them the same in all."""
    source = fresh_words()
    common = [next(source) for _ in range(shared)]
    made = [" ".join([*(next(source) for _ in range(12 - shared)), *common]) for _ in range(templates)]
    return [made[row % templates] for row in range(rows)]


def diverse_answers(rows: int, seed: int = 0) -> list[str]:
    """Texts of 30 words by Zipf's law from a vocabulary of 5000."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, 5001)
    drawn = rng.choice(5000, size=(rows, 30), p=weights / weights.sum())
    return [" ".join(f"v{word}" for word in row) for row in drawn]


# --- the calibration of the method notes: fixed template, ten templates, diverse


def test_a_fixed_template_is_worth_one_answer() -> None:
    report = diversity_report(answers_of_templates(1, 200))
    assert report.exact_collision == 1.0
    assert set(report.prefix_collision.values()) == {1.0}
    assert report.similarity == pytest.approx(1.0)
    assert report.vendi == pytest.approx(1.0)
    assert report.duplicates == 199
    assert [warning.kind for warning in report.warnings] == ["first_token_collision", "vendi", "duplicates"]


def test_ten_templates_are_worth_up_to_ten() -> None:
    report = diversity_report(answers_of_templates(10, 1000))
    assert report.exact_collision == pytest.approx(0.1, abs=2e-3)
    assert report.vendi == pytest.approx(10.0)
    # exactly at the threshold, whatever the last bit says
    assert [warning.kind for warning in report.warnings] == ["duplicates"]
    alike = diversity_report(answers_of_templates(10, 1000, shared=3))
    assert alike.exact_collision == report.exact_collision
    assert 6 < alike.vendi < 9.9
    assert [warning.kind for warning in alike.warnings] == ["vendi", "duplicates"]


def test_diverse_answers_call_for_no_warning() -> None:
    report = diversity_report(diverse_answers(400))
    assert report.exact_collision == 0.0
    assert report.prefix_collision[4] < 0.01
    assert report.vendi > 40
    assert report.warnings == []
    assert report.notes == []


# --- what is measured


def test_each_number_by_hand() -> None:
    report = diversity_report(["a b a b", "a b c", "a b c", "d", " "])
    assert (report.rows, report.empty_rows, report.answers) == (5, 1, 4)
    assert report.mean_length == (4 + 3 + 3 + 1) / 4
    assert report.exact_collision == 1 / 6
    assert report.prefix_collision == {1: 1 / 2, 2: 1 / 2, 4: 1 / 6, 8: 1 / 6}
    assert report.distinct_1 == 4 / 11
    assert report.distinct_2 == 3 / 7
    assert (report.duplicates, report.duplicate_share) == (1, 1 / 4)
    # a b a b and a b c share a and b, twice each in the first, and the pair a b, which it has twice among three
    one, two = 4 / (math.sqrt(8) * math.sqrt(3)), 2 / (math.sqrt(5) * math.sqrt(2))
    mixed = (one + two) / 2
    kernel = np.array([[1, mixed, mixed, 0], [mixed, 1, 1, 0], [mixed, 1, 1, 0], [0, 0, 0, 1]])
    assert report.similarity == pytest.approx((2 * mixed + 1) / 6)
    assert report.vendi == pytest.approx(vendi_score(kernel))
    assert report.vendi_rows == 4


def test_what_is_repeated_most() -> None:
    texts = ["Sure, here is the one.", "Sure, here  is the two.", "No.", "No. ", "no", "Well then, I see it"]
    report = diversity_report(texts)
    assert [(one.text, one.count) for one in report.openings] == [("Sure, here is the", 2), ("No.", 2)]
    assert [(one.text, one.count, one.share) for one in report.repeated] == [("No.", 2, 1 / 3)]
    many = diversity_report([f"{word} x y z" for word in "abcdefg" for _ in range(ord(word) - 95)])
    assert [one.text[0] for one in many.openings] == ["g", "f", "e", "d", "c"]


def test_tokens_of_a_tokenizer(tiny_dir: str) -> None:
    given = diversity_report(["abc", "abd", "abd"], tokenizer=tiny_tokenizer())
    assert given.mean_length == 3
    assert given.prefix_collision == {1: 1.0, 2: 1.0, 4: 1 / 3, 8: 1 / 3}
    loaded = diversity_report(["abc", "abd", "abd"], tokenizer=tiny_dir)
    assert loaded.prefix_collision == given.prefix_collision
    assert loaded.tokens == Path(tiny_dir).name
    assert "tokens of tiny-llama" in loaded.text()
    # no special tokens, nothing cut, and as many rows as there are, over several batches
    texts = [f"{number:04d}" * 400 for number in range(1200)]
    long = diversity_report(texts, tokenizer=tiny_dir, max_rows=10)
    assert long.mean_length == 1600
    assert long.exact_collision == 0.0


def test_special_tokens_do_not_count() -> None:
    """A first token that the tokenizer puts before every text would make all of them begin alike."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 1)])
    assert tokenizer("a")["input_ids"][0] == 1
    assert diversity_report(["a", "b"], tokenizer=tokenizer).prefix_collision[1] == 0.0


def test_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "_ENCODERS", {})
    folder = save_tiny_encoder(tmp_path / "encoder")
    same = diversity_report(["yes"] * 4, embedding=folder).embedding
    assert same is not None
    assert same.vendi == pytest.approx(1.0, abs=1e-3)
    assert same.similarity == pytest.approx(1.0, abs=1e-5)
    texts = diverse_answers(6)
    report = diversity_report(texts, embedding=folder)
    assert report.embedding is not None
    vectors = encoder.shared_encoder(folder).embed(texts).double().numpy()
    kernel = vectors @ vectors.T
    assert report.embedding.vendi == pytest.approx(vendi_score(kernel), rel=1e-6)
    assert report.embedding.similarity == pytest.approx((kernel.sum() - np.trace(kernel)) / 30)
    assert report.embedding.model == "encoder"
    assert "mean cosine of two answers by encoder" in report.text()
    sampled = diversity_report(texts, embedding=folder, max_rows=4)
    assert sampled.embedding is not None
    assert sampled.embedding.rows == 4
    assert "The Vendi scores and the embedding similarity are of a sample of 4 of 6" in sampled.notes[0]


# --- samples


def test_above_max_rows_the_vendi_score_is_of_a_seeded_sample() -> None:
    texts = diverse_answers(90)
    whole, small = diversity_report(texts, max_rows=90), diversity_report(texts, max_rows=30)
    assert whole.notes == []
    assert (whole.vendi_rows, small.vendi_rows) == (90, 30)
    assert small.notes == [
        "The Vendi score is of a sample of 30 of 90 answers (seed 0); a sample tends to score lower than all rows. "
        "Raise max_rows to take more."
    ]
    assert small.notes[0] in small.text()
    assert small.vendi < whole.vendi
    assert small.similarity == whole.similarity
    assert diversity_report(texts, max_rows=30) == small
    assert diversity_report(texts, max_rows=30, seed=1).vendi != small.vendi


def test_the_sample_is_taken_from_everywhere() -> None:
    """Half of the rows are one template, in one block: a sample of the first rows would see nothing else."""
    texts = answers_of_templates(1, 100) + diverse_answers(100)
    report = diversity_report(texts, max_rows=60)
    assert 8 < report.vendi < 40


# --- warnings


def judged(collision: float = 0.0, vendi: float = 50.0, rows: int = 100, duplicates: int = 0) -> list[str]:
    return [warning.kind for warning in judge(collision, vendi, rows, duplicates, 100)]


def test_warnings_begin_above_their_thresholds() -> None:
    assert judged() == []
    assert judged(collision=0.4, vendi=10.0, duplicates=5) == []
    assert judged(collision=0.4001) == ["first_token_collision"]
    assert judged(vendi=9.999) == ["vendi"]
    assert judged(duplicates=6) == ["duplicates"]
    assert judged(vendi=5.0, rows=19) == []
    assert judged(vendi=5.0, rows=20) == ["vendi"]


def test_warnings_say_what_is_wrong_and_what_to_do() -> None:
    for warning in judge(0.87, 3.21, 100, 40, 100):
        assert "provisional threshold" in warning.message
        assert warning.to_json()["provisional"] is True
    told = [warning.message for warning in judge(0.87, 3.21, 100, 40, 100)]
    for message, parts in zip(
        told,
        [("87%", "40%", "style-diversified"), ("3.2", "10", "style-diversified"), ("40 of 100", "5%", "Remove")],
        strict=True,
    ):
        for part in parts:
            assert part in message


def test_of_few_rows_the_vendi_score_cannot_be_judged() -> None:
    report = diversity_report(diverse_answers(19))
    assert "vendi" not in [warning.kind for warning in report.warnings]
    assert report.notes == [
        "The Vendi score cannot be judged: it is at most the number of rows, 19 here. Give at least 20."
    ]
    assert not diversity_report(diverse_answers(20)).notes
    assert "cannot be judged" in diversity_report(diverse_answers(50), max_rows=10).notes[1]


# --- where the answers come from

TEXTS = ["one a", "two b", "three c"]
TALK = [
    [{"role": "user", "content": "q"}, {"role": "assistant", "content": "no"}, {"role": "user", "content": "?"},
     {"role": "assistant", "content": text}] for text in TEXTS
]  # fmt: skip


def test_every_form_of_data_gives_the_same(tmp_path: Path) -> None:
    rows = [{"text": text, "other": "same"} for text in TEXTS]
    talks = [{"completion": talk} for talk in TALK]
    write_jsonl(tmp_path / "data" / "test.jsonl", rows)
    Dataset.from_list(talks).to_parquet(tmp_path / "talks.parquet")
    forms: list[tuple[Any, dict[str, Any]]] = [
        (TEXTS, {}), (tuple(TEXTS), {}), (rows, {}), (rows, {"column": "text"}), (TALK, {}), (talks, {}),
        (Dataset.from_list(rows), {}), (Dataset.from_list(rows).with_format("numpy"), {}),
        (Dataset.from_list(talks), {}), (str(tmp_path / "data"), {"split": "test"}),
        (str(tmp_path / "data" / "test.jsonl"), {}), (tmp_path / "data" / "test.jsonl", {}),
        (str(tmp_path / "talks.parquet"), {}),
    ]  # fmt: skip
    expected = diversity_report(TEXTS)
    for data, options in forms:
        report = diversity_report(data, **options)
        assert (report.rows, report.mean_length, report.vendi) == (3, 2.0, expected.vendi), (data, options)


def test_what_was_read_is_named_without_folders(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data" / "train.jsonl", [{"text": text} for text in TEXTS])
    folder, file = (diversity_report(tmp_path / name) for name in ("data", "data/train.jsonl"))
    assert (folder.data, folder.split, folder.column) == ("data", "train", "text")
    assert (file.data, file.split, file.column) == ("train.jsonl", None, "text")
    assert (diversity_report(TEXTS).data, diversity_report(TEXTS).column) == (None, None)
    for report in (folder, file):
        assert str(tmp_path) not in json.dumps(report.to_json()) + report.text()


def test_the_column_by_default() -> None:
    names = ["chosen", "completion", "text", "response", "answer"]
    for first in range(len(names)):
        rows = [{"prompt": "p", **{name: f"{name} {row}" for name in reversed(names[first:])}} for row in range(3)]
        assert diversity_report(rows).column == names[first]
        assert diversity_report(Dataset.from_list(rows)).column == names[first]
    for column, length in ((None, 3), ("rejected", 4)):  # "yes 0." and "no it is 0"
        assert diversity_report(preference_rows(3), column=column).mean_length == length


def test_parts_missing_values_and_calls_of_tools() -> None:
    rows = [
        {"chosen": [{"role": "assistant", "content": [{"type": "text", "text": "a b"}]}]},
        {"chosen": [{"role": "assistant", "content": "a b"}]},
        {"chosen": [{"role": "assistant", "content": None, "tool_calls": [{}]}]},
        {"chosen": None},
        {"prompt": "x"},
    ]
    report = diversity_report(rows)
    assert (report.rows, report.empty_rows, report.exact_collision) == (5, 3, 1.0)
    assert "3 rows without text were left out." in report.notes


def test_dates_in_a_column_of_any_name_stay_texts(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "dates.jsonl", [{"day": "2020-01-01"}, {"day": "1999-12-31"}])
    assert diversity_report(tmp_path / "dates.jsonl", column="day").prefix_collision[1] == 0.0


def test_a_limit_takes_the_first_rows_and_says_so() -> None:
    for data in (["a", "a", "b"], [{"text": t} for t in "aab"], Dataset.from_list([{"text": t} for t in "aab"])):
        report = diversity_report(data, limit=2)
        assert (report.rows, report.exact_collision) == (2, 1.0)
        assert report.notes[0] == "Only the first 2 of 3 rows were read."
        assert not any("Only" in note for note in diversity_report(data, limit=3).notes)


# --- what is refused


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        ([], {}, "the list is empty. Give at least 2"),
        (["one"], {}, "1 row with text, of 1"),
        (["one", "", " \n", None], {}, "1 row with text, of 4"),
        (["", ""], {}, "0 rows with text, of 2"),
        (["a", 5], {}, "Row 1 holds 5, which is no text .a int"),
        ([{"text": "a"}, {"text": ["b"]}], {}, r"Row 1 of the column 'text' holds \['b'\]"),
        ([{"text": "a"}, "b"], {}, "Row 1 is a str, and row 0 has columns"),
        (["a", "b"], {"column": "text"}, "Give rows with columns, or leave column out"),
        ([{"chosn": "a"}, {"chosn": "b"}], {}, "has the columns 'chosn', and none of chosen, completion"),
        ([{"text": "a"}], {"column": "txt"}, "the column 'txt'. The data has the columns 'text'. Did you mean 'text'"),
        ([{"text": [{"role": "user", "content": "q"}]}], {}, "no message with the role 'assistant'"),
        ([{"text": [{"from": "gpt", "value": "q"}]}], {}, "no message with the role 'assistant'"),
        (Dataset.from_list([{"text": 1}, {"text": 2}]), {}, "Row 0 of the column 'text' holds 1"),
        (Dataset.from_dict({"text": []}), {}, "You set the data with a Dataset. It holds no rows"),
        (DatasetDict({"train": Dataset.from_dict({"text": ["a"]})}), {}, "holds several splits"),
        (5, {}, "A int is no source"),
        ("gone.jsonl", {}, "'gone.jsonl'.*does not exist"),
        (["a", "b"], {"max_rows": 1}, "max_rows=1. Set a whole number from 2"),
        (["a", "b"], {"seed": -1}, "seed=-1. Set a whole number from 0"),
        (["a", "b"], {"limit": 0}, "limit=0. Set a whole number from 2"),
        (["a", "b"], {"limit": True}, "limit=True"),
        (["a", "b"], {"tokenizer": 5}, "You set tokenizer with a int"),
        (["a", "b"], {"tokenizer": "no/such-tokenizer"}, "The tokenizer 'no/such-tokenizer' cannot be loaded"),
        (["a", "b"], {"embedding": "embedded:nothing"}, "There is no embedded model 'nothing'"),
    ],
)
def test_errors_say_what_to_do(data: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        diversity_report(data, **options)


def test_of_many_columns_not_all_are_named() -> None:
    with pytest.raises(ValueError, match=r"'c11' and 8 more\."):
        diversity_report([{f"c{n}": "a" for n in range(20)}], column="x")


# --- how it is told


def test_json_holds_everything() -> None:
    report = diversity_report(answers_of_templates(2, 40), max_rows=30)
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["format"] == 1
    assert content["prefix_collision"] == {str(k): v for k, v in report.prefix_collision.items()}
    assert content["duplicate_share"] == 38 / 40
    assert [one["count"] for one in content["repeated"]] == [20, 20]
    assert [one["kind"] for one in content["warnings"]] == ["first_token_collision", "vendi", "duplicates"]
    assert content["vendi"] == report.vendi
    assert content["notes"] == report.notes


EVIL = "\x1b[31mred\x1b]0;title\x07 \x9b2J a|b \u202egnp.exe\u2066 \ud800 x"


def test_no_text_of_the_data_reaches_the_terminal_as_it_is() -> None:
    rows = [{EVIL: f"{EVIL}\r\n{'long ' * 40}"}] * 25
    text = diversity_report(rows, column=EVIL).text()
    assert [c for c in text if not c.isprintable() and c != "\n"] == []
    assert r"\x1b[31mred\x1b]0;title\x07 \x9b2J a" in text
    assert r"\u202egnp.exe" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") - line.count("\\|") for line in table} == {4}  # no row was broken or split
    with pytest.raises(ValueError, match=r"\\x1b") as refused:
        diversity_report([{EVIL: "a"}], column="b")
    assert str(refused.value).isprintable()
    with pytest.raises(ValueError, match=r"\\x1b") as refused:
        diversity_report([{"text": {EVIL: 1}}])
    assert str(refused.value).isprintable()


def test_what_is_shown_is_cut() -> None:
    assert visible("a  b\nc") == "a b c"
    assert visible("x" * 64) == "x" * 64
    assert visible("x" * 65) == "x" * 63 + "…"
    assert len(visible("\x1b" * 64)) == 64
    assert visible("a" + " " * 5000 + "b") == "a…"


def test_the_room_needs_no_torch_and_no_data_sets() -> None:
    code = (
        "import sys; from hf_lifealign import diversity_report; print(diversity_report(['a b', 'a c']).similarity); "
        "print([m for m in ('torch', 'datasets', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[1] == "[]"
