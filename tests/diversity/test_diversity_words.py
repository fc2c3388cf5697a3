"""What a word is, in scripts with and without spaces, and what a text opens with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lifealign.diversity.words import opening, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but no.", ["I'm", "sorry", ",", "but", "no", "."]),
        ("It’s 3.5 snake_case!!", ["It’s", "3", ".", "5", "snake_case", "!", "!"]),
        ("'quoted' words", ["'", "quoted", "'", "words"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("école e\u0301cole", ["école", "e\u0301cole"]),
        ("很抱歉,no", ["很", "抱", "歉", ",", "no"]),
        ("本ので", ["本", "の", "で"]),
        ("안녕하세요 여러분", ["안녕하세요", "여러분"]),
        (" \n\t", []),
        ("", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


@given(st.text())
def test_nothing_but_white_space_is_lost(text):
    assert "".join(words(text)) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but I can't do that.", "I'm sorry, but I"),
        ("**Sure!**  Here\nis the thing", "**Sure!** Here is the"),
        ("Too short.", "Too short."),
        ("很抱歉，我不能", "很抱歉，我"),
        ("?!", "?!"),
    ],
)
def test_the_opening_is_the_first_four_words_as_they_stand(text, expected):
    assert opening(text) == expected


def test_an_opening_of_another_length():
    assert opening("one two three", 1) == "one"
