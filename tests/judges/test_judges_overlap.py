"""Judges by overlap with a reference, and what importing the room of judges costs."""

import subprocess
import sys

import pytest

from hf_lifealign.judges import bleu_4, judged, rouge_l


def test_rouge_l_by_hand() -> None:
    # longest common subsequence "the cat": precision 2/2, recall 2/4
    assert rouge_l(["?"], ["the cat"], ["the cat sat down"]) == pytest.approx([2 * 1 * 0.5 / 1.5])
    assert rouge_l(["?", "?"], ["the cat", "dog"], ["the cat", "cat"]) == [1.0, 0.0]


def test_bleu_4_is_one_for_the_same_text_and_rounding_is_put_inside() -> None:
    text = "the cat sat on the mat and slept"
    assert bleu_4(["?"], [text], [text]) == pytest.approx([1.0])
    assert judged(bleu_4, ["?", "?"], [text, "dogs"], [text, text]) == [1.0, pytest.approx(0.0, abs=1e-2)]


def test_importing_judges_and_making_them_touches_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from hf_lifealign.judges import ClassifierJudge, KeywordJudge, LLMJudge, RewardJudge, judged, resolve_judge\n"
        "ClassifierJudge('a/b', label='good'), LLMJudge('a/b'), RewardJudge('brevity')\n"
        "assert judged(resolve_judge('refusal'), ['p'], ['I cannot help.'], [''], timeout=60) == [1.0]\n"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
