"""Stage 1: tasks that the model makes up, by self-instruct and by topics that tempt it to answer wrongly
(SELF-ALIGN, arXiv 2305.03047, section 3.1).

Nothing is kept of a stage that is under way but its calls: a run that is killed goes through the same rounds again,
finds their texts, and comes to the same rows.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_lifealign.self_align.constitution import TopicSeed
from hf_lifealign.self_align.generators.cache import CallCache
from hf_lifealign.self_align.generators.protocol import Generation, Sampling, derived_seed
from hf_lifealign.self_align.rendering import Prompts
from hf_lifealign.self_align.settings import TASKS_DRAWN, TOPICS_DRAWN
from hf_lifealign.self_align.stages.outcome import GaveUpError, Outcome, Progress
from hf_lifealign.self_align.tasks import TaskPool, read_line, read_list

logger = logging.getLogger(__name__)

SELF_INSTRUCT, RED_TEAM = "self_instruct", "red_team"
# Reasons for which a topic is dropped, beside those of a list.
TOPIC_TOO_LONG, TOPIC_TWICE, NOT_NEEDED = "topic_too_long", "topic_twice", "not_needed"
_TOPIC_WORDS = 3


@dataclass(frozen=True)
class PromptSettings:
    """How many tasks are made, and how.

    Args:
        self_instruct (`int`): tasks by self-instruct.
        red_team (`int`): tasks by topics.
        list_size (`int`): tasks, or topics, that a model is asked for at a time.
        examples (`int`): of tasks, topics or questions that it is shown.
        generations_per_prompt (`float`): cap on generations, for each task that is wanted.
        threshold (`float`): of near-duplicates.
        behaviour (`str`): `"safe"` or `"paper"`; see [`~hf_lifealign.self_align.tasks.fault_of`].
        max_new_tokens (`int`): of a list.

    Raises:
        ValueError: for values that cannot work.
    """

    self_instruct: int = 200
    red_team: int = 100
    list_size: int = 20
    examples: int = 5
    generations_per_prompt: float = 4.0
    threshold: float = 0.7
    behaviour: str = "safe"
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        for name, sound, wanted in (
            ("self_instruct", self.self_instruct >= 0, "0 or more"),
            ("red_team", self.red_team >= 0, "0 or more"),
            ("list_size", self.list_size > self.examples, f"more than examples={self.examples}"),
            ("examples", self.examples >= 1, "at least 1"),
            ("generations_per_prompt", self.generations_per_prompt > 0, "a number above 0"),
        ):
            if not sound:
                raise ValueError(f"You set {name}={getattr(self, name)!r} of the stage 'prompts'. Set {wanted}.")
        if not self.self_instruct and not self.red_team:
            raise ValueError(
                "You set self_instruct=0 and red_team=0 of the stage 'prompts'. Ask for tasks of one kind."
            )


class PromptStage:
    """Makes tasks.

    Args:
        prompts ([`Prompts`]): of the constitution.
        calls ([`CallCache`]): who writes them.
        settings ([`PromptSettings`]): how many.
        seed (`int`): of examples and calls.
        progress (`Callable`, *optional*): told of accepted tasks.
    """

    def __init__(
        self,
        prompts: Prompts,
        calls: CallCache,
        settings: PromptSettings,
        seed: int = 0,
        progress: Progress | None = None,
    ):
        self.prompts, self.calls, self.settings, self.seed = prompts, calls, settings, seed
        self.progress = progress or (lambda accepted, target: None)
        generator = calls.generator
        # what is drawn together knows nothing of each other: as many as there are under way at a time
        self._round = generator.batch_size * max(1, generator.concurrency)

    def run(self) -> Outcome:
        """All tasks, in the order in which they were accepted.

        Raises:
            GaveUpError: if a part has made as many generations as it may, and too few of them are any good.
        """
        settings, outcome = self.settings, Outcome()
        constitution = self.prompts.constitution
        seeds = [*constitution.seeds, *(topic.question for topic in constitution.topics)]
        pool = TaskPool(seeds, settings.threshold, settings.behaviour)
        if settings.self_instruct:
            self._self_instruct(pool, outcome)
        if settings.red_team:
            self._red_team(pool, outcome)
        outcome.told["near_duplicates_of"] = len(seeds) + len(pool.accepted)
        return outcome

    def _cap(self, target: int) -> int:
        return max(self._round, math.ceil(target * self.settings.generations_per_prompt))

    def _written(self, prompts: Sequence[str], sampling: Sampling, *purpose: Any) -> Iterator[Generation]:
        self.calls.generator.refuse_too_long(prompts, sampling)
        return self.calls.texts(prompts, sampling, derived_seed(self.seed, *purpose))

    # Self-instruct

    def _self_instruct(self, pool: TaskPool, outcome: Outcome) -> None:
        settings, made, number = self.settings, 0, 0
        target, cap = settings.self_instruct, self._cap(settings.self_instruct)
        seeds = self.prompts.constitution.seeds
        sampling = Sampling(*TASKS_DRAWN, settings.max_new_tokens, stop=("\n\n",))
        first = min(settings.examples, len(seeds)) + 1
        found = 0
        while found < target:
            if made >= cap:
                raise GaveUpError("Self-instruct", found, target, made, outcome, source=SELF_INSTRUCT)
            draws = np.random.default_rng(derived_seed(self.seed, SELF_INSTRUCT, "examples", number))
            known = [*seeds, *pool.accepted]
            shown = [
                [known[i] for i in draws.choice(len(known), first - 1, replace=False)]
                for _ in range(min(self._round, cap - made))
            ]
            asked = [self.prompts.tasks(examples, settings.list_size) for examples in shown]
            for text in self._written(asked, sampling, SELF_INSTRUCT, number):
                made += 1
                found += self._take_list(text, first, target - found, pool, outcome)
                self.progress(len(outcome.rows), settings.self_instruct + settings.red_team)
            number += 1
        outcome.told[SELF_INSTRUCT] = {"accepted": found, "generations": made, "rounds": number}

    def _take_list(self, text: Generation, first: int, wanted: int, pool: TaskPool, outcome: Outcome) -> int:
        """How many tasks of a list are accepted."""
        tasks, dropped = read_list(text.text, first, text.finished, self.settings.behaviour)
        for each in dropped:
            outcome.drop(each.text, each.reason, source=SELF_INSTRUCT)
        found = 0
        for task in tasks:
            reason = NOT_NEEDED if found >= wanted else pool.offer(task)
            if reason is None:
                outcome.rows.append({"prompt": task, "source": SELF_INSTRUCT})
                found += 1
            else:
                outcome.drop(task, reason, source=SELF_INSTRUCT)
        return found

    # Topics and questions

    def _red_team(self, pool: TaskPool, outcome: Outcome) -> None:
        """Topics for each kind in turns, and a question for each topic, until there are enough."""
        settings, kinds = self.settings, list({seed.type: None for seed in self.prompts.constitution.topics})
        target, cap = settings.red_team, self._cap(settings.red_team)
        topics = {kind: [s.topic for s in self.prompts.constitution.topics if s.type == kind] for kind in kinds}
        known = {topic.casefold() for told in topics.values() for topic in told}
        asked: set[tuple[str, str]] = {(s.type, s.topic) for s in self.prompts.constitution.topics}
        made, number, found = 0, 0, 0
        while found < target:
            if made >= cap:
                raise GaveUpError("Red-teaming by topics", found, target, made, outcome, source=RED_TEAM)
            made += self._more_topics(topics, known, number, outcome)
            new = [(kind, topic) for kind in kinds for topic in topics[kind] if (kind, topic) not in asked]
            # kinds in turns, so that none of them takes all there is room for
            new.sort(key=lambda pair: (topics[pair[0]].index(pair[1]), kinds.index(pair[0])))
            new = new[: max(self._round, target - found)]
            asked |= set(new)
            for pair, question in self._questions(new, number, outcome):
                made += 1
                if question is not None:
                    reason = NOT_NEEDED if found >= target else pool.offer(question)
                    if reason is None:
                        outcome.rows.append({"prompt": question, "source": RED_TEAM, "type": pair[0], "topic": pair[1]})
                        found += 1
                    else:
                        outcome.drop(question, reason, source=RED_TEAM, type=pair[0], topic=pair[1])
                self.progress(len(outcome.rows), settings.self_instruct + settings.red_team)
            number += 1
        self._tell_coverage(kinds, topics, outcome, made, number)

    def _more_topics(self, topics: dict[str, list[str]], known: set[str], number: int, outcome: Outcome) -> int:
        """Asks for topics of each kind once; how many generations that took."""
        settings = self.settings
        draws = np.random.default_rng(derived_seed(self.seed, "topics", "examples", number))
        shown = []
        for kind in topics:
            order = draws.permutation(len(topics[kind]))[: settings.examples]
            shown.append((kind, [topics[kind][i] for i in order]))
        sampling = Sampling(*TOPICS_DRAWN, settings.max_new_tokens, stop=("\n\n",))
        prompts = [self.prompts.topics(kind, examples, settings.list_size) for kind, examples in shown]
        for (kind, examples), text in zip(shown, self._written(prompts, sampling, "topics", number), strict=True):
            items, dropped = read_list(text.text, len(examples) + 1, text.finished, settings.behaviour)
            for each in dropped:
                outcome.drop(each.text, each.reason, source="topics", type=kind)
            for item in items:
                topic = item.strip(" .;,\"'")
                if not topic or len(topic.split()) > _TOPIC_WORDS:
                    outcome.drop(item, TOPIC_TOO_LONG, source="topics", type=kind)
                elif topic.casefold() in known:
                    outcome.drop(item, TOPIC_TWICE, source="topics", type=kind)
                else:
                    known.add(topic.casefold())
                    topics[kind].append(topic)
        return len(prompts)

    def _questions(
        self, pairs: Sequence[tuple[str, str]], number: int, outcome: Outcome
    ) -> Iterator[tuple[tuple[str, str], str | None]]:
        """A question for each kind and topic, `None` where none can be read."""
        seeds: Sequence[TopicSeed] = self.prompts.constitution.topics
        draws = np.random.default_rng(derived_seed(self.seed, "questions", "examples", number))
        prompts = []
        for kind, topic in pairs:
            order = draws.permutation(len(seeds))[: self.settings.examples]
            # an example of the kind itself stands last, nearest to what is to be written
            examples = sorted((seeds[i] for i in order), key=lambda seed: seed.type == kind)
            own = next(seed for seed in seeds if seed.type == kind)
            prompts.append(self.prompts.question(kind, topic, [*(e for e in examples if e != own), own]))
        sampling = Sampling(*TOPICS_DRAWN, min(128, self.settings.max_new_tokens), stop=("\n\n", "\nKind:"))
        for pair, text in zip(pairs, self._written(prompts, sampling, "questions", number), strict=True):
            question, fault = read_line(text.text, text.finished)
            if fault is not None:
                outcome.drop(fault.text, fault.reason, source=RED_TEAM, type=pair[0], topic=pair[1])
            yield pair, question

    def _tell_coverage(
        self, kinds: list[str], topics: dict[str, list[str]], outcome: Outcome, made: int, rounds: int
    ) -> None:
        rows = [row for row in outcome.rows if row["source"] == RED_TEAM]
        counts = {kind: sum(row["type"] == kind for row in rows) for kind in kinds}
        outcome.told[RED_TEAM] = {
            "accepted": len(rows), "generations": made, "rounds": rounds, "kinds": counts,
            "topics": {kind: len(topics[kind]) for kind in kinds},
        }  # fmt: skip
        fair = len(rows) / len(kinds)
        starved = [kind for kind, count in counts.items() if count < fair / 4 and fair >= 2]
        if starved:
            logger.warning(
                f"Of {len(rows)} questions by topics, fewer than a quarter of their share are of the kinds {starved}. "
                "Look at what was dropped of them, or give them more seeds."
            )
