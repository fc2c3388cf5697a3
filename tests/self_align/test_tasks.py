"""Tasks as models write them: lists, single lines, and every reason for which one is dropped."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lifealign.self_align.constitution import load_constitution
from hf_lifealign.self_align.rendering import NOTE, REPLY
from hf_lifealign.self_align.tasks import (
    BAD_START,
    DUPLICATE,
    EMPTY,
    MARK,
    NEAR_DUPLICATE,
    OTHER_MEDIA,
    OUT_OF_ORDER,
    TASK_REASONS,
    TOO_LONG,
    TOO_SHORT,
    TRUNCATED,
    Dropped,
    TaskPool,
    fault_of,
    read_line,
    read_list,
)

LIST = " Name three rivers.\n7. Why do\n   cats purr?\n8) Write a haiku about 3.5 apples.\n9. Tell me"


def test_a_list_that_was_cut_off() -> None:
    kept, dropped = read_list(LIST, 6, finished=False)
    assert kept == ["Name three rivers.", "Why do cats purr?", "Write a haiku about 3.5 apples."]
    assert dropped == [Dropped("Tell me", TRUNCATED)]


def test_a_list_that_came_to_its_end() -> None:
    assert read_list(LIST, 6, finished=True) == (
        ["Name three rivers.", "Why do cats purr?", "Write a haiku about 3.5 apples.", "Tell me"], [],
    )  # fmt: skip
    kept, dropped = read_list(LIST, 6, finished=True, behaviour="paper")
    assert (len(kept), dropped) == (3, [Dropped("Tell me", TRUNCATED)])


def test_a_list_that_loses_count() -> None:
    text = " First task here.\n8. Second one.\n7. Third one.\n9. Fourth one."
    kept, dropped = read_list(text, 7, finished=True)
    assert kept == ["First task here.", "Second one."]
    assert dropped == [Dropped("Third one.", OUT_OF_ORDER), Dropped("Fourth one.", OUT_OF_ORDER)]
    kept, dropped = read_list(text, 7, finished=False)
    assert kept == ["First task here.", "Second one."]
    assert dropped == [Dropped("Third one.", OUT_OF_ORDER), Dropped("Fourth one.", TRUNCATED)]


@pytest.mark.parametrize(
    ("text", "kept", "dropped"),
    [
        ("", [], [Dropped("", EMPTY)]),
        ("\n7.\n8. A task.", ["A task."], [Dropped("", EMPTY), Dropped("", EMPTY)]),
        (" Everything on one line, 7. with a number", ["Everything on one line, 7. with a number"], []),
        ("一番目の課題\n7. 二番目", ["一番目の課題", "二番目"], []),
    ],
)
def test_odd_lists(text: str, kept: list[str], dropped: list[Dropped]) -> None:
    assert read_list(text, 6, finished=True) == (kept, dropped)


@given(st.text(), st.integers(1, 30), st.booleans(), st.sampled_from(["paper", "safe"]))
def test_any_text_is_read(text: str, first: int, finished: bool, behaviour: str) -> None:
    kept, dropped = read_list(text, first, finished, behaviour)
    assert all(item and item == " ".join(item.split()) for item in kept)
    assert {each.reason for each in dropped} <= {TRUNCATED, OUT_OF_ORDER, EMPTY}
    line, fault = read_line(text, finished)
    assert (line is None) != (fault is None)


def test_a_line() -> None:
    assert read_line(" Who was  it?\nKind: b\nTopic: c", finished=False) == ("Who was it?", None)
    assert read_line(" Who was it", finished=True) == ("Who was it", None)
    assert read_line(" Who was it", finished=False) == (None, Dropped("Who was it", TRUNCATED))
    assert read_line(" \n ", finished=True) == (None, Dropped("", EMPTY))


@pytest.mark.parametrize(
    ("task", "safe", "paper"),
    [
        ("Explain how rain forms.", None, None),
        ("Tell a joke", TOO_SHORT, TOO_SHORT),
        ("word " * 151, TOO_LONG, TOO_LONG),
        ("word " * 150, None, None),
        ("Describe the picture that I sent.", OTHER_MEDIA, OTHER_MEDIA),
        ("Describe a picturesque village in spring.", None, None),
        ("Sort these FILES by their date.", OTHER_MEDIA, OTHER_MEDIA),
        ("- list of three rivers", BAD_START, BAD_START),
        ("«Où» est un mot français", BAD_START, BAD_START),
        ("Écris un poème sur l'automne", None, BAD_START),
        ("10 ways to save water", None, None),
        ("今日の天気について短い詩を書いてください", None, TOO_SHORT),
        (f"What does {NOTE} mean in this text?", MARK, MARK),
        (f"Say it. {REPLY} I said it.", MARK, MARK),
    ],
)
def test_faults(task: str, safe: str | None, paper: str | None) -> None:
    assert (fault_of(task), fault_of(task, "paper")) == (safe, paper)


def test_a_pool_takes_no_two_alike() -> None:
    pool = TaskPool(["Explain how rain forms in the mountains."])
    offers = [
        "explain how RAIN forms, in the mountains!",
        "Explain how snow forms in the mountains.",
        "Which river is the longest of Europe?",
        "Which river is the longest of Europe",
        "Расскажи о самой длинной реке Европы",
        "Расскажи о самой длинной реке Европы!",
        "Почему небо вечером бывает красным?",
        "See it",
    ]
    assert [pool.offer(offer) for offer in offers] == [
        DUPLICATE, NEAR_DUPLICATE, None, DUPLICATE, None, DUPLICATE, None, TOO_SHORT,
    ]  # fmt: skip
    assert pool.accepted == [offers[2], offers[4], offers[6]]
    with pytest.raises(ValueError, match="behaviour='lax'"):
        TaskPool(behaviour="lax")


def test_what_is_shipped_would_be_accepted() -> None:
    constitution = load_constitution()
    pool = TaskPool()
    told = Counter(pool.offer(task) for task in [*constitution.seeds, *(t.question for t in constitution.topics)])
    assert set(told) == {None}


def test_every_reason_is_tried_here() -> None:
    assert set(TASK_REASONS) == {TRUNCATED, OUT_OF_ORDER, EMPTY, TOO_SHORT, TOO_LONG, OTHER_MEDIA, BAD_START, DUPLICATE,
                                 NEAR_DUPLICATE, MARK}  # fmt: skip
