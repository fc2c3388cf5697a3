"""A writer that follows every prompt of SELF-ALIGN, with words that are never the same."""

import random

from hf_lifealign.self_align.generators import Generation
from hf_lifealign.self_align.rendering import REPLY


def words(key: object, count: int) -> str:
    """Made-up words, the same ones for the same key."""
    draws = random.Random(str(key))
    return " ".join("".join(draws.choice("abcdefghij") for _ in range(5)) for _ in range(count))


def obedient(prompt: str, seed: int = 0, place: int = 0) -> str:
    """What a model says that does all it is asked for."""
    key = (prompt, seed, place)
    if prompt.rstrip().endswith("Question:"):
        return f" Is {words(key, 5)}?"
    if "topics about" in prompt:
        return f" {words(key, 1)}\n7. {words((key, 1), 1)}"
    if "list of" in prompt:
        return "\n".join(f"{k + 6}. Write {words((key, k), 5)}" for k in range(5))[3:]
    if "notes for itself" in prompt:
        return f" 2 (informative).\n{REPLY} {words(key, 4)}."
    return f" {words(key, 3)}."


def at_length(prompt: str, seed: int = 0, place: int = 0) -> Generation | str:
    """What an engraved model says; one of ten answers does not come to its end."""
    key = (prompt, seed, place)
    text = f" {words(key, 9)}."
    return Generation(text, False, 9) if random.Random(str(key)).random() < 0.1 else text
