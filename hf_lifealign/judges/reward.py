"""RewardJudge: a reward function of TRL tells which answers are aligned."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from hf_lifealign.judges.inference import LOADING
from hf_lifealign.judges.protocol import judge_name


class RewardJudge:
    """1.0 where a reward is above a threshold, 0.0 elsewhere.

    The threshold is part of what is judged: a reward fitted on preferences tells two answers to one prompt apart, and
    its zero means nothing by itself. `metadata["mean"]` of a [`MiniLMBradleyTerryReward`] is a place to start.

    Args:
        reward (`Callable` or `str`): a reward function in TRL's protocol, plain or async, which is called with the
            keywords `prompts` and `completions`, both lists of texts; or what [`resolve_reward`] takes, the folder or
            repository of a saved reward, say. A text is resolved when the judge is first used, or by
            [`~RewardJudge.load`].
        threshold (`float`, *optional*, defaults to 0.0): what a reward has to exceed.

    Raises:
        ValueError: if the reward is neither, or the threshold is no finite number.
    """

    def __init__(self, reward: Callable[..., Any] | str, threshold: float = 0.0) -> None:
        if isinstance(reward, type) or not (isinstance(reward, str) or callable(reward)):
            given = f"the class {reward.__name__}" if isinstance(reward, type) else f"{reward!r}"
            raise ValueError(f"You set the reward {given}. Set a function, an instance, or what resolve_reward takes.")
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not math.isfinite(threshold):
            raise ValueError(f"You set threshold={threshold!r}. Set the finite number that a reward has to exceed.")
        self.reward = reward
        self.threshold = float(threshold)
        self._function: Callable[..., Any] | None = None if isinstance(reward, str) else reward

    def load(self) -> None:
        """Resolves the reward now, so that a wrong setting shows before anything is trained.

        Raises:
            ValueError: if the text names no reward, or a sequence classifier.
            ImportError, HubError: see [`resolve_reward`].
        """
        with LOADING:
            if self._function is None:
                self._function = _resolved(str(self.reward))

    def __call__(self, prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]) -> list[float]:
        """Judges answers.

        Args:
            prompts, answers (`Sequence[str]`): what the reward is given.
            references (`Sequence[str]`): not looked at.

        Returns:
            `list[float]`: 0.0 or 1.0 for each answer.

        Raises:
            ValueError: if the reward gives another number of rewards, or None or NaN for an answer, which is named:
                whoever asked decides what becomes of an answer that has no reward.
        """
        if not answers:
            return []
        self.load()
        assert self._function is not None
        given = self._function(prompts=list(prompts), completions=list(answers))
        rewards = list(_awaited(given) if inspect.isawaitable(given) else given)
        if len(rewards) != len(answers):
            raise ValueError(f"The reward {self._name} gave {len(rewards)} rewards for {len(answers)} answers.")
        values = []
        for i, reward in enumerate(rewards):
            value = math.nan if reward is None else float(reward)
            if math.isnan(value):
                raise ValueError(
                    f"The reward {self._name} gave {'None' if reward is None else 'NaN'} for answer {i}, by which it "
                    "cannot be judged. Leave that answer out, or have the reward rate it."
                )
            values.append(1.0 if value > self.threshold else 0.0)
        return values

    @property
    def _name(self) -> str:
        return judge_name(self._function if self._function is not None else self.reward)

    def __repr__(self) -> str:
        return f"RewardJudge({self._name}, threshold={self.threshold})"


def _resolved(spec: str) -> Callable[..., Any]:
    from hf_lifealign.rewards import resolve_reward

    found = resolve_reward(spec)
    if isinstance(found, str):
        raise ValueError(
            f"You set the reward {spec!r}, a sequence classifier. Use ClassifierJudge({found!r}, label=...) for its "
            "probabilities, or a function that calls it."
        )
    return found


def _awaited(given: Any) -> Any:
    """What an async reward gives in the end."""
    import asyncio

    async def wait() -> Any:
        return await given

    return asyncio.run(wait())
