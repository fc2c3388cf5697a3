"""Stage 4, verbose cloning: the engraved model answers all tasks at length, and the base learns these answers
(SELF-ALIGN, arXiv 2305.03047, section 3.4: context distillation)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_lifealign.self_align.answers import AnswerReader
from hf_lifealign.self_align.generators.cache import CallCache
from hf_lifealign.self_align.generators.protocol import Sampling, derived_seed
from hf_lifealign.self_align.rendering import NOTE, REQUEST, Prompts
from hf_lifealign.self_align.stages.outcome import Outcome, Progress

if TYPE_CHECKING:
    from hf_lifealign.self_align.settings import CloningSettings


class CloneStage:
    """Answers tasks at length.

    Args:
        prompts ([`Prompts`]): of the constitution.
        calls ([`CallCache`]): of the engraved model.
        settings ([`CloningSettings`]): how.
        messages (`bool`): whether the engraved model is asked by messages.
        seed (`int`): of the calls.
        progress (`Callable`, *optional*): told of tasks that were answered, and of how many there are.
    """

    def __init__(
        self,
        prompts: Prompts,
        calls: CallCache,
        settings: "CloningSettings",
        messages: bool,
        seed: int = 0,
        progress: Progress | None = None,
    ):
        self.prompts, self.calls, self.settings, self.messages, self.seed = prompts, calls, settings, messages, seed
        self.progress = progress or (lambda accepted, target: None)
        self.reader = AnswerReader(prompts.constitution, settings.behaviour, settings.least_words)

    def run(self, tasks: Sequence[dict[str, Any]]) -> Outcome:
        """Rows of `prompt` and `completion`, and what the task brought along.

        Raises:
            ValueError: before the first call, if a prompt leaves no room for its answer.
        """
        settings, outcome, changes = self.settings, Outcome(), 0
        sampling = Sampling(
            settings.temperature, settings.top_p, settings.max_new_tokens, (REQUEST, NOTE),
            settings.no_repeat_ngram_size,
        )  # fmt: skip
        asked = [self.prompts.at_length(task["prompt"], self.messages) for task in tasks]
        self.calls.generator.refuse_too_long(asked, sampling)
        texts = self.calls.texts(asked, sampling, derived_seed(self.seed, "cloning"))
        for i, (task, text) in enumerate(zip(tasks, texts, strict=True)):
            answer = self.reader.read(text.text, task["prompt"], text.finished, with_note=False)
            if isinstance(answer, str):
                outcome.drop(text.text, answer, prompt=task["prompt"])
            else:
                changes += bool(answer.changes)
                outcome.rows.append({**task, "completion": answer.reply})
            self.progress(i + 1, len(tasks))
        outcome.told = {
            "asked": len(tasks),
            "kept": len(outcome.rows),
            "keep_rate": len(outcome.rows) / len(tasks) if tasks else None,
            "changed": changes,
            "words": [len(row["completion"].split()) for row in outcome.rows],
        }
        return outcome


def cloning_rows(rows: Sequence[dict[str, Any]], prompts: Prompts, messages: bool) -> list[dict[str, Any]]:
    """Rows for SFT in TRL's form. Every second one asks for an answer at length, the others ask as users do, so that
    the model answers at length by itself.

    Args:
        rows (`list[dict]`): of [`CloneStage`].
        prompts ([`Prompts`]): makes the questions.
        messages (`bool`): whether rows are messages, or plain texts.
    """
    found: list[dict[str, Any]] = []
    for i, row in enumerate(rows):
        request, reply = row["prompt"], row["completion"]
        asked = prompts.at_length(request, messages) if i % 2 else request if messages else prompts.engraved(request)
        found.append(
            {
                "prompt": [{"role": "user", "content": asked}],
                "completion": [{"role": "assistant", "content": reply}],
            }
            if messages
            else {"prompt": asked, "completion": f" {reply}"}
        )
    return found
