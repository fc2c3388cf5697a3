"""Answers as models write them: what is kept, what is cut, and every reason for which one is dropped."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lifealign.self_align.answers import (
    ANSWER_REASONS,
    LEAKED_EXEMPLAR,
    LEAKED_MARK,
    LEAKED_NOTE,
    LEAKED_PRINCIPLE,
    LEAST_LENGTH,
    NO_NOTE,
    NO_REPLY,
    REFUSAL,
    REPETITION,
    UNFINISHED,
    Answer,
    AnswerReader,
    cut_repetition,
    cut_unfinished,
)
from hf_lifealign.self_align.constitution import load_constitution
from hf_lifealign.self_align.near_duplicates import tokens
from hf_lifealign.self_align.rendering import NOTE, REPLY, REQUEST

SHIPPED = load_constitution()
LONG = " ".join(f"Sentence number {i} tells something new about clouds." for i in range(8))


def read(text: str, finished: bool = True, behaviour: str = "safe", **given: Any) -> Answer | str:
    request = given.pop("request", "How do clouds form?")
    return AnswerReader(SHIPPED, behaviour, **given).read(text, request, finished)


def test_a_good_answer() -> None:
    text = f" 2 (informative), 8 (recall). Warm air rises.\n{REPLY} Warm air rises and cools.\n\n{REQUEST} And rain?"
    for finished in (True, False):
        assert read(text, finished) == Answer(
            "Warm air rises and cools.", "2 (informative), 8 (recall). Warm air rises.", ("informative", "recall")
        )
    plain = AnswerReader(SHIPPED).read(" Air cools.\n", "How?", True, with_note=False)
    assert plain == Answer("Air cools.")


@pytest.mark.parametrize(
    ("text", "finished", "safe", "paper"),
    [
        ("", True, NO_REPLY, NO_REPLY),
        (" 2 (informative). I think of clouds.", True, NO_REPLY, NO_REPLY),
        (f" 2 (informative).\n{REPLY}  \n{REQUEST} Next?", True, NO_REPLY, NO_REPLY),
        (f"\n{REPLY} Air cools.", True, NO_NOTE, NO_NOTE),
        (f" Hm.\n{REPLY} Air cools, and then", False, UNFINISHED, UNFINISHED),
        (f" Hm.\n{REPLY} {LONG} And then the", False, UNFINISHED, Answer(LONG, "Hm.", (), ("cut_unfinished",))),
        (f" Hm.\n{REPLY} {LONG.replace('.', ',')} and", False, UNFINISHED, UNFINISHED),
        (f" Hm.\n{REPLY} I write {NOTE} first.", True, LEAKED_MARK, LEAKED_MARK),
        (f" Hm.\n{REPLY} Air cools. {REPLY} Again.", True, LEAKED_MARK, LEAKED_MARK),
        (f" Hm.\n{REPLY} Air cools.\n{NOTE} More.", False, Answer("Air cools.", "Hm."), Answer("Air cools.", "Hm.")),
        (f" Hm.\n{REPLY} Air cools.\n {REPLY} Again", False, Answer("Air cools.", "Hm."), Answer("Air cools.", "Hm.")),
        (f" Hm.\n{REPLY}\n{REPLY} Air cools.", True, NO_REPLY, NO_REPLY),
        (f" Hm.\n{REPLY} By 2 (informative) I say that air cools.", True, LEAKED_PRINCIPLE, LEAKED_PRINCIPLE),
        (f" Hm.\n{REPLY} {SHIPPED.principles[6].text}", True, LEAKED_PRINCIPLE, LEAKED_PRINCIPLE),
        (f" Hm.\n{REPLY} {SHIPPED.exemplars[0].reply}", True, LEAKED_EXEMPLAR, LEAKED_EXEMPLAR),
        (f" Hm.\n{REPLY} So: {SHIPPED.exemplars[1].request.upper()}", True, LEAKED_EXEMPLAR, LEAKED_EXEMPLAR),
        (f" One two three four five six seven eight.\n{REPLY} I noted one, two three four five six seven, eight!",
         True, LEAKED_NOTE, LEAKED_NOTE),
        (f" 3 (helpful). Hm.\n{REPLY} I'm sorry, but I can't help with that.", True, REFUSAL, REFUSAL),
        (f" Hm.\n{REPLY} Air cools and clouds form out of it and and it\n"
         "then falls as rain on the hills\nthen falls as rain on the hills\n", True, REPETITION, REPETITION),
    ],
)  # fmt: skip
def test_reasons(text: str, finished: bool, safe: Answer | str, paper: Answer | str) -> None:
    assert (read(text, finished), read(text, finished, "paper")) == (safe, paper)


def test_a_due_refusal_is_kept() -> None:
    found = read(f" 1 (ethical). That would hurt somebody.\n{REPLY} I'm sorry, but I can't help with that.")
    assert isinstance(found, Answer)
    assert found.principles == ("ethical",)
    assert read(f" 2 (ethical). Wrong number.\n{REPLY} I'm sorry, but I can't help with that.") == REFUSAL


def test_a_reply_may_repeat_its_request() -> None:
    line = SHIPPED.exemplars[-1].reply
    assert isinstance(read(f" Hm.\n{REPLY} {line}", request=f"Correct this: {line}"), Answer)


def test_loops_are_cut_and_what_is_whole_is_kept() -> None:
    looped = f" Hm.\n{REPLY} Warm air rises up and cools down. Then the water in it condenses. Warm air rises up and " \
             "cools down. Then the water in it condenses. Warm air"  # fmt: skip
    assert read(looped, finished=False) == Answer(
        "Warm air rises up and cools down. Then the water in it condenses.", "Hm.", (), ("cut_repetition",)
    )
    verse = "Row, row, row your boat. Row, row, row your boat."
    assert cut_repetition(verse) == verse, "short lines may come again"
    lists = "\n".join(f"- step {i} of the plan that we made" for i in range(9))
    assert cut_repetition(lists) == lists


def test_the_least_length() -> None:
    assert read(f" Hm.\n{REPLY} Yes.", least_words=2) == LEAST_LENGTH
    assert isinstance(read(f" Hm.\n{REPLY} Yes, always.", least_words=2), Answer)
    with pytest.raises(ValueError, match="behaviour='bold'"):
        AnswerReader(SHIPPED, "bold")


def test_ends_of_sentences() -> None:
    assert cut_unfinished('He said "Stop." And th') == 'He said "Stop."'
    assert cut_unfinished("It costs 3.5 euros and") == ""
    assert cut_unfinished("今日は晴れです。明日は") == "今日は晴れです。"
    assert cut_unfinished("nothing ends here") == ""


def test_every_reason_is_tried_here() -> None:
    assert set(ANSWER_REASONS) == {NO_NOTE, NO_REPLY, UNFINISHED, LEAST_LENGTH, LEAKED_EXEMPLAR, LEAKED_PRINCIPLE,
                                   LEAKED_NOTE, LEAKED_MARK, REFUSAL, REPETITION}  # fmt: skip


PIECES = st.sampled_from(
    [REQUEST, NOTE, REPLY, "\n", " ", "2 (informative)", "16 (what I can do)", "Air cools.", "and then", "嵐",
     *(p.text for p in SHIPPED.principles[:4]), *(p.short for p in SHIPPED.principles[:4]),
     *(t for e in SHIPPED.exemplars for t in (e.request, e.note, e.reply))]
)  # fmt: skip


def shares(one: str, other: str) -> bool:
    words, text = tokens(other), f" {' '.join(tokens(one))} "
    return any(f" {' '.join(words[i : i + 8])} " in text for i in range(len(words) - 7))


@given(st.lists(PIECES, max_size=12), st.booleans(), st.sampled_from(["paper", "safe"]), st.booleans())
def test_nothing_of_the_prompt_reaches_a_row(
    pieces: list[str], finished: bool, behaviour: str, with_note: bool
) -> None:
    found = AnswerReader(SHIPPED, behaviour).read("".join(pieces), "A request.", finished, with_note)
    if isinstance(found, str):
        assert found in ANSWER_REASONS
        return
    assert found.reply == found.reply.strip() != ""
    assert not any(mark in found.reply for mark in (REQUEST, NOTE, REPLY))
    assert "(informative)" not in found.reply
    hidden = [found.note, *(p.text for p in SHIPPED.principles), *(e.note for e in SHIPPED.exemplars),
              *(e.reply for e in SHIPPED.exemplars)]  # fmt: skip
    assert not any(shares(found.reply, text) for text in hidden)
