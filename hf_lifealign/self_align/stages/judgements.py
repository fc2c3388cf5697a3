"""Two answers to each task, compared by every principle and in both orders (SALMON, arXiv 2310.05910, section 3.2)."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_lifealign._files import write_json
from hf_lifealign.self_align.answers import Answer, AnswerReader
from hf_lifealign.self_align.choices import letter_logits
from hf_lifealign.self_align.generators.cache import CallCache, kept_file, read_kept
from hf_lifealign.self_align.generators.protocol import Sampling, derived_seed
from hf_lifealign.self_align.near_duplicates import tokens
from hf_lifealign.self_align.principle_labels import combined_scores, order_consistency
from hf_lifealign.self_align.rendering import NOTE, REQUEST, Prompts
from hf_lifealign.self_align.stages.outcome import Outcome, Progress
from hf_lifealign.self_align.stages.responses import SAME_ANSWER

_Array = NDArray[np.float64]

# Of prompts, each of which ends where the letter of the better answer comes: log-odds that it is A.
Comparer = Callable[[Sequence[str]], _Array]


class LetterComparer:
    """Compares by how likely a causal language model finds the letters.

    Args:
        model, tokenizer: of transformers.
        batch_size (`int`): prompts that are read together.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 8):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size

    def __call__(self, prompts: Sequence[str]) -> _Array:
        logits = letter_logits(self.model, self.tokenizer, prompts, 2, self.batch_size)
        return np.asarray(logits[:, 0] - logits[:, 1])


class KeptComparer:
    """A comparer whose answers are kept on disk, so that a stage that was killed asks nothing twice.

    Args:
        compare ([`Comparer`]): who compares.
        identity (`str`): of who compares; others find none of its answers.
        folder (`Path`): of the kept ones.
    """

    def __init__(self, compare: Comparer, identity: str, folder: Path):
        self.compare, self.identity, self.folder = compare, identity, folder

    def __call__(self, prompts: Sequence[str]) -> _Array:
        digest = hashlib.sha256(json.dumps([self.identity, *prompts]).encode()).hexdigest()
        file = kept_file(self.folder, digest)

        def read(content: Any) -> _Array:
            kept = np.asarray(content["log_odds"], dtype=np.float64)
            if kept.shape != (len(prompts),):
                raise ValueError(f"{kept.shape} log-odds for {len(prompts)} questions")
            return kept

        kept = read_kept(file, read)
        if kept is not None:
            return kept
        made = np.asarray(self.compare(prompts), dtype=np.float64)
        write_json(file, {"log_odds": made.tolist()})
        return made


class JudgementStage:
    """Draws two answers to each task, and has them compared.

    Args:
        prompts ([`Prompts`]): of the constitution.
        calls ([`CallCache`]): who answers.
        compare ([`Comparer`]): who compares.
        messages (`bool`): whether tasks are sent as they are, or in the form of [`Prompts.engraved`].
        temperature, top_p (`float`), max_new_tokens (`int`): of the answers.
        seed (`int`): of the calls.
        progress (`Callable`, *optional*): told of pairs that were compared, and of how many there are.
    """

    def __init__(
        self,
        prompts: Prompts,
        calls: CallCache,
        compare: Comparer,
        messages: bool,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 256,
        seed: int = 0,
        progress: Progress | None = None,
    ):
        self.prompts, self.calls, self.compare, self.messages, self.seed = prompts, calls, compare, messages, seed
        self.sampling = Sampling(temperature, top_p, max_new_tokens, (REQUEST, NOTE))
        self.progress = progress or (lambda accepted, target: None)
        self.reader = AnswerReader(prompts.constitution)

    def run(self, tasks: Sequence[dict[str, Any]]) -> Outcome:
        """Rows of `prompt`, `first`, `second` and `scores`: for each principle of the constitution the log-odds that
        the first answer keeps to it sooner, 0 where the orders disagree. `told` holds the order consistency, of all
        judgements and of each principle.

        Raises:
            ValueError: before the first call, if a prompt leaves no room for its answer.
        """
        outcome = self._answered(tasks)
        forward, backward = [], []
        for i, row in enumerate(outcome.rows):
            told = [self._judged(row, *order) for order in (("first", "second"), ("second", "first"))]
            forward.append(told[0])
            backward.append(-told[1])
            row["scores"] = combined_scores(forward[-1], backward[-1]).tolist()
            self.progress(i + 1, len(outcome.rows))
        if outcome.rows:
            both = np.stack(forward), np.stack(backward)
            names = [principle.name for principle in self.prompts.constitution.principles]
            outcome.told["order_consistency"] = order_consistency(*both)
            outcome.told["of_each_principle"] = {
                name: order_consistency(both[0][:, k], both[1][:, k]) for k, name in enumerate(names)
            }
            # what a judge shows that goes by the place and not by what stands there
            outcome.told["first_preferred"] = float(np.mean(np.stack([both[0] > 0, both[1] < 0])))
        return outcome

    def _answered(self, tasks: Sequence[dict[str, Any]]) -> Outcome:
        """Rows of the tasks that have two different answers."""
        outcome = Outcome()
        asked = [task["prompt"] if self.messages else self.prompts.engraved(task["prompt"]) for task in tasks]
        self.calls.generator.refuse_too_long(asked, self.sampling)
        drawn = [
            list(self.calls.texts(asked, self.sampling, derived_seed(self.seed, "judgements", name)))
            for name in ("first", "second")
        ]
        for task, *texts in zip(tasks, *drawn, strict=True):
            read = [self.reader.read(each.text, task["prompt"], each.finished, with_note=False) for each in texts]
            answers = [each for each in read if isinstance(each, Answer)]
            for each, text in zip(read, texts, strict=True):
                if isinstance(each, str):
                    outcome.drop(text.text, each, prompt=task["prompt"])
            if len(answers) == 2 and tokens(answers[0].reply) == tokens(answers[1].reply):
                outcome.drop(answers[0].reply, SAME_ANSWER, prompt=task["prompt"])
            elif len(answers) == 2:
                outcome.rows.append({**task, "first": answers[0].reply, "second": answers[1].reply})
        outcome.told = {"asked": len(tasks), "pairs": len(outcome.rows)}
        return outcome

    def _judged(self, row: dict[str, Any], one: str, other: str) -> _Array:
        """Log-odds that the answer which stands first keeps to each principle sooner."""
        texts = [
            self.prompts.compared(principle, row["prompt"], row[one], row[other])
            for principle in self.prompts.constitution.principles
        ]
        return np.asarray(self.compare(texts), dtype=np.float64)
