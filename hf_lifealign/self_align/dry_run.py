"""The final prompts of a run and how long they are, before anything is generated."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_lifealign.self_align.settings import CloningSettings, RLSettings
from hf_lifealign.self_align.stages.reinforcement import TRAINING

if TYPE_CHECKING:
    from hf_lifealign.self_align.pipeline import SelfAlign


@dataclass(frozen=True)
class ShownPrompt:
    """A prompt as the model is to read it.

    Args:
        name (`str`): what it asks for.
        text (`str`): the prompt.
        tokens (`int`): of the base's tokenizer.
        answer (`int`): most tokens of what is written to it.
        room (`int`, *optional*): tokens that the model reads; `None` where that is not known.
    """

    name: str
    text: str
    tokens: int
    answer: int
    room: int | None

    @property
    def fits(self) -> bool:
        """Whether prompt and answer fit into the context, as far as that is known."""
        return self.room is None or self.tokens + self.answer <= self.room


def shown_prompts(run: "SelfAlign") -> list[ShownPrompt]:
    """One prompt of each kind, made of the constitution's first seeds."""
    config, constitution = run.config, run.constitution
    count = config.prompts.examples
    seeds, topics = constitution.seeds, constitution.topics
    kind = topics[0].type
    longest = max(constitution.seeds, key=len)
    texts = {
        "tasks": (run.prompts.tasks(seeds[:count], config.prompts.list_size), config.prompts.max_new_tokens),
        "topics": (
            run.prompts.topics(kind, [t.topic for t in topics if t.type == kind][:count], config.prompts.list_size),
            config.prompts.max_new_tokens,
        ),
        "question": (run.prompts.question(kind, topics[0].topic, topics[:count]), 128),
        "answer with principles": (run.prompts.respond(longest), config.responses.max_new_tokens),
    }
    if config.responses.pairs:
        texts["answer without principles"] = (
            run.prompts.respond(longest, principles=False),
            config.responses.max_new_tokens,
        )
    if isinstance(config.refine, CloningSettings):
        texts["answer at length"] = (
            run.prompts.at_length(longest, message=run.form is None), config.refine.max_new_tokens,
        )  # fmt: skip
    shown = _shown(run, texts, _room(run))
    if isinstance(config.refine, RLSettings):
        shown += _shown(run, _of_reinforcement(run, config.refine, longest), _room(run, of_writer=False))
    return shown


def _of_reinforcement(run: "SelfAlign", settings: RLSettings, request: str) -> dict[str, tuple[str, int]]:
    """The longest comparison, with both answers to be put in, and the longest text that is scored, with one."""
    principles = run.constitution.principles
    wordings = {each.name: len(run.prompts.worded(each)) for each in principles}
    longest = sorted(principles, key=lambda each: -wordings[each.name])[: settings.most_principles]
    # every second one in its opposite, where it has one, to show both
    shown = [run.prompts.worded(each, bool(each.negated) and k % 2 == 1) for k, each in enumerate(longest)]
    tokens = int(settings.training.get("max_completion_length", TRAINING["max_completion_length"]))
    return {
        "comparison": (
            run.prompts.compared(longest[0], request, "<first answer>", "<second answer>"),
            2 * settings.max_new_tokens,
        ),
        "reward": (run.prompts.judged(shown, request, message=run.form is None), max(tokens, settings.max_new_tokens)),
    }


def _shown(run: "SelfAlign", texts: dict[str, tuple[str, int]], room: int | None) -> list[ShownPrompt]:
    return [
        ShownPrompt(name, text, len(run.tokenizer(text)["input_ids"]), answer, room)
        for name, (text, answer) in texts.items()
    ]


def _room(run: "SelfAlign", of_writer: bool = True) -> int | None:
    """Tokens that the one who writes reads, or the base; a server's model is not known here."""
    if of_writer and run.config.generator.get("backend") == "server":
        return run.config.generator.get("context")
    from transformers import AutoConfig

    from hf_lifealign.models import resolve_model

    model = str(run.config.generator.get("model", run.config.model)) if of_writer else run.config.model
    config: Any = AutoConfig.from_pretrained(resolve_model(model), trust_remote_code=False)
    room = getattr(config.get_text_config(), "max_position_embeddings", None)
    set_to = run.config.generator.get("max_model_len") if of_writer else None  # of vLLM
    return set_to if room is None or (set_to is not None and set_to < room) else room
