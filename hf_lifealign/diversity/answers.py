"""Where the answers come from that a report is about: texts, rows, data sets and names, and their tokens."""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lifealign.diversity.words import words
from hf_lifealign.stream.errors import RefusedError, show
from hf_lifealign.stream.loading import read_source
from hf_lifealign.stream.rows import kind_of, text_of
from hf_lifealign.stream.sources import close_match, parse_source
from hf_lifealign.stream.tables import file_of_split

if TYPE_CHECKING:
    from datasets import Dataset

# Columns that hold answers, the likeliest first.
ANSWER_COLUMNS = ("chosen", "completion", "text", "response", "answer")
_BATCH = 1000
_MOST_COLUMNS_NAMED = 12


@dataclass(frozen=True)
class Answers:
    """The answers of a data set.

    Args:
        texts (`list[str]`): one for each row, those without text included.
        name (`str`, *optional*): of the data, without the folders of this machine.
        split (`str`, *optional*): which one was read, where the data has several.
        column (`str`, *optional*): which one was read; none for a list of texts.
        available (`int`): rows that the data has.
    """

    texts: list[str]
    name: str | None
    split: str | None
    column: str | None
    available: int


def read_answers(data: Any, column: str | None = None, split: str = "train", limit: int | None = None) -> Answers:
    """The answers of texts, rows, a data set or a named source.

    Args:
        data (`list[str]`, `list[dict]`, `datasets.Dataset`, `str` or `pathlib.Path`): answers, rows with a column of
            answers, or the name of rows: a JSON, JSON Lines or Parquet file, a folder with a file for each split, or a
            Hub id.
        column (`str`, *optional*): by default the first of [`ANSWER_COLUMNS`] that is there. Its values are texts, or
            conversations, of which the last assistant message is taken. A missing value (`None`) is an empty answer.
        split (`str`): of folders and Hub ids.
        limit (`int`, *optional*): only the first rows.

    Raises:
        ValueError: if the data cannot be read, holds no rows, has no such column, or a value is no answer.
    """
    if isinstance(data, list | tuple):
        return _of_list(data, column, limit)
    named = isinstance(data, str | Path)
    dataset = _load(str(data) if named else data, column, split)
    found = _choose(dataset.column_names, column)
    count = len(dataset) if limit is None else min(limit, len(dataset))
    rows = dataset.select(range(count)).select_columns([found])
    texts = _texts((row[found] for row in rows), found)
    if not named:
        return Answers(texts, None, None, found, len(dataset))
    path = Path(str(data)).expanduser()
    name = path.resolve().name if path.exists() else str(data)
    # a file is read whole, whatever split is named
    return Answers(texts, name, None if path.is_file() else split, found, len(dataset))


def _of_list(data: Sequence[Any], column: str | None, limit: int | None) -> Answers:
    if not data:
        raise ValueError("You gave no rows: the list is empty. Give at least 2 answers.")
    if not isinstance(data[0], Mapping):
        if column is not None:
            raise ValueError(
                f"You set column={column!r} with a list whose first row is a {type(data[0]).__name__}. Give rows with "
                "columns, or leave column out."
            )
        return Answers(_texts(data[:limit], None), None, None, None, len(data))
    for index, row in enumerate(data):
        if not isinstance(row, Mapping):
            raise ValueError(f"Row {index} is a {type(row).__name__}, and row 0 has columns. Give rows of one form.")
    found = _choose(list(dict.fromkeys(name for row in data for name in row)), column)
    return Answers(_texts((row.get(found) for row in data[:limit]), found), None, None, found, len(data))


def _load(data: Any, column: str | None, split: str) -> "Dataset":
    try:
        source = (file_of_split(data, split) or data) if isinstance(data, str) else data
        return read_source(parse_source(source, split), ANSWER_COLUMNS if column is None else (column,))
    except RefusedError as error:
        given = f"{data!r} (split {split!r})" if isinstance(data, str) else f"with a {type(data).__name__}"
        raise ValueError(f"You set the data {given}. {error}") from error


def _choose(columns: Sequence[str], column: str | None) -> str:
    """The column to read, if it is there."""
    more = "" if len(columns) <= _MOST_COLUMNS_NAMED else f" and {len(columns) - _MOST_COLUMNS_NAMED} more"
    listed = ", ".join(repr(str(name)) for name in columns[:_MOST_COLUMNS_NAMED]) + more
    if column is not None:
        if column not in columns:
            raise ValueError(
                f"You set the column {column!r}. The data has the columns {listed or '(none)'}."
                f"{close_match(column, [str(name) for name in columns])} Set one that is there."
            )
        return column
    for name in ANSWER_COLUMNS:
        if name in columns:
            return name
    raise ValueError(
        f"The data has the columns {listed or '(none)'}, and none of {', '.join(ANSWER_COLUMNS)}, where answers are "
        "looked for. Set the column that holds them."
    )


def _texts(values: Iterable[Any], column: str | None) -> list[str]:
    return [_answer(value, index, column) for index, value in enumerate(values)]


def _answer(value: Any, index: int, column: str | None) -> str:
    """The text of an answer."""
    if value is None:
        return ""
    where = f"Row {index}" if column is None else f"Row {index} of the column {column!r}"
    kind = kind_of(value)
    if kind == "standard":
        return str(value)
    if kind != "conversational":
        raise ValueError(
            f"{where} holds {show(value)}, which is no text (a {kind}). Give texts or lists of messages, or set the "
            "column that holds the answers."
        )
    said = [message for message in value if message.get("role") == "assistant"]
    if not said:
        raise ValueError(
            f"{where} has no message with the role 'assistant', so that there is no answer in it: {show(value)}. Leave "
            "the row out, or set the column that holds the answers."
        )
    return text_of(said[-1:])


def token_rows(texts: Sequence[str], tokenizer: Any = None) -> tuple[list[Sequence[Hashable]], str]:
    """The tokens of texts, and what they are called.

    Args:
        texts (`Sequence[str]`): the texts.
        tokenizer (`PreTrainedTokenizerBase` or `str`, *optional*): a tokenizer, or the Hub id or folder of one; words
            and punctuation marks by default.

    Returns:
        `tuple[list[Sequence], str]`: token ids without special tokens, or words; and `"words"` or the tokenizer's name.

    Raises:
        ValueError: if the tokenizer cannot be loaded or is none.
    """
    if tokenizer is None:
        return [words(text) for text in texts], "words"
    from hf_lifealign.models import public_name

    if isinstance(tokenizer, str | Path):
        name, tokenizer = str(tokenizer), _load_tokenizer(str(tokenizer))
    else:
        name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
    if not callable(tokenizer) or not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise ValueError(
            f"You set tokenizer with a {type(tokenizer).__name__}. Set a tokenizer of transformers, or the Hub id or "
            "folder of one."
        )
    return [row for batch in _batches(texts) for row in _ids(tokenizer, batch)], public_name(name)


def _load_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    from hf_lifealign.models import resolve_model

    source = resolve_model(name)
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        told = " ".join(str(error).split())
        raise ValueError(
            f"The tokenizer {name!r} cannot be loaded: {told} Give a Hub id or a folder with tokenizer.json."
        ) from error


def _ids(tokenizer: Any, batch: list[str]) -> list[list[int]]:
    # not verbose: that an answer is longer than the model reads is no matter here
    return tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    left = iter(texts)
    while batch := list(islice(left, _BATCH)):
        yield batch
