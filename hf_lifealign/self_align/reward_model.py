"""A reward model that follows the principles it is shown, as scores of texts and as a reward function for TRL."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_lifealign.judges.inference import batches, check_finite, evaluating
from hf_lifealign.self_align.rendering import Prompts


class RewardScorer:
    """Scores answers with a sequence classifier of one output.

    Args:
        model: of transformers, with or without an adapter.
        tokenizer: that it was trained with.
        batch_size (`int`): texts that are read together.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 16):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        # a sequence classifier reads its score off the last token that is no padding
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id

    def encode(self, prompt: Any, completion: Any) -> list[int]:
        """Tokens as RewardTrainer makes them: through the chat template, or of a plain text that ends with EOS.

        An answer that was cut off reads as one that came to its end; whoever generates has to look at that himself.

        Args:
            prompt, completion (`list[dict]` or `str`): both messages, or both plain.
        """
        if not isinstance(prompt, str):
            return list(self.tokenizer.apply_chat_template([*prompt, *completion], return_dict=True)["input_ids"])
        text, end = prompt + completion, self.tokenizer.eos_token
        return list(self.tokenizer(text if text.endswith(end) else text + end)["input_ids"])

    def of_ids(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Scores of token rows, in any order of lengths.

        Raises:
            ValueError: if a score is not finite.
        """
        import torch

        found = [0.0] * len(rows)
        device, pad = next(self.model.parameters()).device, self.tokenizer.pad_token_id
        with evaluating(self.model):
            for places in batches([len(row) for row in rows], self.batch_size):
                width = max(len(rows[i]) for i in places)
                ids = torch.tensor([[*rows[i], *[pad] * (width - len(rows[i]))] for i in places], device=device)
                mask = torch.tensor([[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in places], device=device)
                scores = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0]
                for i, score in zip(places, scores.float().tolist(), strict=True):
                    found[i] = score
        check_finite(found, "reward model")
        return found


class PrincipleReward:
    """The reward function of the reinforcement: each answer is scored under the principles that were drawn for its
    prompt, rendered into the request as in the training of the reward model.

    Args:
        scorer ([`RewardScorer`]): the reward model.
        prompts ([`Prompts`]): renders the principles.
    """

    __name__ = "principles"

    def __init__(self, scorer: RewardScorer, prompts: Prompts):
        self.scorer, self.prompts = scorer, prompts

    def __call__(
        self, completions: Sequence[Any], request: Sequence[str], principles: Sequence[Sequence[str]], **kwargs: Any
    ) -> list[float]:
        """Scores answers.

        Args:
            completions (`list`): messages or plain texts.
            request (`list[str]`), principles (`list[list[str]]`): columns of [`policy_rows`].
            kwargs: what else TRL tells; not looked at.

        Returns:
            `list[float]`: one score an answer, in the reward model's own unit.
        """
        rows = zip(completions, request, principles, strict=True)
        return self.scorer.of_ids([self.ids(completion, asked, told) for completion, asked, told in rows])

    def ids(self, completion: Any, request: str, principles: Sequence[str]) -> list[int]:
        """The tokens that are scored."""
        messages = not isinstance(completion, str)
        asked = self.prompts.judged(principles, request, messages)
        return self.scorer.encode([{"role": "user", "content": asked}] if messages else asked, completion)


def load_reward_model(base: str, folder: Path) -> Any:
    """The reward model that the stage `reward` left, in evaluation mode, without gradients.

    Args:
        base (`str`): that it was trained on.
        folder (`Path`): of the stage; an adapter, or a whole model.
    """
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification
    from trl.trainer.reward_trainer import suppress_seqcls_warning

    from hf_lifealign.models import resolve_model

    adapted = (folder / "adapter_config.json").is_file()
    with suppress_seqcls_warning():
        # the head that is drawn here is replaced by the adapter's own
        model = AutoModelForSequenceClassification.from_pretrained(
            resolve_model(base) if adapted else str(folder),
            num_labels=1,
            dtype="float32",
            use_safetensors=True,
            trust_remote_code=False,
        )
    if adapted:
        model = PeftModel.from_pretrained(model, str(folder))
    model.requires_grad_(False)
    return model.eval()
