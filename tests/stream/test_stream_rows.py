"""Rows in all of TRL's preference forms, the column mapping, and every fault of a row that is refused by number."""

import importlib.util
import json
from typing import Any

import pytest
from datasets import Dataset, Image

from hf_lifealign.stream import Task, TaskStream, fingerprint

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"properties": {"x": {"type": "integer"}}}}}
OTHER_TOOL = {"type": "function", "function": {"name": "say", "parameters": {"properties": {"y": {"type": "string"}}}}}


def test_conversational_rows_keep_tools_and_template_arguments(write, dialogues, texts):
    rows = dialogues(2)
    rows[0] |= {"tools": [TOOL], "chat_template_kwargs": {"enable_thinking": False}, "id": 1}
    rows[1] |= {"tools": [OTHER_TOOL], "chat_template_kwargs": {"enable_thinking": True}, "id": 2}
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add"}}]}
    rows[1]["chosen"] = [call, {"role": "tool", "name": "add", "content": "3"}, *rows[1]["chosen"]]
    test = write("test.jsonl", dialogues(2, 50))
    loaded = Task("a", write("train.jsonl", rows), test).load()
    assert loaded.train.column_names == ["prompt", "chosen", "rejected", "tools", "chat_template_kwargs"]
    assert loaded.train[0]["tools"] == [TOOL]
    assert loaded.train[1]["tools"] == [OTHER_TOOL]
    assert loaded.train[1]["chosen"][0]["tool_calls"][0]["function"]["name"] == "add"
    assert loaded.dropped_columns == {"train": ("id",), "test": ()}
    assert loaded.facts["train"].format == "conversational"


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_implicit_dialogues_get_an_explicit_prompt(write, dialogues, suffix):
    whole = [{k: row["prompt"] + row[k] for k in ("chosen", "rejected")} for row in dialogues(3)]
    explicit = write("explicit.jsonl", dialogues(3))
    implicit = write(f"implicit{suffix}", whole)
    task = Task("a", implicit, explicit)
    loaded = task.load()
    assert loaded.train.column_names == ["prompt", "chosen", "rejected"]
    assert loaded.train.to_list() == dialogues(3)
    assert loaded.implicit_prompt == {"train": True, "test": False}
    assert fingerprint(task, "train") == fingerprint(task, "test")


def test_messages_with_different_keys_still_share_their_beginning(write, dialogues, task):
    row = dialogues(1)[0]
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add"}}]}
    path = write("t.jsonl", [{"chosen": [*row["prompt"], call], "rejected": row["prompt"] + row["rejected"]}])
    loaded = task(train=path).load().train[0]
    assert [message["content"] for message in loaded["prompt"]] == ["Question 0?"]
    assert len(loaded["chosen"]) == len(loaded["rejected"]) == 1


def test_a_text_prompt_beside_whole_dialogues_is_replaced_by_messages(write, dialogues, texts, task):
    rows = [
        {"prompt": t["prompt"], **{k: row["prompt"] + row[k] for k in ("chosen", "rejected")}}
        for t, row in zip(texts(2), dialogues(2), strict=True)
    ]
    assert task(train=write("t.jsonl", rows)).load().train.to_list() == dialogues(2)


def test_implicit_texts(task, refusal):
    rows = [{"chosen": f"Human: Hi {n}\n\nAssistant: yes", "rejected": f"Human: Hi {n}\n\nAssistant: no"} for n in "ab"]
    row = task(train=rows).load().train[1]
    assert row == {"prompt": "Human: Hi b\n\nAssistant:", "chosen": " yes", "rejected": " no"}
    message = refusal(task(train=[*rows, {"chosen": "yes ", "rejected": "no "}]))
    assert "In 1 of 3 rows the prompt is empty (row 2). Set a prompt." in message
    assert "name that column in `columns`" in message


