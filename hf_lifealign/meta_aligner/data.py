"""Prompts and offline rows as the trainer takes them, checked before anything is trained."""

import logging
from typing import Any

from datasets import Dataset
from trl.data_utils import apply_chat_template, is_conversational, maybe_extract_prompt

logger = logging.getLogger(__name__)

_IMAGES = ("image", "images")


def split_preferences(train: Any, offline: Any) -> tuple[Dataset, Dataset | None]:
    """Prompts and prompt-completion rows, from data in TRL's formats.

    Preference rows serve as both: their prompts are answered, and both their answers are the offline set unless one
    is given.

    Args:
        train (`datasets.Dataset`): rows with `prompt`, or preference rows.
        offline (`datasets.Dataset`, *optional*): rows with `prompt` and `completion`, or preference rows.

    Raises:
        TypeError: if it is no map-style dataset.
        ValueError: if columns are missing.
    """
    for name, data in (("train_dataset", train), ("offline_dataset", offline)):
        if data is not None and not isinstance(data, Dataset):
            raise TypeError(
                f"You passed {name} of type {type(data).__name__}. A round visits prompts in an order of its own, so "
                "that it has to be a datasets.Dataset with a length."
            )
    if train is None or not len(train):
        raise ValueError("You passed no train_dataset, or an empty one. It holds the prompts that a round answers.")
    if offline is None and {"chosen", "rejected"} <= set(train.column_names):
        offline = train
    prompts = _prompts(train)
    if offline is not None:
        offline = _completions(offline)
    for data in (prompts, offline):
        if data is not None and any(name in data.column_names for name in _IMAGES):
            raise ValueError("Your data has images. MetaAlignerTrainer takes text only; leave those columns out.")
    return prompts, offline


def _prompts(data: Dataset) -> Dataset:
    if {"chosen", "rejected"} <= set(data.column_names):
        data = data.map(maybe_extract_prompt) if "prompt" not in data.column_names else data
        data = data.remove_columns(["chosen", "rejected"])
    if "prompt" not in data.column_names:
        raise ValueError(
            f"Your train_dataset has the columns {data.column_names}. It needs 'prompt' (a text or a list of messages)."
        )
    return data


def _completions(data: Dataset) -> Dataset:
    if {"chosen", "rejected"} <= set(data.column_names):
        data = data.map(maybe_extract_prompt) if "prompt" not in data.column_names else data
        rows = []
        for row in data:
            rest = {k: v for k, v in row.items() if k not in ("chosen", "rejected")}
            rows += [{**rest, "completion": row[side]} for side in ("chosen", "rejected")]
        return Dataset.from_list(rows)
    if not {"prompt", "completion"} <= set(data.column_names):
        raise ValueError(
            f"Your offline_dataset has the columns {data.column_names}. It needs 'prompt' and 'completion', "
            "or 'prompt', 'chosen' and 'rejected'."
        )
    return data


def within_length(data: Dataset, lengths: list[int], longest: int | None, room: int | None, answer: int) -> list[int]:
    """Rows whose prompts fit.

    Args:
        data (`datasets.Dataset`): the rows.
        lengths (`list[int]`): tokens of each prompt.
        longest (`int`, *optional*): `max_prompt_length`; longer prompts are left out, and counted in the log.
        room (`int`, *optional*): tokens that the model can read.
        answer (`int`): tokens of the longest answer.

    Raises:
        ValueError: if prompt and answer do not fit into the model, or no prompt is left.
    """
    kept = [i for i, length in enumerate(lengths) if longest is None or length <= longest]
    if len(kept) < len(data):
        logger.warning(
            f"{len(data) - len(kept)} of {len(data)} prompts have more than max_prompt_length={longest} tokens and are "
            "left out."
        )
    if not kept:
        raise ValueError(f"You set max_prompt_length={longest}, and every prompt is longer. Raise it.")
    over = [i for i in kept if room is not None and lengths[i] + answer > room]
    if over:
        raise ValueError(
            f"{len(over)} prompts do not fit: row {over[0]} has {lengths[over[0]]} tokens, an answer up to {answer}, "
            f"and the model reads {room}. Set max_prompt_length={max(room - answer, 1) if room else None}, or a "
            "smaller max_completion_length."
        )
    return kept


def completion_ids(row: dict[str, Any], tokenizer: Any, template: dict[str, Any]) -> list[int]:
    """Tokens of the completion of a prompt-completion row, its end included."""
    if is_conversational(row):
        text = apply_chat_template({"prompt": row["prompt"], "completion": row["completion"]}, tokenizer, **template)[
            "completion"
        ]
    else:
        text = row["completion"]
        if tokenizer.eos_token and not text.endswith(tokenizer.eos_token):
            text += tokenizer.eos_token
    return list(tokenizer(text=text, add_special_tokens=False)["input_ids"])


def cut_rows(rows: list[dict[str, Any]], completions: list[list[int]], tokenizer: Any, longest: int | None) -> None:
    """Cuts completions to `longest` tokens, in place, and their rows to the same text: what is rated is what is
    learnt, and is as long as what will be generated."""
    count = 0
    for row, ids in zip(rows, completions, strict=True):
        if longest is None or len(ids) <= longest:
            continue
        del ids[longest:]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        row["completion"] = text if isinstance(row["completion"], str) else [{"role": "assistant", "content": text}]
        count += 1
    if count:
        logger.warning(
            f"{count} of {len(rows)} answers of the offline set have more than max_completion_length={longest} tokens. "
            "They are cut to that, and rated as they are then."
        )
