"""Questions with given answers, of which a model is to find the best: forced choice between two, and more."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_lifealign._modes import evaluating
from hf_lifealign._resources import resource_path
from hf_lifealign.self_align.choice_figures import ChoiceResult, choice_result
from hf_lifealign.self_align.rendering import compiled, rendered
from hf_lifealign.strategies.sampling import seeded_generator

LETTERS = string.ascii_uppercase
_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Question:
    """A question with its answers.

    Args:
        question (`str`): what is asked.
        choices (`tuple[str]`): 2 to 26 answers.
        best (`int`): index of the right one.
    """

    question: str
    choices: tuple[str, ...]
    best: int

    def __post_init__(self) -> None:
        if not 2 <= len(self.choices) <= len(LETTERS) or not 0 <= self.best < len(self.choices):
            raise ValueError(
                f"The question {self.question[:60]!r} has {len(self.choices)} answers, of which number {self.best} is "
                f"the best. Give 2 to {len(LETTERS)}, and the index of one of them."
            )

    def ordered(self, order: Sequence[int]) -> "Question":
        """The same with its answers in another order: first the one at place `order[0]`, and so on."""
        return Question(self.question, tuple(self.choices[i] for i in order), list(order).index(self.best))


def both_orders(question: Question, seed: int | None = 0) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The two orders in which a question is asked: one, and its reverse.

    Two answers have no other orders. Of more than two the first order is drawn: files such as those of TruthfulQA have
    the best answer always in front, and as it is given and reversed it would come first or last alone, so that a model
    that goes by the letter A would find half of all best answers, whatever their number.

    Args:
        question ([`Question`]): to be asked. The same one has the same orders wherever it stands.
        seed (`int`, *optional*): of the order; `None` keeps the given one.
    """
    order = tuple(range(len(question.choices)))
    if seed is not None and len(order) > 2:
        draws = seeded_generator(seed, "choices", question.question, *question.choices)
        order = tuple(int(i) for i in draws.permutation(len(order)))
    return order, order[::-1]


def read_questions(rows: Sequence[Mapping[str, Any]]) -> list[Question]:
    """Questions of any of these forms.

    Args:
        rows (`list[dict]`): with `question`, `choices` and `best` (an index); or as TruthfulQA has them, with
            `question` and `mc1_targets` (`choices` and `labels`, one of which is 1; or answers and their labels), or as
            its table has them, with `Question`, `Best Answer` and `Incorrect Answers` (parted by semicolons); or as HHH
            has them, with `input` and `target_scores` (answers and their scores, one of which is 1), or `input` and
            `targets` of the same form as `mc1_targets`.

    Raises:
        ValueError: naming the row, and what it lacks.
    """
    found = []
    for i, row in enumerate(rows):
        try:
            found.append(_question(row))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"Row {i} is no question with answers ({_lacks(error)}). It needs 'question', 'choices' and 'best'; or "
                "'question' and 'mc1_targets'; or 'input' and 'target_scores' or 'targets'; or 'Question', "
                "'Best Answer' and 'Incorrect Answers'."
            ) from error
    if not found:
        raise ValueError("There are no questions. Give at least one.")
    return found


