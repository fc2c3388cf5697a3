"""Judges that compare an answer with its reference, word by word."""

from collections.abc import Sequence


def rouge_l(prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """ROUGE-L F1 (Lin 2004) of each answer against the chosen answer, in [0, 1], by the `rouge_score` package."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return [
        scorer.score(reference, answer)["rougeL"].fmeasure
        for answer, reference in zip(answers, references, strict=True)
    ]


def bleu_4(prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """Sentence BLEU-4 (Papineni et al. 2002) against the chosen answer, in [0, 1], by the `sacrebleu` package."""
    from sacrebleu import sentence_bleu

    return [
        sentence_bleu(answer, [reference], smooth_method="exp", use_effective_order=True).score / 100
        for answer, reference in zip(answers, references, strict=True)
    ]
