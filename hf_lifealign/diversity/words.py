"""What a word of a text is where no tokenizer is given, and the words that a text opens with."""

import functools
import re
import sys
import unicodedata

# Scripts whose words no space divides, and whose characters stand for words or syllables: kana and Han.
_UNSPACED = "\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"


@functools.cache
def _marks() -> str:
    """All combining marks: vowel signs of Hindi or Thai, for which `\\w` does not match, would tear words apart."""
    # above U+1FFFF there are none but variation selectors
    return "".join(chr(c) for c in range(min(sys.maxunicode, 0x1FFFF)) if unicodedata.category(chr(c))[0] == "M")


@functools.cache
def _word() -> re.Pattern[str]:
    letters, marks = rf"[^\W{_UNSPACED}]", f"[{_marks()}]"
    run = f"{letters}+(?:{marks}+{letters}*)*"
    return re.compile(f"[{_UNSPACED}]|{run}(?:['’]{run})*")


@functools.cache
def _token() -> re.Pattern[str]:
    return re.compile(rf"{_word().pattern}|\S")


def words(text: str) -> list[str]:
    """The words and punctuation marks of a text, in order and with their case.

    A word is a run of letters, digits and their combining marks, with apostrophes inside it ("don't"); everything else
    but white space is a token of its own. Of Chinese and Japanese each character counts as a word. Other scripts
    without spaces, such as Thai, give whole clauses: measure them with a tokenizer.

    Args:
        text (`str`): the text.

    Returns:
        `list[str]`: empty for a text of nothing but white space.
    """
    return _token().findall(text)


def opening(text: str, count: int = 4) -> str:
    """The beginning of a text up to its word number `count`, with white space as single spaces.

    Punctuation between the words stays and does not count. A text of fewer words is its own opening.

    Args:
        text (`str`): the text.
        count (`int`, *optional*, defaults to 4): words, at least 1.
    """
    end = len(text)
    for number, found in enumerate(_word().finditer(text), start=1):
        if number == count:
            end = found.end()
            break
    return " ".join(text[:end].split())
