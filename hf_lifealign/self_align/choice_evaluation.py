"""A model asked questions with given answers, alone and with an adapter: the same questions in the same orders."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_lifealign.self_align.choice_figures import ChoiceDifference, ChoiceResult, compared_choices
from hf_lifealign.self_align.choices import Question, answer_choices

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ChoiceReport:
    """What [`evaluate_choices`] found.

    Args:
        model (`str`), adapter (`str`, *optional*): names of them.
        seed (`int`, *optional*): of the orders of answers.
        result ([`ChoiceResult`]): of the model alone.
        adapted ([`ChoiceResult`], *optional*): with the adapter.
        difference ([`ChoiceDifference`], *optional*): what the adapter changes of `accuracy`.
        combined_difference ([`ChoiceDifference`], *optional*): and of `combined`.
    """

    model: str
    adapter: str | None
    seed: int | None
    result: ChoiceResult
    adapted: ChoiceResult | None = None
    difference: ChoiceDifference | None = None
    combined_difference: ChoiceDifference | None = None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        content: dict[str, Any] = {"model": self.model, "adapter": self.adapter, "seed": self.seed}
        content["result"] = self.result.to_json()
        for name in ("adapted", "difference", "combined_difference"):
            if (told := getattr(self, name)) is not None:
                content[name] = told.to_json()
        return content

    def text(self) -> str:
        """As tables for a terminal."""
        from hf_lifealign.report.table import markdown_table

        head = ("model", "accuracy", "95 % interval", "over both orders", "95 % interval", "consistent", "first letter")
        rows = [(self.model, *_cells(self.result))]
        if self.adapted is not None:
            rows.append((f"with {self.adapter}", *_cells(self.adapted)))
        lines = [
            f"{self.result.questions} questions, each in two orders of its answers; chance finds "
            f"{self.result.chance:.3f} of the best ones.",
            markdown_table(head, rows),
        ]
        for what, told in (("accuracy", self.difference), ("over both orders", self.combined_difference)):
            if told is not None:
                lines.append(
                    f"With the adapter, {what}: {told.difference:+.3f} (95 % interval {told.low:+.3f} to "
                    f"{told.high:+.3f}, over the questions); {told.better} answered better, {told.worse} worse."
                )
        if self.result.consistency < 0.5:
            lines.append(
                "Both orders agree on fewer than half of the questions: letters decide, or chance does. What the model "
                "makes of the answers shows over both orders together."
            )
        return "\n".join(lines)


def _cells(result: ChoiceResult) -> tuple[str, ...]:
    return (
        f"{result.accuracy:.3f}", f"{result.low:.3f} to {result.high:.3f}", f"{result.combined:.3f}",
        f"{result.combined_low:.3f} to {result.combined_high:.3f}", f"{result.consistency:.3f}", f"{result.first:.3f}",
    )  # fmt: skip


def evaluate_choices(
    model: "str | PreTrainedModel",
    questions: Sequence[Question],
    adapter: str | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    revision: str | None = None,
    adapter_revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    batch_size: int = 8,
    seed: int | None = 0,
    template: str | None = None,
) -> ChoiceReport:
    """Asks a model questions with given answers (HHH, TruthfulQA's MC1), and again with an adapter.

    Each question is asked in two orders of its answers, and the likeliest letter is the model's answer: see
    [`answer_choices`]. Intervals are over questions.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]): Hub id, folder, `"embedded:smollm2-135m"`, or a model.
        questions (`list[Question]`): of [`~hf_lifealign.self_align.question_files.load_questions`], say.
        adapter (`str`, *optional*): folder or Hub id of a PEFT adapter of that model. A model that you gave is without
            it again afterwards.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): the model's own by default.
        revision (`str`, *optional*), adapter_revision (`str`, *optional*): of model and adapter on the Hub.
        dtype (`str`): of the weights that are loaded.
        device (`str`, *optional*): a GPU if there is one.
        batch_size (`int`): questions that are read together, at least 1.
        seed (`int`, *optional*): of the orders of more than two answers.
        template (`str`, *optional*): Jinja source in place of `recipes/self_align/choice.jinja`.

    Raises:
        ValueError: if model or adapter cannot be loaded or do not fit together, or a question cannot be asked.
        FileNotFoundError: if there is no such adapter.
        HubError: if the Hub does not give the adapter.

    Example:

    ```python
    >>> from hf_lifealign import evaluate_choices, load_questions
    >>> questions = load_questions("truthfulqa/truthful_qa", config="multiple_choice")
    >>> print(evaluate_choices("HuggingFaceTB/SmolLM2-135M-Instruct", questions, "runs/self/engrave").text())
    ```
    """
    if batch_size < 1:
        raise ValueError(f"You set batch_size={batch_size} of questions. Set at least 1.")
    name, loaded, tokens = _loaded(model, tokenizer, revision, dtype, device)
    # looked for before the model is asked, which can take long
    folder = None if adapter is None else _adapter_folder(adapter, adapter_revision)
    result = answer_choices(loaded, tokens, questions, batch_size, template, seed)
    if adapter is None or folder is None:
        return ChoiceReport(name, None, seed, result)
    adapted = _with_adapter(loaded, folder, adapter)
    try:
        after = answer_choices(adapted, tokens, questions, batch_size, template, seed)
    finally:
        if hasattr(adapted.base_model, "unload"):
            adapted.unload()
        del adapted
        gc.collect()
    from hf_lifealign.models import public_name

    best = [question.best for question in questions]
    changes = [compared_choices(best, result, after, combined) for combined in (False, True)]
    return ChoiceReport(name, public_name(adapter), seed, result, after, *changes)


def _loaded(model: Any, tokenizer: Any, revision: str | None, dtype: str, device: str | None) -> tuple[str, Any, Any]:
    """Public name of a model, the model, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hf_lifealign.judges.inference import default_device, load_pretrained
    from hf_lifealign.models import public_name, resolve_model

    if not isinstance(model, str):
        path = str(getattr(model.config, "name_or_path", "") or "")
        return public_name(path) or type(model).__name__, model, tokenizer or AutoTokenizer.from_pretrained(path)
    loaded, own = load_pretrained(
        AutoModelForCausalLM, resolve_model(model), revision, dtype, default_device(device), "language model"
    )
    return public_name(model), loaded, tokenizer or own


def _adapter_folder(adapter: str, revision: str | None) -> Any:
    """Where an adapter lies, with its config and safetensors."""
    from hf_lifealign.hub.contents import CONFIG, WEIGHTS
    from hf_lifealign.hub.loading import locate_adapter

    folder, _ = locate_adapter(adapter, revision, {})
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"You set the adapter {adapter!r}, which has no {file}. Give the folder of a PEFT adapter, such as "
                "engrave in a run of SELF-ALIGN or adapters/01-<task> in a lifelong run, or a Hub id."
            )
    return folder


def _with_adapter(model: Any, folder: Any, adapter: str) -> Any:
    from peft import PeftModel

    import hf_lifealign.prompt_pool
    import hf_lifealign.slmc  # noqa: F401  registers the type SLMC

    try:
        return PeftModel.from_pretrained(model, str(folder)).eval()
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(
            f"You set the adapter {adapter!r}, which does not fit the model: {' '.join(str(error).split())[:300]}. Set "
            "the base that it was trained on as the model."
        ) from error
