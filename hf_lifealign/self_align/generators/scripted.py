"""A generator that says what a function says: for tests, and for trying a recipe without a model."""

from collections.abc import Callable, Sequence

from hf_lifealign.self_align.generators.protocol import Call, Generation, Sampling, until_stop


class ScriptedGenerator:
    """Answers each prompt by a function.

    Args:
        answer (`Callable`): of a prompt, the seed of its call, and its place in the call; gives a [`Generation`], or a
            text, which then came to its end. What stands from the first stop string on is cut off.
        name (`str`): by which its calls are kept.
        batch_size, concurrency (`int`): see [`Generator`].
        context (`int`, *optional*): words that fit, prompt and answer together.
    """

    def __init__(
        self,
        answer: Callable[[str, int, int], Generation | str],
        name: str = "scripted",
        batch_size: int = 4,
        concurrency: int = 1,
        context: int | None = None,
    ):
        self.answer, self.name, self.batch_size, self.concurrency = answer, name, batch_size, concurrency
        self.context = context

    def identity(self) -> str:
        return self.name

    def refuse_too_long(self, prompts: Sequence[str], sampling: Sampling) -> None:
        for prompt in prompts:
            words = len(prompt.split())
            if self.context is not None and words + sampling.max_new_tokens > self.context:
                raise ValueError(
                    f"A prompt has {words} words, its answer up to {sampling.max_new_tokens}, and {self.context} fit: "
                    f"{prompt[:60]!r}."
                )

    def generate(self, call: Call) -> list[Generation]:
        found = []
        for place, prompt in enumerate(call.prompts):
            told = self.answer(prompt, call.seed, place)
            made = Generation(told, True, len(told.split())) if isinstance(told, str) else told
            found.append(until_stop(made, call.sampling.stop))
        return found