def test_columns_are_renamed_and_a_mapped_column_wins(write, texts, task):
    rows = [
        {"question": r["prompt"], "good": r["chosen"], "bad": r["rejected"], "prompt": "old", "n": 1} for r in texts(3)
    ]
    path = write("train.jsonl", rows)
    columns = {"question": "prompt", "good": "chosen", "bad": "rejected"}
    loaded = Task("a", path, path, columns=columns).load()
    assert loaded.train.to_list() == texts(3)
    assert loaded.dropped_columns["train"] == ("prompt", "n")
    swapped = Task("a", *[Dataset.from_list(texts(3))] * 2, columns={"chosen": "rejected", "rejected": "chosen"}).load()
    assert swapped.train[0] == {"prompt": "Question 0?", "chosen": "Bad 0.", "rejected": "Good 0."}


def test_missing_columns_come_with_a_proposal(task, refusal):
    rows = [{"question": "q", "response_chosen": "a", "loser": "b"}]
    message = refusal(task(train=rows))
    assert "The column 'chosen' and the column 'rejected' is missing; the data has question, response_chosen" in message
    assert "Set columns: {question: prompt, response_chosen: chosen, loser: rejected}." in message
    message = refusal(task(train=[{"prompt": "q", "chosen": "a", "x": "b"}]))
    assert "Set columns: {<your rejected column>: rejected}." in message


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"qestion": "prompt"}, "You set columns with {'qestion': 'prompt'}. The data has no column 'qestion'"),
        ({"prompt": "question"}, "The mapping stands the wrong way round. Set columns: {question: prompt}."),
        ({"x": "promt"}, "'promt' is no column of a preference task. Did you mean 'prompt'?"),
        ({"x": "prompt", "y": "prompt"}, "x and y are both mapped to prompt. Keep one of them."),
        ("prompt", "A str is no mapping. Set a mapping from the source's column to TRL's name"),
        ({"x": 1}, "Column names are texts."),
    ],
)
def test_faulty_mappings(task, refusal, columns, expected):
    assert expected in refusal(task(columns=columns))


def test_a_misspelt_source_column_is_recognised(task, refusal, texts):
    rows = [{"question": r["prompt"], "chosen": r["chosen"], "rejected": r["rejected"]} for r in texts(2)]
    assert "Did you mean 'question'?" in refusal(task(train=rows, columns={"qestion": "prompt"}))


def message(content: Any = "x", **keys: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content, **keys}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"chosen": None}, "chosen is None"),
        ({"prompt": None}, "prompt is None"),
        ({"rejected": " \n"}, "rejected is empty"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"chosen": []}, "chosen is empty"),
        ({"chosen": 3}, "chosen is a int, neither a text nor a list of messages"),
        ({"chosen": ["a"]}, "chosen is a list, neither a text nor a list of messages"),
        ({"chosen": message()}, "texts and messages are mixed in one row (prompt: standard, chosen: conversational"),
        ({"prompt": message(), "chosen": message(" "), "rejected": message()}, "chosen is empty"),
        ({"prompt": [{"content": "x"}], "chosen": message(), "rejected": message()}, "prompt has a message without a"),
        ({"prompt": message(3), "chosen": message(), "rejected": message()}, "prompt has a message whose content is a"),
        (
            {"prompt": [{"role": "user"}], "chosen": message(), "rejected": message()},
            "prompt has a message without con",
        ),
    ],
)
def test_faulty_rows_are_counted_and_named(write, texts, task, refusal, row, expected):
    rows = texts(4)
    rows[2] |= row
    text = refusal(task(train=write("train.jsonl", rows)))
    assert f"In 1 of 4 rows {expected}" in text
    assert "(row 2)" in text


def test_row_numbers_are_the_source_s_and_long_lists_are_cut(task, texts, refusal):
    rows = texts(40)
    for row in rows[10:30]:
        row["chosen"] = ""
    assert "In 20 of 40 rows chosen is empty (rows 10, 11, 12, 13, 14 and 15 more)." in refusal(task(train=rows))
    drawn = task(train=texts(40), max_train=20).load().train_ids
    first = [index for index in drawn if 10 <= index < 30][:5]
    assert f"(rows {', '.join(map(str, first))} and" in refusal(task(train=rows, max_train=20))


