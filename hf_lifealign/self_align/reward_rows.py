"""From judged pairs to what a reward model learns from: principles are drawn for each pair and rendered into the text
of its prompt, and the label follows them (SALMON, arXiv 2310.05910, section 3.2). Pure functions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hf_lifealign.self_align.constitution import Principle
from hf_lifealign.self_align.principle_labels import DrawnPrinciple, deciding_principle, draw_principles, label_of
from hf_lifealign.self_align.rendering import Prompts
from hf_lifealign.self_align.stages.outcome import Outcome
from hf_lifealign.strategies.sampling import seeded_generator

# Why a pair has no label.
NONE_TELLS, CONTRADICTION = "no_principle_tells", "principles_contradict"


def labelled_rows(
    judged: Sequence[Mapping[str, Any]],
    principles: Sequence[Principle],
    seed: int,
    rate: float = 0.2,
    most: int = 8,
    negation: float = 0.5,
) -> Outcome:
    """Draws principles for each pair, and labels it by them.

    Args:
        judged (`list[dict]`): rows of [`JudgementStage`]: `prompt`, `first`, `second`, and `scores`, one a principle.
        principles (`list[Principle]`): of the constitution, in the order of the scores.
        seed (`int`): of the drawing; what is drawn for a pair depends on it and on the pair's prompt alone.
        rate (`float`), most (`int`), negation (`float`): see [`draw_principles`].

    Returns:
        [`Outcome`] with rows of `prompt`, `chosen`, `rejected`; `principles`, each with `name` and `negated`, as they
        were drawn; `decided_by`, the name of that which gave the label, and `negated`, whether it was. Pairs that the
        principles do not tell apart are dropped with a reason.
    """
    outcome, negatable = Outcome(), [bool(principle.negated) for principle in principles]
    for row in judged:
        draws = seeded_generator(seed, "principles", row["prompt"])
        drawn = draw_principles(draws, negatable, rate, most, negation)
        decides, label = deciding_principle(row["scores"], drawn), label_of(row["scores"], drawn)
        told = [{"name": principles[each.index].name, "negated": each.negated} for each in drawn]
        if decides is None:
            silent = all(row["scores"][each.index] == 0 for each in drawn)
            reason = NONE_TELLS if silent else CONTRADICTION
            outcome.drop(row["first"], reason, prompt=row["prompt"], second=row["second"], principles=told)
            continue
        chosen, rejected = (row["first"], row["second"]) if label > 0 else (row["second"], row["first"])
        outcome.rows.append({
            "prompt": row["prompt"], "chosen": chosen, "rejected": rejected, "principles": told,
            "decided_by": principles[decides.index].name, "negated": decides.negated,
        })  # fmt: skip
    outcome.told = {
        "pairs": len(judged),
        "labelled": len(outcome.rows),
        "negated": sum(row["negated"] for row in outcome.rows),
        "decided_by": {p.name: sum(row["decided_by"] == p.name for row in outcome.rows) for p in principles},
    }
    return outcome


def reward_rows(rows: Sequence[Mapping[str, Any]], prompts: Prompts, messages: bool) -> list[dict[str, Any]]:
    """Rows for RewardTrainer in TRL's form: `prompt`, which names the principles, `chosen` and `rejected`.

    Args:
        rows (`list[dict]`): of [`labelled_rows`].
        prompts ([`Prompts`]): words the principles, and renders them into the request.
        messages (`bool`): whether rows are messages, or plain texts.
    """
    known = {principle.name: principle for principle in prompts.constitution.principles}
    found = []
    for row in rows:
        worded = [prompts.worded(known[each["name"]], each["negated"]) for each in row["principles"]]
        asked = prompts.judged(worded, row["prompt"], messages)
        found.append({"prompt": in_form(asked, "user", messages)} | {
            name: in_form(row[name], "assistant", messages) for name in ("chosen", "rejected")
        })  # fmt: skip
    return found


def policy_rows(
    requests: Sequence[str],
    prompts: Prompts,
    messages: bool,
    seed: int,
    purpose: str,
    rate: float = 0.2,
    most: int = 8,
) -> list[dict[str, Any]]:
    """Rows for RLOOTrainer: `prompt`, as users ask, and for the reward alone `request` and `principles`, as they are
    worded. None is negated: the policy is to keep to them.

    Args:
        requests (`list[str]`): what is asked.
        prompts ([`Prompts`]), messages (`bool`): as of [`reward_rows`].
        seed (`int`), purpose (`str`): decide what is drawn.
        rate (`float`), most (`int`): see [`draw_principles`].
    """
    principles = prompts.constitution.principles
    return [
        {
            "prompt": in_form(request if messages else prompts.engraved(request), "user", messages),
            "request": request,
            "principles": [prompts.worded(principles[each.index]) for each in drawn],
        }
        for request, drawn in _drawn(requests, len(principles), seed, purpose, rate, most)
    ]


def in_form(text: str, role: str, messages: bool) -> Any:
    """A text as messages of one role, or plain: TRL puts plain texts together as they are."""
    if messages:
        return [{"role": role, "content": text}]
    return text if role == "user" else f" {text}"


def _drawn(
    requests: Sequence[str], count: int, seed: int, purpose: str, rate: float, most: int
) -> Iterator[tuple[str, list[DrawnPrinciple]]]:
    for request in requests:
        draws = seeded_generator(seed, purpose, request)
        yield request, draw_principles(draws, [False] * count, rate, most, 0.0)
