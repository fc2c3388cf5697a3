"""Judges of generated answers: each maps prompts, answers and references to one number in [0, 1] per answer.

By overlap with a reference: [`rouge_l`], [`bleu_4`]. By form: [`refusal`], [`compliance`], [`KeywordJudge`]. By a
model: [`ClassifierJudge`], [`RewardJudge`], [`LLMJudge`]. [`resolve_judge`] tells which one a text means, and
[`judged`] calls one and checks what it says. Importing this room costs nothing heavy: models and libraries come with
the first use.
"""

from hf_lifealign.judges.calling import JudgeError, judged
from hf_lifealign.judges.classifier import ClassifierJudge
from hf_lifealign.judges.form import REFUSAL_OPENINGS, REFUSAL_PHRASES, KeywordJudge, compliance, refusal
from hf_lifealign.judges.llm import LLMJudge
from hf_lifealign.judges.overlap import bleu_4, rouge_l
from hf_lifealign.judges.protocol import Judge, judge_name
from hf_lifealign.judges.resolve import resolve_judge
from hf_lifealign.judges.reward import RewardJudge

__all__ = [
    "REFUSAL_OPENINGS",
    "REFUSAL_PHRASES",
    "ClassifierJudge",
    "Judge",
    "JudgeError",
    "KeywordJudge",
    "LLMJudge",
    "RewardJudge",
    "bleu_4",
    "compliance",
    "judge_name",
    "judged",
    "refusal",
    "resolve_judge",
    "rouge_l",
]
