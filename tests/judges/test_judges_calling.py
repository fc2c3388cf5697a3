"""judged: what it lets through, what it refuses and in which words, and that it does not wait for ever."""

import sys
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hf_lifealign.judges import JudgeError, KeywordJudge, judged
from hf_lifealign.judges.calling import _current_device

TEXTS = ["a", "b"]
TIMEOUTS = pytest.mark.parametrize("timeout", [None, 60.0], ids=["here", "in_a_thread"])


def giving(given: Any) -> Any:
    def judge(prompts: Any, answers: Any, references: Any) -> Any:
        return given

    return judge


def raising(error: BaseException) -> Any:
    def judge(prompts: Any, answers: Any, references: Any) -> Any:
        raise error

    return judge


@TIMEOUTS
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([0, 1.0], [0.0, 1.0]),
        ([True, False], [1.0, 0.0]),
        ((0.25, 0.5), [0.25, 0.5]),
        (np.array([0.25, 0.5], dtype=np.float32), [0.25, 0.5]),
        (torch.tensor([0.25, 0.5]), [0.25, 0.5]),
        ((x for x in (0.25, 0.5)), [0.25, 0.5]),
        ([1 + 1e-9, -1e-9], [1.0, 0.0]),
    ],
    ids=["numbers", "booleans", "tuple", "numpy", "torch", "generator", "rounding"],
)
def test_what_is_let_through(given: Any, expected: list[float], timeout: float | None) -> None:
    if not isinstance(given, list | tuple | np.ndarray | torch.Tensor):
        given = iter([0.25, 0.5])  # a generator can be read once, and there are two runs
    found = judged(giving(given), TEXTS, TEXTS, TEXTS, timeout)
    assert found == expected
    assert all(type(value) is float for value in found)


@TIMEOUTS
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([1.0], "1 judgements for 2 answers"),
        ([1.0, 0.0, 1.0], "3 judgements for 2 answers"),
        (None, "gave None, of the type NoneType"),
        (0.5, "gave 0.5, of the type float"),
        ("10", "gave '10', of the type str"),
        ({"a": 1.0, "b": 0.0}, "of the type dict"),
        ([1.0, None], "gave None for answer 1, no number"),
        (["0.5", 1.0], "gave '0.5' for answer 0"),
        ([0.5, float("nan")], "gave nan for answer 1"),
        ([float("inf"), 0.5], "gave inf for answer 0"),
        ([0.5, 1.001], "gave 1.001 for answer 1"),
        ([-0.001, 0.5], "gave -0.001 for answer 0"),
        ([0.5, [0.5, 0.5]], "for answer 1, no number"),
    ],
)
def test_what_is_refused(given: Any, told: str, timeout: float | None) -> None:
    with pytest.raises(JudgeError, match=r"The judge judge gave.*a list of 2 numbers from 0 to 1") as caught:
        judged(giving(given), TEXTS, TEXTS, TEXTS, timeout)
    assert told in str(caught.value)


@TIMEOUTS
def test_what_a_judge_raises_is_the_cause(timeout: float | None) -> None:
    for error in (KeyError("label"), TimeoutError("the other side"), GeneratorExit("odd")):
        with pytest.raises(JudgeError, match=rf"The judge judge failed: {type(error).__name__}: ") as caught:
            judged(raising(error), TEXTS, TEXTS, TEXTS, timeout)
        assert caught.value.__cause__ is error

    def late() -> Any:
        yield 1.0
        raise KeyError("half way")

    with pytest.raises(JudgeError, match="half way"):
        judged(giving(late()), TEXTS, TEXTS, TEXTS, timeout)


@TIMEOUTS
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_what_passes(error: BaseException, timeout: float | None) -> None:
    with pytest.raises(type(error)) as caught:
        judged(raising(error), TEXTS, TEXTS, TEXTS, timeout)
    assert caught.value is error


def test_a_judge_that_hangs_is_abandoned() -> None:
    never = threading.Event()
    threads: list[threading.Thread] = []

    def hanging(prompts: Any, answers: Any, references: Any) -> list[float]:
        threads.append(threading.current_thread())
        never.wait()
        return [1.0, 1.0]

    try:
        with pytest.raises(JudgeError, match=r"hanging did not answer within 0\.05 seconds for 2 answers") as caught:
            judged(hanging, TEXTS, TEXTS, TEXTS, timeout=0.05)
        assert isinstance(caught.value.__cause__, TimeoutError)
        (thread,) = threads
        assert thread.is_alive()
        assert thread.daemon, "else it would keep the process from ending"
    finally:
        never.set()
    thread.join(60)
    assert not thread.is_alive()


def test_a_judge_without_a_timeout_runs_in_the_thread_that_asks() -> None:
    def here(prompts: Any, answers: Any, references: Any) -> list[float]:
        return [float(threading.current_thread() is threading.main_thread())] * len(answers)

    assert judged(here, TEXTS, TEXTS, TEXTS) == [1.0, 1.0]
    assert judged(here, TEXTS, TEXTS, TEXTS, timeout=60) == [0.0, 0.0]


def test_what_a_judge_does_to_its_lists_is_lost() -> None:
    def clearing(prompts: Any, answers: Any, references: Any) -> list[float]:
        for texts in (prompts, answers, references):
            texts.clear()
        return [1.0, 1.0]

    mine = list(TEXTS)
    assert judged(clearing, mine, mine, mine) == [1.0, 1.0]
    assert mine == TEXTS


def test_the_judge_is_named_by_its_settings_where_it_has_them() -> None:
    class Odd:
        def __call__(self, prompts: Any, answers: Any, references: Any) -> list[float]:
            return []

    class Broken(KeywordJudge):
        def __call__(self, prompts: Any, answers: Any, references: Any) -> list[float]:
            return []

    with pytest.raises(JudgeError, match="The judge Odd gave 0"):
        judged(Odd(), TEXTS, TEXTS, TEXTS)
    with pytest.raises(JudgeError, match=r"The judge KeywordJudge\(\['a'\], aligned=True, whole_words=True\) gave 0"):
        judged(Broken(["a"]), TEXTS, TEXTS, TEXTS)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="1 prompts, 2 answers and 2 references"):
        judged(giving([1.0, 1.0]), ["a"], TEXTS, TEXTS)
    for timeout in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="timeout="):
            judged(giving([1.0, 1.0]), TEXTS, TEXTS, TEXTS, timeout)


def test_a_thread_takes_the_gpu_of_the_one_that_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    cuda = SimpleNamespace(is_initialized=lambda: True, current_device=lambda: 3, set_device=calls.append)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    judged(giving([1.0, 1.0]), TEXTS, TEXTS, TEXTS, timeout=60)
    assert calls == [3]
    cuda.is_initialized = lambda: False
    _current_device()()
    assert calls == [3], "a GPU that is not in use must not be touched"
