"""Questions with given answers: their forms, both orders, and models that know, guess, or go by the letter."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.tiny import tiny_model, tiny_tokenizer

from hf_lifealign.self_align.choices import (
    Question,
    answer_choices,
    both_orders,
    read_questions,
    rendered_questions,
)

QUESTIONS = [
    Question("Is ice cold?", ("It is cold indeed.", "It is hot."), 0),
    Question("Which is a bird?", ("A stone.", "A lamp.", "A wren, which sings."), 2),
    Question("What is wet?", ("Dust.", "Water, of course."), 1),
]


def test_the_forms() -> None:
    truthful = {"question": "Q", "mc1_targets": {"choices": ["a", "b", "c"], "labels": [0, 0, 1]}}
    hhh = {"input": "Q", "target_scores": {"a": 0, "b": 0, "c": 1}}
    files = {"input": "Q", "targets": {"choices": ["a", "b", "c"], "labels": [0, 0, 1]}}
    own = {"question": "Q", "choices": ["a", "b", "c"], "best": 2}
    written = {"question": "Q", "mc1_targets": {"a": 0, "b": 0, "c": 1}}
    merged = {"input": "Q", "target_scores": {"a": 0, "x": None, "b": 0, "c": 1}, "choices": None, "question": None}
    found = read_questions([truthful, hhh, files, own, written, merged])
    assert set(found) == {Question("Q", ("a", "b", "c"), 2)}
    table = {"Question": " Q ", "Best Answer": "c", "Incorrect Answers": "a; b ;", "Type": "x"}
    assert read_questions([table]) == [Question("Q", ("c", "a", "b"), 0)]
    assert Question("Q", ("a", "b", "c"), 2).ordered((1, 2, 0)) == Question("Q", ("b", "c", "a"), 1)


def test_the_orders() -> None:
    assert both_orders(QUESTIONS[0], seed=3) == ((0, 1), (1, 0)), "two answers have no others"
    many = [Question(f"{i}?", tuple("abcdefg"), 0) for i in range(400)]
    orders = [both_orders(question) for question in many]
    assert all(one == other[::-1] and sorted(one) == list(range(7)) for one, other in orders)
    assert orders == [both_orders(question) for question in many]
    assert orders != [both_orders(question, 1) for question in many]
    assert both_orders(many[0], None) == ((0, 1, 2, 3, 4, 5, 6), (6, 5, 4, 3, 2, 1, 0))
    # the best answer, which is always given first, is asked about everywhere
    places = [one.index(0) for one, _ in orders]
    assert all(30 < places.count(place) < 90 for place in range(7)), "57 are expected"


@pytest.mark.parametrize(
    "row",
    [{}, {"question": "Q"}, {"question": "Q", "choices": ["a"], "best": 0}, {"question": "Q", "choices": "ab"},
     {"question": "Q", "choices": ["a", "b"], "best": 2}, {"input": "Q", "target_scores": {"a": 1, "b": 1}},
     {"question": "Q", "mc1_targets": {"choices": ["a", "b"], "labels": [1]}}, {"input": "Q", "target_scores": None},
     {"question": "Q", "choices": "ab", "best": 0}, {"choices": ["a", "b"], "best": 0}, {"input": "Q", "targets": "x"},
     {"Question": "Q", "Best Answer": "a", "Incorrect Answers": ""}],
)  # fmt: skip
def test_what_is_no_question(row: Any) -> None:
    with pytest.raises(ValueError, match="Row 1 is no question with answers"):
        read_questions([{"question": "Q", "choices": ["a", "b"], "best": 0}, row])
    with pytest.raises(ValueError, match="no questions"):
        read_questions([])


def test_how_it_is_asked() -> None:
    assert rendered_questions([QUESTIONS[1]])[0] == (
        "Which is a bird?\n\n(A) A stone.\n(B) A lamp.\n(C) A wren, which sings.\n\nThe best of these answers is ("
    )
    assert (
        rendered_questions(QUESTIONS[:1], "{{ question }} {{ choices | length }}{{ letters[0] }}")[0]
        == "Is ice cold? 2A"
    )


class Reader(torch.nn.Module):
    """A model that reads the whole question, and says a letter."""

    def __init__(self, choose: Any):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.choose, self.tokenizer, self.asked = choose, tiny_tokenizer(), 0
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=400))

    def forward(self, input_ids: Any, attention_mask: Any, use_cache: bool) -> Any:
        logits = torch.zeros(*input_ids.shape, 260)
        for i, (row, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
            text = self.tokenizer.decode(row[: int(mask.sum())])
            (token,) = self.tokenizer(self.choose(text))["input_ids"]
            logits[i, int(mask.sum()) - 1, token] = 5.0
            self.asked += 1
        return SimpleNamespace(logits=logits)


def knows(text: str) -> str:
    line = next(line for line in text.splitlines() if any(word in line for word in ("cold indeed", "wren", "Water")))
    return line[1]


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_one_that_knows_and_one_that_goes_by_the_letter(batch_size: int) -> None:
    model = Reader(knows)
    model.train()
    knowing = answer_choices(model, tiny_tokenizer(), QUESTIONS, batch_size, seed=None)
    assert (knowing.accuracy, knowing.consistency, knowing.first, knowing.questions) == (1.0, 1.0, 0.5, 3)
    assert knowing.answers == ((0, 0), (2, 2), (1, 1))
    assert knowing.chance == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
    assert model.asked == 6
    assert model.training
    lazy = answer_choices(Reader(lambda text: "A"), tiny_tokenizer(), QUESTIONS, batch_size, seed=None)
    assert (lazy.accuracy, lazy.consistency, lazy.first) == (0.5, 0.0, 1.0), "half right, and never consistent"
    assert lazy.answers == ((0, 1), (0, 2), (0, 1))
    middle = answer_choices(Reader(lambda text: "B"), tiny_tokenizer(), QUESTIONS[1:2], batch_size, seed=None)
    assert (middle.accuracy, middle.consistency, middle.first) == (0.0, 1.0, 0.0)
    never = answer_choices(Reader(lambda text: "Z"), tiny_tokenizer(), QUESTIONS[:1], batch_size)
    assert never.accuracy == 0.5, "a letter that is not offered is no answer"


def test_what_letters_hide_shows_over_both_orders() -> None:
    """A model with a strong liking for a letter, and a weak one for the best answer."""
    likes = {"A": 3.0, "B": 0.0, "C": 1.0}

    class Biased(Reader):
        def forward(self, input_ids: Any, attention_mask: Any, use_cache: bool) -> Any:
            logits = torch.zeros(*input_ids.shape, 260)
            for i, (row, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
                text, last = self.tokenizer.decode(row[: int(mask.sum())]), int(mask.sum()) - 1
                for letter, liking in likes.items():
                    (token,) = self.tokenizer(letter)["input_ids"]
                    logits[i, last, token] = liking + self.choose * (letter == knows(text))
            return SimpleNamespace(logits=logits)

    two = [QUESTIONS[0], QUESTIONS[2]]
    found = answer_choices(Biased(0.5), tiny_tokenizer(), two)
    assert (found.accuracy, found.consistency, found.first) == (0.5, 0.0, 1.0)
    assert (found.combined, found.likeliest) == (1.0, (0, 1))
    against = answer_choices(Biased(-0.5), tiny_tokenizer(), two)
    assert (against.accuracy, against.combined) == (0.5, 0.0)
    sure = answer_choices(Biased(50.0), tiny_tokenizer(), QUESTIONS)
    assert sure.likeliest == (0, 2, 1), "by the answers' places as they were given"


def test_letters_alone_find_no_more_than_chance() -> None:
    """Also where the best answer always stands first, as in TruthfulQA's files."""
    many = [Question(f"Which, {i}?", ("best", "b", "c", "d"), 0) for i in range(60)]
    lazy = answer_choices(Reader(lambda text: "A"), tiny_tokenizer(), many, 60)
    assert abs(lazy.accuracy - lazy.chance) < 0.1
    assert answer_choices(Reader(lambda text: "A"), tiny_tokenizer(), many, 60, seed=None).accuracy == 0.5
    best = answer_choices(Reader(lambda text: text[text.index(") best") - 1]), tiny_tokenizer(), many, 60)
    assert (best.accuracy, best.consistency) == (1.0, 1.0)
    assert set(best.answers) == {(0, 0)}


def test_a_batch_answers_as_each_question_alone() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    many = [Question("?" * i, ("yes " * i, "no"), i % 2) for i in range(1, 12)]
    together = answer_choices(model, tokenizer, many, 5)
    alone = [answer_choices(model, tokenizer, [question], 1) for question in many]
    assert together.accuracy == pytest.approx(sum(each.accuracy for each in alone) / len(alone))
    assert together.consistency == pytest.approx(sum(each.consistency for each in alone) / len(alone))


def test_what_cannot_be_asked() -> None:
    with pytest.raises(ValueError, match="the model reads 400"):
        answer_choices(Reader(knows), tiny_tokenizer(), [Question("long " * 80, ("a", "b"), 0)])
    with pytest.raises(ValueError, match="no questions"):
        answer_choices(Reader(knows), tiny_tokenizer(), [])

    def joined(text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [hash(text) % 100]}

    with pytest.raises(ValueError, match="one token of 'A' behind a bracket"):
        answer_choices(Reader(knows), joined, QUESTIONS)
