"""A judge that a command line can name: aligned is what has a vowel."""

from collections.abc import Sequence


def has_vowel(prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]) -> list[float]:
    return [float(any(letter in answer.lower() for letter in "aeiou")) for answer in answers]
