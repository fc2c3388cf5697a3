"""Calls a judge and checks what comes back, so that no judge can mislead or stop a training unnoticed."""

import math
import queue
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_lifealign.judges.protocol import Judge, judge_name

# By rounding a judge may miss the interval a little: BLEU of equal texts is 1.0000000000000004.
_ROUNDING = 1e-6


class JudgeError(RuntimeError):
    """A judge failed, gave no judgements, or did not answer in time; its cause is chained where there is one."""


def judged(
    judge: Judge,
    prompts: Sequence[str],
    answers: Sequence[str],
    references: Sequence[str],
    timeout: float | None = None,
) -> list[float]:
    """What a judge says, checked.

    With a timeout the judge runs in a thread of its own. Python cannot stop a thread, so that a judge which hangs is
    abandoned, and not ended: it keeps its memory, may go on computing, and ends with the process. Whether to ask it
    again is up to whoever asked; a judge that holds a lock will not answer a second time either.

    Args:
        judge (`Callable`): see [`Judge`].
        prompts, answers, references (`Sequence[str]` of the same length): what is judged.
        timeout (`float`, *optional*): seconds that the judge may take, loading included; as long as it takes by
            default.

    Returns:
        `list[float]`: a number in [0, 1] for each answer. What lies outside by rounding (1e-6) is put inside.

    Raises:
        JudgeError: if the judge raises, does not answer in time, or gives anything but one finite number in [0, 1] for
            each answer. `KeyboardInterrupt` and `SystemExit` pass.
        ValueError: if the texts differ in number, or the timeout is no number of seconds.
    """
    if not len(prompts) == len(answers) == len(references):
        raise ValueError(
            f"You gave {len(prompts)} prompts, {len(answers)} answers and {len(references)} references. Give as many "
            "of each."
        )
    if timeout is not None and not 0 < timeout <= threading.TIMEOUT_MAX:
        raise ValueError(f"You set timeout={timeout}. Set seconds above 0, or None to wait as long as it takes.")
    name = judge_name(judge)

    def ask() -> Any:
        # lists of its own: what a judge does to them is lost
        given = judge(list(prompts), list(answers), list(references))
        # a text or a mapping is no sequence of numbers, and a generator computes only when it is read
        return given if isinstance(given, str | bytes | Mapping) or not hasattr(given, "__iter__") else list(given)

    try:
        given = ask() if timeout is None else _in_thread(ask, timeout)
    except (KeyboardInterrupt, SystemExit):
        raise
    except _OutOfTimeError as error:
        raise JudgeError(
            f"The judge {name} did not answer within {timeout:g} seconds for {len(answers)} answers. It was left "
            "behind, since it cannot be stopped. Give it more time or fewer answers, or take a faster judge."
        ) from error
    except BaseException as error:
        raise JudgeError(f"The judge {name} failed: {type(error).__name__}: {error}") from error
    return _checked(given, len(answers), name)


class _OutOfTimeError(TimeoutError):
    """A judge did not answer in time; a `TimeoutError` that it raises itself is another thing."""


def _in_thread(ask: Callable[[], Any], timeout: float) -> Any:
    """What a function gives, or raises, in a daemon thread."""
    outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
    same_device = _current_device()

    def work() -> None:
        try:
            same_device()
            outcome.put((ask(), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=work, name="judge", daemon=True).start()
    try:
        given, error = outcome.get(timeout=timeout)
    except queue.Empty:
        raise _OutOfTimeError(f"no answer within {timeout:g} seconds") from None
    if error is not None:
        raise error
    return given


def _current_device() -> Callable[[], None]:
    """What makes this thread's GPU that of another thread, which begins with the first one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return lambda: None
    device = torch.cuda.current_device()
    return lambda: torch.cuda.set_device(device)


def _checked(given: Any, answers: int, name: str) -> list[float]:
    """One number in [0, 1] for each answer.

    Raises:
        JudgeError: if that is not what was given.
    """
    wanted = f"It has to give a list of {answers} numbers from 0 to 1."
    if not isinstance(given, list):
        raise JudgeError(f"The judge {name} gave {_short(given)}, of the type {type(given).__name__}. {wanted}")
    if len(given) != answers:
        raise JudgeError(f"The judge {name} gave {len(given)} judgements for {answers} answers. {wanted}")
    values = []
    for i, one in enumerate(given):
        try:
            # float() would read a text
            value = math.nan if isinstance(one, str | bytes) else float(one)
        except Exception as error:
            raise JudgeError(f"The judge {name} gave {_short(one)} for answer {i}, no number. {wanted}") from error
        if not -_ROUNDING <= value <= 1 + _ROUNDING:  # and so refuses NaN
            raise JudgeError(f"The judge {name} gave {_short(one)} for answer {i}. {wanted}")
        values.append(min(max(value, 0.0), 1.0))
    return values


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
