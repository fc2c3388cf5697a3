"""The diversity report of a data set's answers: measures, what is repeated most, and what deserves a look."""

import sys
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_lifealign.diversity.answers import Answers, read_answers, token_rows
from hf_lifealign.diversity.collision import exact_collision, prefix_collision
from hf_lifealign.diversity.judgement import ROWS_TO_JUDGE_VENDI, DiversityWarning, judge
from hf_lifealign.diversity.kernels import mean_similarity, ngram_features
from hf_lifealign.diversity.ngrams import distinct_ngrams
from hf_lifealign.diversity.vendi import vendi_score_of_features
from hf_lifealign.diversity.words import opening

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT = 1
PREFIXES = (1, 2, 4, 8)
OPENING_WORDS = 4
_MOST_REPEATED = 5


@dataclass(frozen=True)
class Repeated:
    """Something that several answers have in common.

    Args:
        text (`str`): the opening, or the first of the same answers; whole, and as it stands in the data.
        count (`int`): answers, at least 2.
        share (`float`): of all answers with text.
    """

    text: str
    count: int
    share: float


@dataclass(frozen=True)
class EmbeddingDiversity:
    """Diversity by the cosines of sentence embeddings, which see the same thing said in other words.

    Args:
        model (`str`): the embedding model.
        rows (`int`): answers that were embedded.
        vendi (`float`): their Vendi score, from 1 to `rows`.
        similarity (`float`): mean cosine of two of them, in [-1, 1].
    """

    model: str
    rows: int
    vendi: float
    similarity: float


@dataclass(frozen=True)
class DiversityReport:
    """How diverse the answers of a data set are. Rows without text are counted and left out of everything else.

    Args:
        data, split, column (`str`, *optional*): what was read; `None` where the data has no name, one split or no
            columns.
        tokens (`str`): what a token is: `"words"`, or the name of a tokenizer.
        rows (`int`): all rows that were read.
        empty_rows (`int`): those without text.
        mean_length (`float`): tokens of an answer.
        exact_collision (`float`): probability that two answers have the same tokens.
        prefix_collision (`dict[int, float]`): c_k, that two begin with the same k tokens, for k = 1, 2, 4 and 8.
        similarity (`float`): mean cosine of two answers' n-gram counts, over the orders 1 and 2.
        vendi (`float`): Vendi score by that similarity, from 1 to `vendi_rows`.
        vendi_rows (`int`): answers that it was computed over: all, or a seeded sample.
        distinct_1, distinct_2 (`float`): different n-grams over all n-grams.
        duplicates (`int`): answers with the same tokens as an earlier one.
        openings (`list[Repeated]`): the most frequent first four words, up to five that occur more than once.
        repeated (`list[Repeated]`): the most frequent whole answers, likewise.
        embedding ([`EmbeddingDiversity`], *optional*): where a model was named.
        warnings (`list[DiversityWarning]`): what deserves a look, by provisional thresholds.
        notes (`list[str]`): what was left out, sampled, or cannot be judged.
    """

    data: str | None
    split: str | None
    column: str | None
    tokens: str
    rows: int
    empty_rows: int
    mean_length: float
    exact_collision: float
    prefix_collision: dict[int, float]
    similarity: float
    vendi: float
    vendi_rows: int
    distinct_1: float
    distinct_2: float
    duplicates: int
    openings: list[Repeated]
    repeated: list[Repeated]
    embedding: EmbeddingDiversity | None
    warnings: list[DiversityWarning]
    notes: list[str]

    @property
    def answers(self) -> int:
        """Rows with text, which everything is measured on."""
        return self.rows - self.empty_rows

    @property
    def duplicate_share(self) -> float:
        """Share of the answers that say what an earlier one says."""
        return self.duplicates / self.answers

    def to_json(self) -> dict[str, Any]:
        """The report for a file. It holds the texts that are repeated, and no folder of this machine."""
        return {
            "format": FORMAT,
            **asdict(self),
            "prefix_collision": {str(k): value for k, value in self.prefix_collision.items()},
            "duplicate_share": self.duplicate_share,
            "warnings": [warning.to_json() for warning in self.warnings],
        }

    def text(self) -> str:
        """The report for a terminal; see [`~hf_lifealign.diversity.rendering.report_text`]."""
        from hf_lifealign.diversity.rendering import report_text

        return report_text(self)


