"""A reward in closed form: the shorter an answer, the better."""

import math
from typing import Any

from hf_lifealign.stream.rows import text_of


class BrevityReward:
    """Minus the number of characters of the completion, over a scale: `r = -characters / scale`.

    Characters (Unicode code points, white space included) are the unit, since every tokenizer and language has them and
    whatever makes a model stop sooner moves them; words could be saved by leaving out spaces. The best reward is 0, of
    an empty answer, so it is an objective to set beside others, or to check a trainer with, and no goal in itself.

    Args:
        scale (`float`, *optional*, defaults to 100.0): characters that cost a reward of 1.
        name (`str`, *optional*, defaults to `"brevity"`): name under which TRL logs it.

    Raises:
        ValueError: if `scale` is not a finite number above 0.
    """

    def __init__(self, scale: float = 100.0, name: str = "brevity") -> None:
        if isinstance(scale, bool) or not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"You set scale={scale!r}. Set the number of characters that cost 1, above 0.")
        self.scale = float(scale)
        self.__name__ = name

    def __call__(
        self, prompts: list[Any], completions: list[Any], completion_ids: Any = None, **columns: Any
    ) -> list[float]:
        """Rewards in TRL's protocol.

        Args:
            prompts (`list`): not looked at.
            completions (`list`): a text or a list of messages each.
            completion_ids, columns: what else TRL passes; not looked at.

        Returns:
            `list[float]`: a reward for each completion, in (-inf, 0].
        """
        return [-len(text_of(completion)) / self.scale for completion in completions]

    def __repr__(self) -> str:
        return f"BrevityReward(scale={self.scale}, name={self.__name__!r})"