def _lacks(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


def _question(row: Mapping[str, Any]) -> Question:
    if "Best Answer" in row:
        wrong = [text.strip() for text in str(row["Incorrect Answers"]).split(";") if text.strip()]
        return Question(str(row["Question"]).strip(), (str(row["Best Answer"]).strip(), *wrong), 0)
    if row.get("choices") is not None:
        if isinstance(row["choices"], str):
            raise TypeError("'choices' is a text, and has to be a list of texts")
        return Question(str(row["question"]), tuple(map(str, row["choices"])), int(row["best"]))
    told = next((row[key] for key in ("target_scores", "mc1_targets", "targets") if row.get(key) is not None), None)
    if told is None:
        raise KeyError("answers")
    if "choices" in told and "labels" in told:
        choices, labels = list(told["choices"]), list(told["labels"])
    else:
        # tables of columns have every row's answers as columns, and nothing where an answer is another row's
        scores = {answer: score for answer, score in told.items() if score is not None}
        choices, labels = list(scores), list(scores.values())
    if len(choices) != len(labels) or sorted(labels) != [0] * (len(labels) - 1) + [1]:
        raise ValueError(f"{len(choices)} answers with the labels {labels}: just one has to be 1, the others 0")
    asked = row["question"] if row.get("question") is not None else row["input"]
    return Question(str(asked), tuple(map(str, choices)), labels.index(1))


def rendered_questions(questions: Sequence[Question], template: str | None = None) -> list[str]:
    """Questions as the model reads them, each up to where the letter comes.

    Args:
        questions (`list[Question]`): to be asked.
        template (`str`, *optional*): Jinja source in place of the shipped one.
    """
    source = template or resource_path("recipes", "self_align", "choice.jinja").read_text(encoding="utf-8")
    made = compiled("choice", source)
    return [
        rendered("choice", made, {"question": each.question, "choices": each.choices, "letters": LETTERS})
        for each in questions
    ]


def answer_choices(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    batch_size: int = 8,
    template: str | None = None,
    seed: int | None = 0,
) -> ChoiceResult:
    """Asks a model each question in two orders of its answers, and takes the likeliest letter of each order, and the
    likeliest answer over both.

    Args:
        model: causal language model.
        tokenizer: of the model.
        questions (`list[Question]`): at least one.
        batch_size (`int`): questions that are read together.
        template (`str`, *optional*): Jinja source in place of the shipped one.
        seed (`int`, *optional*): see [`both_orders`].

    Raises:
        ValueError: if a letter is no single token, or a question does not fit into the context.
    """
    if not questions:
        raise ValueError("There are no questions. Give at least one.")
    orders = [order for question in questions for order in both_orders(question, seed)]
    asked = [questions[i // 2].ordered(order) for i, order in enumerate(orders)]
    logits = letter_logits(
        model, tokenizer, rendered_questions(asked, template), max(len(q.choices) for q in questions), batch_size
    )
    places = [int(row[: len(question.choices)].argmax()) for row, question in zip(logits, asked, strict=True)]
    chosen = [order[place] for order, place in zip(orders, places, strict=True)]
    return choice_result(
        best=[question.best for question in questions],
        choices=[len(question.choices) for question in questions],
        answers=list(zip(chosen[::2], chosen[1::2], strict=True)),
        likeliest=[_likeliest(logits[2 * i : 2 * i + 2], orders[2 * i : 2 * i + 2]) for i in range(len(questions))],
        first=sum(place == 0 for place in places) / len(places),
    )


def _likeliest(logits: _Array, orders: Sequence[tuple[int, ...]]) -> int:
    """The answer with the largest sum of log-probabilities among the letters, by its place in the question.

    Args:
        logits (`np.ndarray` of shape `(2, letters)`): of the letters, in each order.
        orders (`list[tuple[int]]`): place of the answer behind each letter.
    """
    total = np.zeros(len(orders[0]))
    for row, order in zip(logits, orders, strict=True):
        total[list(order)] += row[: len(order)] - np.logaddexp.reduce(row[: len(order)])
    return int(total.argmax())


@torch.no_grad()
def letter_logits(model: Any, tokenizer: Any, prompts: Sequence[str], letters: int, batch_size: int = 8) -> _Array:
    """How likely each letter is to follow each prompt, which ends with an opening bracket.

    Args:
        model: causal language model.
        tokenizer: of the model.
        prompts (`list[str]`): to be read.
        letters (`int`): how many, from A on.
        batch_size (`int`): prompts that are read together.

    Returns:
        `np.ndarray` of shape `(prompts, letters)`: logits, in nats up to a constant of each prompt.

    Raises:
        ValueError: if a letter is no single token, or a prompt does not fit into the context.
    """
    tokens = _letter_tokens(tokenizer, letters)
    rows = [list(tokenizer(text)["input_ids"]) for text in prompts]
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(range(len(rows)), key=lambda i: len(rows[i]))
    if room is not None and len(rows[longest]) > room:
        raise ValueError(
            f"The question {prompts[longest][:60]!r} has {len(rows[longest])} tokens with its answers, and the model "
            f"reads {room}. Leave it out, or set a model with a longer context."
        )
    found = np.zeros((len(rows), letters))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    device = next(model.parameters()).device
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            width = max(len(rows[i]) for i in places)
            ids = torch.tensor([rows[i] + [0] * (width - len(rows[i])) for i in places], device=device)
            mask = torch.tensor([[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in places], device=device)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for row, i in enumerate(places):
                found[i] = logits[row, len(rows[i]) - 1, tokens].double().cpu().numpy()
    return found


def _letter_tokens(tokenizer: Any, count: int) -> list[int]:
    """The token that a letter becomes right behind the opening bracket."""
    before = tokenizer("(", add_special_tokens=False)["input_ids"]
    found = []
    for letter in LETTERS[:count]:
        ids = tokenizer(f"({letter}", add_special_tokens=False)["input_ids"]
        if len(ids) != len(before) + 1 or ids[: len(before)] != before:
            raise ValueError(
                f"The tokenizer does not make one token of {letter!r} behind a bracket. Its model cannot be asked for "
                "letters."
            )
        found.append(int(ids[-1]))
    return found
