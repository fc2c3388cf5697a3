"""Near-duplicates, against `rouge_score` itself."""

import random
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from hf_lifealign.self_align.near_duplicates import Duplicate, NearDuplicateFilter, rouge_l_f1, tokens

ROUGE = RougeScorer(["rougeL"], use_stemmer=False)
WORDS = ["the", "a", "why", "write", "poem", "2024", "list", "of", "ten", "cats", "explain", "how"]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=0, max_size=14).map(" ".join)


def f1(one: str, other: str) -> float:
    return float(ROUGE.score(one, other)["rougeL"].fmeasure)


def plain(text: str) -> bool:
    """Without letters, digits and marks of other scripts. What is not assigned in the planes of ideographs is one."""
    others = (sign for sign in text.lower() if not sign.isascii())
    return all(unicodedata.category(sign)[0] not in "LNM" and not 0x20000 <= ord(sign) <= 0x3134F for sign in others)


@given(st.text().filter(plain))
def test_tokens_are_those_of_rouge_score(text: str) -> None:
    assert tokens(text) == [token for token in DefaultTokenizer(use_stemmer=False).tokenize(text) if token]


@pytest.mark.parametrize("text", ["Don’t stop…", "snake_case C++ 3.5%", "Nike™ — “yes”", "", "?!", "Kelvin"])
def test_tokens_of_odd_texts(text: str) -> None:
    assert tokens(text) == DefaultTokenizer(use_stemmer=False).tokenize(text)


def test_other_scripts_are_kept_apart() -> None:
    assert tokens("Où est l'école?") == ["où", "est", "l", "école"]
    assert tokens("E\u0301cole") == tokens("École") == ["école"]
    assert tokens("\U0002ebe1 a") == ["\U0002ebe1", "a"], "reserved for ideographs, though not assigned yet"
    assert tokens("今日は good") == ["今", "日", "は", "good"]
    assert tokens("Расскажи о погоде") == ["расскажи", "о", "погоде"]
    assert tokens("हिन्दी में") == ["".join(s for s in word if unicodedata.category(s) == "Lo") for word in ("हिन्दी", "में")]
    accepted = NearDuplicateFilter()
    accepted.extend(["Расскажи о погоде в Москве", "今日の天気はどうですか", "Où est l'école?"])
    assert accepted.find("Почему небо голубое сегодня утром") is None
    assert accepted.find("明日の試験は何時からですか") is None
    assert accepted.find("расскажи о погоде в москве!") == Duplicate(0, 1.0)
    assert accepted.find("今日の天気はどうですか?") == Duplicate(1, 1.0)


def near(rng: random.Random, text: str) -> str:
    """A text of which some words are left out, changed or moved, so that many pairs lie about the threshold."""
    words = text.split()
    for _ in range(rng.randint(0, max(1, len(words)))):
        place = rng.randrange(len(words)) if words else 0
        what = rng.random()
        if what < 0.4 and len(words) > 1:
            del words[place]
        elif what < 0.8:
            words.insert(place, rng.choice(WORDS))
        elif words:
            words[place] = rng.choice(WORDS)
    return " ".join(words)


def test_the_same_decisions_on_20_000_pairs() -> None:
    rng = random.Random(0)
    decided, border = 0, 0
    for _ in range(20_000):
        one = " ".join(rng.choices(WORDS, k=rng.randint(1, 20)))
        other = near(rng, one)
        accepted = NearDuplicateFilter()
        accepted.add(one)
        found, exact = accepted.find(other), f1(one, other)
        assert (found is not None) == (exact > 0.7), (one, other)
        assert found is None or found.f1 == exact
        decided += found is not None
        border += abs(exact - 0.7) < 1e-9
    assert 4_000 < decided < 18_000
    assert border > 20, "where rounding decides"


@settings(max_examples=150)
@given(st.lists(TEXTS, max_size=25), TEXTS, st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.9]))
def test_none_is_missed_and_the_nearest_is_found(texts: list[str], text: str, threshold: float) -> None:
    accepted = NearDuplicateFilter(threshold)
    accepted.extend(texts)
    assert len(accepted) == len(texts)
    scores = [f1(other, text) for other in texts]
    best = max(scores, default=0.0)
    expected = Duplicate(scores.index(best), best) if best > threshold else None
    assert accepted.find(text) == expected


def test_f1_is_that_of_rouge_score_to_the_last_bit() -> None:
    for one in range(1, 25):
        for other in range(1, 25):
            for common in range(1, min(one, other) + 1):
                left = " ".join(["x"] * common + [f"a{i}" for i in range(one - common)])
                right = " ".join(["x"] * common + [f"b{i}" for i in range(other - common)])
                assert rouge_l_f1(common, one, other) == f1(left, right)


def test_many_different_words_are_no_surrogates() -> None:
    accepted = NearDuplicateFilter()
    accepted.add(" ".join(f"w{i}" for i in range(60_000)))
    accepted.add("w55295 w55296 w57343 w57344")
    assert accepted.find("w55295 w55296 w57343 w57344") == Duplicate(1, 1.0)


@pytest.mark.parametrize("threshold", [-0.1, 1.0, 7])
def test_a_threshold_out_of_range(threshold: float) -> None:
    with pytest.raises(ValueError, match="from 0, below 1"):
        NearDuplicateFilter(threshold)
