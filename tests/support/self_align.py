"""Writers: one that follows every prompt of SELF-ALIGN, with words that are never the same, one who dies."""

import random
from collections.abc import Callable

from hf_lifealign.self_align.generators import Call, Generation, ScriptedGenerator
from hf_lifealign.self_align.rendering import REPLY


class Mortal(ScriptedGenerator):
    """Lives for so many calls.

    Args:
        answer (`Callable`): what it says, as of [`ScriptedGenerator`].
        left (`int`): calls.
    """

    def __init__(self, answer: Callable[[str, int, int], Generation | str], left: int):
        super().__init__(answer, batch_size=4)
        self.left = left

    def generate(self, call: Call) -> list[Generation]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return super().generate(call)


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
