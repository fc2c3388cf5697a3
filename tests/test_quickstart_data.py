"""The quickstart preference data is well formed, and no surface cue (length, digits, a word) gives the answer away."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[1] / "recipes" / "quickstart" / "data"
ROWS = {"train": 60, "test": 24}
OPENER_LIMIT = {"train": 3, "test": 2}
SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Limits:
    """What a task's files must keep to; shares are of rows."""

    prompt_words: int = 28
    words: tuple[int, int] = (16, 42)
    sentences: int = 3
    word_gap: int = 10
    mean_gap: float = 0.06
    longer: tuple[float, float] = (0.40, 0.60)
    trigram: float = 0.08
    word_rule: float = 0.70
    digit_rule: float = 0.65
    learnt_rule: float = 0.72
    prompt_ratio: float = 0.70


# A task that needs another limit says so here, e.g. Limits(words=(12, 42)).
TASKS = {"detailed": Limits(), "harmless": Limits(), "uncertain": Limits()}

each_task = pytest.mark.parametrize("task", list(TASKS))
each_split = pytest.mark.parametrize("split", list(ROWS))
each_side = pytest.mark.parametrize("side", SIDES)

Row = dict[str, str]
Feature = Callable[[str], int]


@cache
def raw_rows(task: str, split: str) -> tuple[dict, ...]:
    lines = (DATA / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(line) for line in lines)


@cache
def rows(task: str, split: str) -> tuple[Row, ...]:
    return tuple({key: turns[0]["content"] for key, turns in row.items()} for row in raw_rows(task, split))


def n_words(text: str) -> int:
    return len(text.split())


def n_digits(text: str) -> int:
    return sum(char.isdigit() for char in text)


def n_sentences(text: str) -> int:
    return len(re.findall(r"[.!?]+[\"”)]*(?=\s|$)", text))


@cache
def letter_words(text: str) -> Counter[str]:
    return Counter(re.findall(r"[^\W\d_]+", text.lower()))


def trigrams(text: str) -> set[tuple[str, ...]]:
    tokens = re.findall(r"\w+", text.lower())
    return set(zip(tokens, tokens[1:], tokens[2:], strict=False))


def opener(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower())[:2])


def vocabulary(data: tuple[Row, ...]) -> list[str]:
    return sorted({word for row in data for side in SIDES for word in letter_words(row[side])})


def more_is_chosen(data: tuple[Row, ...], feature: Feature) -> float:
    """Accuracy of "the side with more of `feature` is the chosen one", a tie counting one half."""
    gaps = [feature(row["chosen"]) - feature(row["rejected"]) for row in data]
    return sum(1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps) / len(gaps)


def occurrences(word: str) -> Feature:
    return lambda text: letter_words(text)[word]


def presence(word: str) -> Feature:
    return lambda text: int(word in letter_words(text))


def learnt(train: tuple[Row, ...], test: tuple[Row, ...], feature: Feature) -> tuple[float, float]:
    """Accuracy on train and on test of the rule on `feature`, with the direction that train prefers."""
    on_train, on_test = more_is_chosen(train, feature), more_is_chosen(test, feature)
    return (on_train, on_test) if on_train >= 0.5 else (1 - on_train, 1 - on_test)


def texts(data: tuple[Row, ...]) -> Iterator[tuple[str, str]]:
    for row in data:
        yield from row.items()


@each_split
@each_task
def test_row_count_and_schema(task: str, split: str) -> None:
    data = raw_rows(task, split)
    assert len(data) == ROWS[split]
    for row in data:
        assert list(row) == ["prompt", "chosen", "rejected"]
        for key, turns in row.items():
            assert [sorted(turn) for turn in turns] == [["content", "role"]]
            assert turns[0]["role"] == ("user" if key == "prompt" else "assistant")
            content = turns[0]["content"]
            assert content
            assert content == content.strip()
        assert row["chosen"] != row["rejected"]


@each_split
@each_task
def test_texts_are_short(task: str, split: str) -> None:
    limits = TASKS[task]
    low, high = limits.words
    for key, text in texts(rows(task, split)):
        if key == "prompt":
            assert n_words(text) <= limits.prompt_words, text
        else:
            assert low <= n_words(text) <= high, text
            assert 1 <= n_sentences(text) <= limits.sentences, text


@pytest.mark.parametrize("length", [n_words, len], ids=["words", "characters"])
@each_split
@each_task
def test_longer_side_is_chosen_about_half_the_time(task: str, split: str, length: Feature) -> None:
    data = rows(task, split)
    share = sum(length(row["chosen"]) > length(row["rejected"]) for row in data) / len(data)
    low, high = TASKS[task].longer
    assert low <= share <= high


@each_split
@each_task
def test_both_sides_are_equally_long(task: str, split: str) -> None:
    data, limits = rows(task, split), TASKS[task]
    for row in data:
        assert abs(n_words(row["chosen"]) - n_words(row["rejected"])) <= limits.word_gap, row["prompt"]
    small, large = sorted(sum(n_words(row[side]) for row in data) / len(data) for side in SIDES)
    assert large <= small * (1 + limits.mean_gap)


@each_side
@each_split
@each_task
def test_no_phrase_is_repeated(task: str, split: str, side: str) -> None:
    data = rows(task, split)
    counts = Counter(gram for row in data for gram in trigrams(row[side]))
    limit = TASKS[task].trigram * len(data)
    assert [(gram, count) for gram, count in counts.items() if count > limit] == []


@each_side
@each_split
@each_task
def test_no_opener_is_repeated(task: str, split: str, side: str) -> None:
    counts = Counter(opener(row[side]) for row in rows(task, split))
    assert [(start, count) for start, count in counts.items() if count > OPENER_LIMIT[split]] == []


@each_task
def test_no_single_word_decides(task: str) -> None:
    data = rows(task, "train") + rows(task, "test")
    scores = {word: more_is_chosen(data, occurrences(word)) for word in vocabulary(data)}
    limit = TASKS[task].word_rule
    assert {word: score for word, score in scores.items() if max(score, 1 - score) > limit} == {}


@each_split
@each_task
def test_digits_do_not_decide(task: str, split: str) -> None:
    score = more_is_chosen(rows(task, split), n_digits)
    assert max(score, 1 - score) <= TASKS[task].digit_rule


@each_task
def test_prompts_are_distinct_and_splits_disjoint(task: str) -> None:
    prompts = [row["prompt"].lower() for split in ROWS for row in rows(task, split)]
    limit = TASKS[task].prompt_ratio
    assert [pair for pair in combinations(prompts, 2) if SequenceMatcher(None, *pair).ratio() >= limit] == []


@each_task
def test_best_single_rule_learnt_on_train_fails_on_test(task: str) -> None:
    train, test = rows(task, "train"), rows(task, "test")
    scores = {
        name: learnt(train, test, feature)[1]
        for name, feature in {"words": n_words, "characters": len, "digits": n_digits}.items()
    }
    by_word = {word: learnt(train, test, presence(word)) for word in vocabulary(train)}
    best = max(on_train for on_train, _ in by_word.values())
    scores |= {f"has {word!r}": on_test for word, (on_train, on_test) in by_word.items() if on_train == best}
    limit = TASKS[task].learnt_rule
    assert {name: score for name, score in scores.items() if score > limit} == {}