def test_two_formats_in_one_split(write, texts, dialogues, task, refusal):
    path = write("train.jsonl", [*texts(3), *dialogues(1, 9)])
    expected = "Two formats are mixed: 3 rows are standard, 1 are conversational (row 3). Write all rows as texts"
    assert expected in refusal(task(train=path))


def test_missing_template_arguments_are_refused(write, dialogues, task, refusal):
    rows = dialogues(3)
    rows[0]["chat_template_kwargs"] = {"x": 1}
    text = refusal(task(train=write("train.jsonl", rows)))
    assert "In 2 of 3 rows chat_template_kwargs is None (rows 1, 2). Write {} into those rows" in text


def test_warnings_name_equal_pairs_repeated_prompts_and_a_likely_prompt_column(texts, task):
    rows = texts(4)
    rows[1]["rejected"] = rows[1]["chosen"]
    rows[3] |= {key: rows[3]["prompt"] + rows[3][key] for key in ("chosen", "rejected")}
    warnings = "\n".join(TaskStream([task(train=rows)]).validate().warnings)
    assert "safe, train: in 1 of 4 rows chosen and rejected are the same (row 1)" in warnings
    assert "both completions begin with the prompt again (row 3)" in warnings
    hidden = [{"question": f"q{n}", "chosen": f"The {n}", "rejected": f"The x{n}"} for n in range(2)]
    warnings = "\n".join(TaskStream([task(train=hidden)]).validate().warnings)
    assert "If it holds the prompt, set columns: {question: prompt}." in warnings


def test_train_and_test_of_different_formats_are_a_warning(dialogues, task):
    warnings = TaskStream([task(test=dialogues(2, 60))]).validate().warnings
    assert warnings == ("safe, train is standard, test is conversational.",)


def test_fingerprints_tell_changed_rows_and_split_the_two_sides(texts, task):
    base = task()
    assert fingerprint(base) == fingerprint(task(name="other"))
    assert fingerprint(base, "train") != fingerprint(base, "test")
    changed = texts(4)
    changed[2]["chosen"] += " "
    other = task(train=changed)
    assert fingerprint(other) != fingerprint(base)
    assert fingerprint(other, "test") == fingerprint(base, "test")
    assert fingerprint(task(train=texts(4)[::-1])) != fingerprint(base)
    with pytest.raises(ValueError, match="Set 'train', 'test' or None"):
        fingerprint(base, "valid")  # type: ignore[arg-type]


def test_the_fingerprint_is_the_same_for_ever(task):
    # A changed value would make every stored run refuse to go on: change it with the run format only.
    assert fingerprint(task()) == "b41e78f8535a393bc185506adc2d72c03afcbc57694ed68cffb6c422a535723a"


@pytest.mark.skipif(importlib.util.find_spec("PIL") is None, reason="pictures need Pillow")
def test_pictures_are_kept_and_told_apart_by_their_bytes(tmp_path, dialogues, task):
    from PIL import Image as Picture

    for index, shade in enumerate((0, 255)):
        Picture.new("L", (2, 2), shade).save(tmp_path / f"{index}.png")
    same = dialogues(1)[0]
    rows = [{**same, "image": str(tmp_path / f"{index}.png")} for index in (0, 1)]
    both = [Dataset.from_list([row]).cast_column("image", Image()) for row in rows]
    apart = task(train=both[0], test=both[1])
    report = TaskStream([apart]).validate()
    assert not report.overlaps
    assert apart.load().train[0]["image"].size == (2, 2)
    assert fingerprint(apart, "train") != fingerprint(apart, "test")
    assert TaskStream([task(train=both[0], test=both[0])]).validate().tasks["safe"].overlap.exact == (0,)


def test_a_json_line_without_some_keys_reads_like_one_with_nulls(write, dialogues, task):
    rows = dialogues(2)
    with_null = [{**row, "prompt": [{**row["prompt"][0], "name": None}]} for row in rows]
    one, two = write("one.jsonl", rows), write("two.jsonl", "".join(json.dumps(row) + "\n" for row in with_null))
    assert fingerprint(task(train=one)) == fingerprint(task(train=two))
