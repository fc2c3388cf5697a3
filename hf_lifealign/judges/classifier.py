"""ClassifierJudge: a trained sequence classifier tells which answers are aligned."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_lifealign.judges.inference import (
    LOADING,
    batches,
    check_finite,
    default_device,
    evaluating,
    load_pretrained,
    longest_input,
)
from hf_lifealign.judges.protocol import check_count, check_threshold, thresholded

if TYPE_CHECKING:
    import torch

_WHAT = "sequence classifier"


class ClassifierJudge:
    """A sequence classifier as reference classifier: 1.0 where it gives a label enough probability.

    The probability of a label is the softmax over all labels, or the sigmoid of its logit where the model's
    configuration says that labels do not exclude each other (`problem_type="multi_label_classification"`) or there is
    only one. The model is loaded when the judge is first used, or by [`~ClassifierJudge.load`], and runs in float32 in
    evaluation mode. How answers fall into batches changes a probability by no more than rounding.

    Args:
        model (`str`): Hub id or folder. Weights are read from safetensors only, and no code of the repository is run.
        label (`str`): name of the label, as in `id2label` of the model's configuration.
        revision (`str`, *optional*): branch, tag or commit of the repository.
        batch_size (`int`, *optional*, defaults to 16): answers at a time.
        max_length (`int`, *optional*, defaults to 512): most tokens of an input, special ones included; the end of a
            longer one is cut. A model that takes fewer sets the bound.
        threshold (`float`, *optional*, defaults to 0.5): least probability of the label for a judgement of 1.0; `None`
            gives the probability itself.
        with_prompt (`bool`, *optional*, defaults to `False`): give the classifier prompt and answer as a pair of texts,
            joined as its tokenizer joins pairs, for classifiers that were trained on both. Of too long a pair the end
            of the longer text is cut.
        device (`str`, *optional*): where the classifier runs; a GPU if there is one.
        aligned (`bool`, *optional*, defaults to `True`): whether the label is what is wanted. With `False`, as for the
            label `"toxic"`, the judgement is 1 less what it would be.

    Raises:
        ValueError: if an option cannot be.
    """

    def __init__(
        self,
        model: str,
        label: str,
        revision: str | None = None,
        batch_size: int = 16,
        max_length: int = 512,
        threshold: float | None = 0.5,
        with_prompt: bool = False,
        device: str | None = None,
        aligned: bool = True,
    ) -> None:
        if not isinstance(label, str) or not label:
            raise ValueError(f"You set label={label!r}. Set the name of one of the classifier's labels.")
        check_count("batch_size", batch_size)
        check_count("max_length", max_length)
        check_threshold(threshold)
        self.model = str(model)
        self.label = label
        self.revision = revision
        self.batch_size = batch_size
        self.max_length = max_length
        self.threshold = threshold
        self.with_prompt = with_prompt
        self.device = device
        self.aligned = aligned
        self._loaded: tuple[Any, Any, int] | None = None

    def load(self) -> None:
        """Loads the classifier now, so that a wrong setting shows before anything is trained.

        Raises:
            ValueError: if it cannot be loaded, has not all weights, gives no probabilities, or has no such label.
        """
        with LOADING:
            if self._loaded is None:
                self._loaded = self._load()

    def _load(self) -> tuple[Any, Any, int]:
        """The model, its tokenizer and the index of the label."""
        import torch
        from transformers import AutoModelForSequenceClassification

        model, tokenizer = load_pretrained(
            AutoModelForSequenceClassification,
            self.model,
            self.revision,
            torch.float32,
            default_device(self.device),
            _WHAT,
        )
        if model.config.problem_type == "regression":
            raise ValueError(
                f"You set the {_WHAT} {self.model!r}, which was trained for regression and gives no probability. Use "
                "RewardJudge with a function that calls it, and a threshold of your own."
            )
        labels = {name: index for index, name in model.config.id2label.items()}
        if self.label not in labels:
            raise ValueError(
                f"You set label={self.label!r}. The classifier {self.model!r} has the labels {list(labels)}. Set one "
                "of them."
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        # by which classifiers on a decoder find the last token of each row
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        return model, tokenizer, int(labels[self.label])

    def __call__(self, prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]) -> list[float]:
        """Judges answers.

        Args:
            prompts (`Sequence[str]`): looked at only with `with_prompt`.
            answers (`Sequence[str]`): the answers.
            references (`Sequence[str]`): not looked at.

        Returns:
            `list[float]`: 0.0 or 1.0 for each answer, or without a threshold a number in [0, 1].

        Raises:
            ValueError: as in [`~ClassifierJudge.load`], or if the classifier gives NaN.
        """
        if not answers:
            return []
        self.load()
        values = thresholded(self._probabilities(prompts, answers), self.threshold)
        return values if self.aligned else [1.0 - value for value in values]

    def _probabilities(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """The probability of the label for each answer."""
        assert self._loaded is not None
        model, tokenizer, label = self._loaded
        rows = self._rows(model, tokenizer, prompts, answers)
        found = [0.0] * len(rows)
        with evaluating(model):
            for batch in batches([len(row["input_ids"]) for row in rows], self.batch_size):
                inputs = tokenizer.pad([rows[i] for i in batch], padding_side="right", return_tensors="pt")
                logits = model(**inputs.to(model.device)).logits
                for i, value in zip(batch, _label_probability(logits, label, model.config), strict=True):
                    found[i] = value
        check_finite(found, f"classifier {self.model!r}")
        return found

    def _rows(
        self, model: Any, tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]
    ) -> list[dict[str, list[int]]]:
        """Tokens of each input, not padded yet."""
        texts = [list(prompts), list(answers)] if self.with_prompt else [list(answers)]
        longest = longest_input(model, self.max_length, tokenizer)
        encoded = tokenizer(*texts, truncation=True, max_length=longest, return_attention_mask=True)
        rows = [{name: list(values[i]) for name, values in encoded.items()} for i in range(len(answers))]
        for row in rows:
            if not row["input_ids"]:  # an empty text, and a tokenizer without special tokens
                blank = {"input_ids": tokenizer.pad_token_id, "attention_mask": 1}
                row.update({name: [blank.get(name, 0)] for name in row})
        return rows

    def __repr__(self) -> str:
        wanted = "" if self.aligned else ", aligned=False"
        return f"ClassifierJudge({self.model!r}, label={self.label!r}, threshold={self.threshold}{wanted})"


def _label_probability(logits: "torch.Tensor", label: int, config: Any) -> list[float]:
    """Probability of a label from logits of shape `(answers, labels)`."""
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return logits[:, label].double().sigmoid().tolist()
    return logits.double().softmax(-1)[:, label].tolist()
