"""Stage 2: the model answers its own tasks by the principles, which it notes for itself and which nobody sees
afterwards (SELF-ALIGN, arXiv 2305.03047, section 3.2)."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hf_lifealign.self_align.answers import Answer, AnswerReader
from hf_lifealign.self_align.generators.cache import CallCache
from hf_lifealign.self_align.generators.protocol import Generation, Sampling, derived_seed
from hf_lifealign.self_align.near_duplicates import tokens
from hf_lifealign.self_align.rendering import REQUEST, Prompts
from hf_lifealign.self_align.stages.outcome import Outcome, Progress

WITH, WITHOUT = "with_principles", "without_principles"
# Why a row is no pair, where both answers can be read.
SAME_ANSWER = "same_answer"


@dataclass(frozen=True)
class ResponseSettings:
    """How tasks are answered.

    Args:
        temperature, top_p (`float`): of the drawing; published are 0.5, and 0.9 to 0.95.
        max_new_tokens (`int`): of note and reply together.
        pairs (`bool`): whether each task is also answered without principles, for preference rows.
        behaviour (`str`): `"safe"` or `"paper"`; see [`AnswerReader`].
        least_words (`int`): of a reply.
    """

    temperature: float = 0.5
    top_p: float = 0.95
    max_new_tokens: int = 256
    pairs: bool = True
    behaviour: str = "safe"
    least_words: int = 1


class ResponseStage:
    """Answers tasks.

    Args:
        prompts ([`Prompts`]): of the constitution.
        calls ([`CallCache`]): who answers.
        settings ([`ResponseSettings`]): how.
        seed (`int`): of the calls.
        progress (`Callable`, *optional*): told of tasks that were answered, and of how many there are.
    """

    def __init__(
        self,
        prompts: Prompts,
        calls: CallCache,
        settings: ResponseSettings,
        seed: int = 0,
        progress: Progress | None = None,
    ):
        self.prompts, self.calls, self.settings, self.seed = prompts, calls, settings, seed
        self.progress = progress or (lambda accepted, target: None)
        self.reader = AnswerReader(prompts.constitution, settings.behaviour, settings.least_words)

    def run(self, tasks: Sequence[dict[str, Any]]) -> Outcome:
        """Rows of `prompt` and `completion`, with `rejected` where there is a pair, and what the task brought along.

        Args:
            tasks (`list[dict]`): rows of stage 1; only `prompt` is needed.

        Raises:
            ValueError: before the first call, if a prompt leaves no room for its answer.
        """
        settings, outcome = self.settings, Outcome()
        sampling = Sampling(settings.temperature, settings.top_p, settings.max_new_tokens, stop=(REQUEST,))
        asked = {True: [self.prompts.respond(task["prompt"]) for task in tasks]}
        if settings.pairs:
            asked[False] = [self.prompts.respond(task["prompt"], principles=False) for task in tasks]
        for prompts in asked.values():
            self.calls.generator.refuse_too_long(prompts, sampling)
        usage: Counter[str] = Counter()
        changes: Counter[str] = Counter()
        kept: list[tuple[int, dict[str, Any]]] = []
        for i, text in enumerate(self._written(asked[True], sampling, WITH)):
            answer = self.reader.read(text.text, tasks[i]["prompt"], text.finished)
            if isinstance(answer, str):
                outcome.drop(text.text, answer, answer=WITH, prompt=tasks[i]["prompt"])
            else:
                usage.update(answer.principles)
                changes.update(answer.changes)
                kept.append((i, {**tasks[i], "completion": answer.reply, "principles": list(answer.principles)}))
                outcome.asides.append({"prompt": tasks[i]["prompt"], "note": answer.note})
            self.progress(i + 1, len(tasks) * len(asked))
        outcome.rows = [row for _, row in kept]
        outcome.told = {
            "asked": len(tasks),
            "kept": len(kept),
            "keep_rate": len(kept) / len(tasks) if tasks else None,
            "reasons": outcome.reasons(answer=WITH),
            "principles": {p.name: usage[p.name] for p in self.prompts.constitution.principles},
            "without_a_principle": sum(not row["principles"] for row in outcome.rows),
            "changes": dict(sorted(changes.items())),
            "words": [len(row["completion"].split()) for row in outcome.rows],
        }
        if settings.pairs:
            self._pair(dict(kept), tasks, asked[False], sampling, outcome)
        return outcome

    def _pair(
        self,
        kept: dict[int, dict[str, Any]],
        tasks: Sequence[dict[str, Any]],
        prompts: Sequence[str],
        sampling: Sampling,
        outcome: Outcome,
    ) -> None:
        """Answers without principles, of the tasks whose other answer was kept."""
        places = list(kept)
        texts = self._written([prompts[i] for i in places], sampling, WITHOUT)
        pairs = 0
        for number, (i, text) in enumerate(zip(places, texts, strict=True)):
            answer = self.reader.read(text.text, tasks[i]["prompt"], text.finished, with_note=False)
            if isinstance(answer, Answer) and tokens(answer.reply) == tokens(kept[i]["completion"]):
                answer = SAME_ANSWER
            if isinstance(answer, str):
                outcome.drop(text.text, answer, answer=WITHOUT, prompt=tasks[i]["prompt"])
            else:
                kept[i]["rejected"] = answer.reply
                pairs += 1
            self.progress(len(tasks) + number + 1, len(tasks) + len(places))
        outcome.told["pairs"] = pairs
        outcome.told["reasons_without"] = outcome.reasons(answer=WITHOUT)

    def _written(self, prompts: Sequence[str], sampling: Sampling, purpose: str) -> Iterator[Generation]:
        return self.calls.texts(prompts, sampling, derived_seed(self.seed, "responses", purpose))


def training_rows(rows: Sequence[dict[str, Any]], prompts: Prompts | None = None) -> list[dict[str, Any]]:
    """Rows for SFT in TRL's form: `prompt` and `completion`, and nothing else.

    Args:
        rows (`list[dict]`): of [`ResponseStage`].
        prompts ([`Prompts`], *optional*): makes plain texts of them, by its template `engraved`; messages by default.
    """
    return [_in_form({"prompt": row["prompt"], "completion": row["completion"]}, prompts) for row in rows]


def preference_rows(rows: Sequence[dict[str, Any]], prompts: Prompts | None = None) -> list[dict[str, Any]]:
    """Preference rows in TRL's form, of those that are pairs: the answer by the principles is `chosen`, the one without
    them `rejected`. Arguments as of [`training_rows`]."""
    return [
        _in_form({"prompt": row["prompt"], "chosen": row["completion"], "rejected": row["rejected"]}, prompts)
        for row in rows
        if row.get("rejected") is not None
    ]


def _in_form(row: dict[str, str], prompts: Prompts | None) -> dict[str, Any]:
    if prompts is None:
        roles = {name: "user" if name == "prompt" else "assistant" for name in row}
        return {name: [{"role": roles[name], "content": text}] for name, text in row.items()}
    # TRL puts plain texts together as they are
    return {name: prompts.engraved(text) if name == "prompt" else f" {text}" for name, text in row.items()}