def diversity_report(
    data: "Sequence[str] | Sequence[dict[str, Any]] | Dataset | str | Path",
    column: str | None = None,
    tokenizer: Any = None,
    split: str = "train",
    embedding: str | None = None,
    max_rows: int = 2000,
    seed: int = 0,
    limit: int | None = None,
) -> DiversityReport:
    """Measures how diverse the answers of a data set are, before anything is trained on them.

    Collisions, n-gram similarity and distinct-n are over all rows. The Vendi score needs the eigenvalues of a matrix of
    rows by rows, and embeddings a forward pass each: above `max_rows` rows both are of a seeded sample, which the
    report notes.

    Args:
        data (`list[str]`, `list[dict]`, `datasets.Dataset`, `str` or `pathlib.Path`): the answers, rows that hold
            them, or the name of such rows: a JSON, JSON Lines or Parquet file, a folder with a file for each split, or
            a Hub id.
        column (`str`, *optional*): the column of the answers; by default the first of chosen, completion, text,
            response and answer that is there. Of conversations the last assistant message counts.
        tokenizer (`PreTrainedTokenizerBase` or `str`, *optional*): whose token ids are the tokens, or the Hub id or
            folder of one; words and punctuation marks by default.
        split (`str`, *optional*, defaults to `"train"`): of folders and Hub ids.
        embedding (`str`, *optional*): adds diversity by sentence embeddings: `"embedded:minilm-l6-v2"`, a Hub id or a
            folder. Of answers beyond 256 tokens the end is embedded.
        max_rows (`int`, *optional*, defaults to 2000): most rows of the Vendi score and the embeddings, at least 2.
            2000 take a few seconds and 100 MB; time grows with the cube.
        seed (`int`, *optional*, defaults to 0): of the sample.
        limit (`int`, *optional*): look at the first rows only.

    Returns:
        [`DiversityReport`]

    Raises:
        ValueError: if the data cannot be read, has no column of answers, holds values that are none, or fewer than two
            rows with text; if tokenizer or embedding cannot be loaded; for numbers out of range.
    """
    for name, value, least in (("max_rows", max_rows, 2), ("seed", seed, 0), ("limit", limit, 2)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"You set {name}={value!r}. Set a whole number from {least}.")
    found = read_answers(data, column, split, limit)
    every, tokens = token_rows(found.texts, tokenizer)
    kept = [index for index, row in enumerate(every) if len(row)]
    if len(kept) < 2:
        raise ValueError(
            f"The data has {len(kept)} row{'s' * (len(kept) != 1)} with text, of {len(every)}. Diversity is a matter "
            "of two: give at least 2."
        )
    texts, rows = [found.texts[index] for index in kept], [every[index] for index in kept]
    sample = _sample(len(rows), max_rows, seed)
    measures = _measures(rows, sample)
    return DiversityReport(
        data=found.name,
        split=found.split,
        column=found.column,
        tokens=tokens,
        rows=len(every),
        empty_rows=len(every) - len(rows),
        **measures,
        openings=_most_repeated([opening(text, OPENING_WORDS) for text in texts], texts=None),
        repeated=_most_repeated([tuple(row) for row in rows], texts),
        embedding=None if embedding is None else _embed([texts[index] for index in sample], embedding),
        warnings=judge(
            measures["prefix_collision"][1], measures["vendi"], len(sample), measures["duplicates"], len(rows)
        ),
        notes=_notes(found, len(every) - len(rows), len(rows), len(sample), seed, embedding),
    )


def _measures(rows: Sequence[Sequence[Hashable]], sample: list[int]) -> dict[str, Any]:
    """The numbers on rows of tokens, by their names in the report; the Vendi score is of the sample."""
    features = ngram_features(rows)
    return {
        "mean_length": sum(map(len, rows)) / len(rows),
        "exact_collision": exact_collision(rows),
        "prefix_collision": {k: prefix_collision(rows, k) for k in PREFIXES},
        "similarity": mean_similarity(features),
        "vendi": vendi_score_of_features(features[sample]),
        "vendi_rows": len(sample),
        "distinct_1": distinct_ngrams(rows, 1),
        "distinct_2": distinct_ngrams(rows, 2),
        "duplicates": len(rows) - len(set(map(tuple, rows))),
    }


def _sample(rows: int, most: int, seed: int) -> list[int]:
    """All rows, or a sample of them without replacement, in their order."""
    if rows <= most:
        return list(range(rows))
    return sorted(np.random.Generator(np.random.PCG64(seed)).permutation(rows)[:most].tolist())


def _most_repeated(keys: Sequence[Hashable], texts: Sequence[str] | None) -> list[Repeated]:
    """What occurs most often, and more than once, the earlier first; with the text of its first row."""
    first = {key: index for index, key in reversed(list(enumerate(keys)))}
    common = [(key, count) for key, count in Counter(keys).most_common(_MOST_REPEATED) if count > 1]
    return [
        Repeated(str(key) if texts is None else texts[first[key]], count, count / len(keys)) for key, count in common
    ]


def _embed(texts: list[str], embedding: str) -> EmbeddingDiversity:
    from hf_lifealign.models import public_name
    from hf_lifealign.rewards.encoder import shared_encoder

    vectors = shared_encoder(embedding).embed(texts, progress=sys.stderr.isatty()).double().numpy()
    similarity = mean_similarity(vectors)
    return EmbeddingDiversity(public_name(embedding), len(texts), vendi_score_of_features(vectors), similarity)


def _notes(found: Answers, empty: int, rows: int, sampled: int, seed: int, embedding: str | None) -> list[str]:
    """What a reader has to know of how the numbers came about."""
    notes = []
    if len(found.texts) < found.available:
        notes.append(f"Only the first {len(found.texts):,} of {found.available:,} rows were read.")
    if empty:
        notes.append(f"{empty:,} row{'s' * (empty > 1)} without text {'was' if empty == 1 else 'were'} left out.")
    if sampled < rows:
        what = "The Vendi score is" if embedding is None else "The Vendi scores and the embedding similarity are"
        notes.append(
            f"{what} of a sample of {sampled:,} of {rows:,} answers (seed {seed}); a sample tends to score lower than "
            "all rows. Raise max_rows to take more."
        )
    if sampled < ROWS_TO_JUDGE_VENDI:
        notes.append(
            f"The Vendi score cannot be judged: it is at most the number of rows, {sampled} here. Give at least "
            f"{ROWS_TO_JUDGE_VENDI}."
        )
    return notes
