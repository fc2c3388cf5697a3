"""Prompts that say almost what an accepted one says: ROUGE-L F1 above a threshold, against all of them, fast."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist

# Words, as `rouge_score` finds them where a text has no letters but a to z; and signs of scripts that write no spaces,
# each for itself.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_TOKENS = re.compile(rf"[{_UNSPACED}\U00020000-\U0003134f]|[^\W_{_UNSPACED}\U00020000-\U0003134f]+")
# Code points for words: all but the surrogates, which are no characters.
_SURROGATES, _MOST_WORDS = (0xD800, 0xE000), 0x110000 - 0x800


def tokens(text: str) -> list[str]:
    """The words of a text, in lower case.

    Where its letters, digits and marks are those of ASCII, these are the tokens of `rouge_score` without stemming. That
    would leave nothing of other scripts, and tear words with accents apart; here their words are kept whole, and each
    sign of a script without spaces is a token.
    """
    composed = unicodedata.normalize("NFC", text.lower())
    if composed.isascii():
        return _TOKENS.findall(composed)
    # marks that stand for themselves (as in Devanagari) are no letters to `\w`, and would part their words
    kept = "".join("" if unicodedata.category(sign) in ("Mn", "Mc", "Me") else sign for sign in composed)
    return _TOKENS.findall(kept)


def count_words(text: str) -> int:
    """Words of a text; of scripts without spaces, half of their signs. 0 if it has neither letters nor digits."""
    found = tokens(text)
    return max(len(text.split()), len(found) // 2) if found else 0


def rouge_l_f1(common: int, one: int, other: int) -> float:
    """ROUGE-L F1 (Lin 2004) of two texts whose longest common subsequence has `common` of their tokens, as
    `rouge_score` computes it, to the last bit."""
    if not (common and one and other):
        return 0.0
    precision, recall = common / one, common / other
    return 2 * precision * recall / (precision + recall)


@dataclass(frozen=True)
class Duplicate:
    """What a text says almost the same as.

    Args:
        index (`int`): of the accepted text, in the order in which they were added.
        f1 (`float`): ROUGE-L F1 of both; 1.0 where they have the same words.
    """

    index: int
    f1: float


class NearDuplicateFilter:
    r"""
    Accepted texts, and whether another one is almost one of them: ROUGE-L F1 of their words above `threshold`
    (Self-Instruct, arXiv 2212.10560, appendix; SELF-ALIGN, arXiv 2305.03047, section 3.1).

    Every accepted text is compared that could exceed the threshold by its length: of `m` and `n` words at most
    ``min(m, n)`` are common, and the F1 is ``2 common / (m + n)``. What is left out cannot be a duplicate. The
    comparison itself is rapidfuzz's bit-parallel longest common subsequence, on words as single characters.

    Args:
        threshold (`float`): in [0, 1); 0.7 as published.

    Raises:
        ValueError: for a threshold out of its range.
    """

    def __init__(self, threshold: float = 0.7):
        if not 0 <= threshold < 1:
            raise ValueError(f"You set a threshold of {threshold}. It is a ROUGE-L F1: set one from 0, below 1.")
        self.threshold = threshold
        self._words: dict[str, str] = {}
        self._by_length: dict[int, tuple[list[str], list[int]]] = {}
        self._count = 0
        self._least: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return self._count

    def add(self, text: str) -> None:
        """Accepts a text, whatever it says."""
        written = self._written(tokens(text), learn=True)
        texts, indices = self._by_length.setdefault(len(written), ([], []))
        texts.append(written)
        indices.append(self._count)
        self._count += 1

    def extend(self, texts: Iterable[str]) -> None:
        """Accepts several."""
        for text in texts:
            self.add(text)

    def find(self, text: str) -> Duplicate | None:
        """The accepted text that a text is most alike, the first of several; `None` if none exceeds the threshold.

        A text without a word (only punctuation, say) is like none.
        """
        written = self._written(tokens(text), learn=False)
        best: Duplicate | None = None
        for length, (texts, indices) in self._by_length.items():
            least = self._least_common(len(written), length)
            if least is None:
                continue
            common = cdist([written], texts, scorer=LCSseq.similarity, score_cutoff=least, dtype=np.int32)[0]
            place = int(common.argmax())
            if common[place] < least:
                continue
            found = Duplicate(indices[place], rouge_l_f1(int(common[place]), length, len(written)))
            if best is None or (-found.f1, found.index) < (-best.f1, best.index):
                best = found
        return best

    def _least_common(self, one: int, other: int) -> int | None:
        """The fewest common words with which two texts of these lengths exceed the threshold; `None` if even all of
        the shorter one would not do."""
        key = (min(one, other), max(one, other))
        if key not in self._least:
            most = key[0]
            fewest = next((c for c in range(1, most + 1) if rouge_l_f1(c, *key) > self.threshold), 0)
            self._least[key] = fewest
        return self._least[key] or None

    def _written(self, words: list[str], learn: bool) -> str:
        """Words as characters; one that is in no accepted text is like no other, and all these are one."""
        found = []
        for word in words:
            sign = self._words.get(word)
            if sign is None:
                sign = _sign(0)
                if learn:
                    if len(self._words) + 1 >= _MOST_WORDS:
                        raise ValueError(f"The accepted texts have more than {_MOST_WORDS - 1} different words.")
                    sign = self._words[word] = _sign(len(self._words) + 1)
            found.append(sign)
        return "".join(found)


def _sign(number: int) -> str:
    return chr(number if number < _SURROGATES[0] else number + _SURROGATES[1] - _SURROGATES[0])
