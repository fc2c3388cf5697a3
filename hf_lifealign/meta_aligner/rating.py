"""Reward functions outside a trainer: the protocol of TRL for answers that a sweep has generated."""

import asyncio
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl.data_utils import apply_chat_template

from hf_lifealign.meta_aligner.identity import digest_of, identity_of

_NOT_PASSED = ("prompt", "completion", "completion_ids")


class Rater:
    """Rates answers as TRL's trainers do.

    Args:
        reward_funcs (`list` of `Callable` or `str`): one for each objective: a reward function in TRL's protocol, plain
            or async, or the id of a sequence classifier.
        names (`list[str]`): names of the objectives, for errors.

    Raises:
        ValueError: if there is not one reward for each objective.
    """

    def __init__(self, reward_funcs: Sequence[Any], names: Sequence[str]):
        if len(reward_funcs) != len(names):
            raise ValueError(
                f"You gave {len(reward_funcs)} rewards. The policy has the objectives {list(names)}: give one for "
                "each, in that order."
            )
        self.names = list(names)
        self.funcs = [ClassifierReward(f) if isinstance(f, str) else f for f in reward_funcs]

    def __call__(
        self, rows: Sequence[dict[str, Any]], answers: Sequence[str], completion_ids: Sequence[list[int]]
    ) -> torch.Tensor:
        """Rewards of answers.

        Args:
            rows (`list[dict]`): with `prompt`; further columns reach the reward functions.
            answers (`list[str]`): one for each row.
            completion_ids (`list[list[int]]`): their tokens.

        Returns:
            `torch.Tensor` of shape `(rows, objectives)`, float64; NaN where a reward function returned None.

        Raises:
            ValueError: if a function returns another number of rewards, or an infinite one.
        """
        prompts = [row["prompt"] for row in rows]
        conversational = isinstance(prompts[0], list)
        completions = [[{"role": "assistant", "content": a}] if conversational else a for a in answers]
        columns = {key: [row[key] for row in rows] for key in rows[0] if key not in _NOT_PASSED}
        found = torch.full((len(rows), len(self.funcs)), float("nan"), dtype=torch.float64)
        for k, (func, name) in enumerate(zip(self.funcs, self.names, strict=True)):
            given = func(
                prompts=prompts,
                completions=completions,
                completion_ids=list(completion_ids),
                trainer_state=None,
                log_extra=_ignore,
                log_metric=_ignore,
                **columns,
            )
            rewards = list(asyncio.run(_awaited(given)) if inspect.isawaitable(given) else given)
            if len(rewards) != len(rows):
                raise ValueError(f"The reward {name!r} returned {len(rewards)} rewards for {len(rows)} answers.")
            found[:, k] = torch.tensor([float("nan") if r is None else float(r) for r in rewards], dtype=torch.float64)
            if torch.isinf(found[:, k]).any():
                raise ValueError(
                    f"The reward {name!r} returned an infinite value. Return a finite number, or None to leave an "
                    "answer out."
                )
        return found

    def identity(self) -> str:
        """Digest of what the rewards are, by which a finished part of a sweep is known again."""
        return digest_of(*(identity_of(func) for func in self.funcs))


class ClassifierReward:
    """A sequence classifier with one label as reward function: its logit for prompt and answer, as in TRL.

    Args:
        name (`str`): Hub id or folder.
    """

    def __init__(self, name: str):
        self.name = name
        self.__name__ = name.rstrip("/").split("/")[-1]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model: Any = AutoModelForSequenceClassification.from_pretrained(name, num_labels=1).to(device).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(name)
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._model.config.get_text_config().pad_token_id = self._tokenizer.pad_token_id

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Rewards in TRL's protocol."""
        texts = []
        for prompt, completion in zip(prompts, completions, strict=True):
            if isinstance(prompt, str):
                texts.append(prompt + completion)
            else:
                texts.append(apply_chat_template({"messages": prompt + completion}, self._tokenizer)["text"])
        inputs = self._tokenizer(
            text=texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
        ).to(self._model.device)
        return self._model(**inputs).logits[:, 0].float().tolist()


def _ignore(*args: Any, **kwargs: Any) -> None:
    """In place of what a trainer logs with."""


async def _awaited(given: Any) -> Any:
    return await given
