"""Prompts of the stages, from a constitution and its templates."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_lifealign.self_align.constitution import Constitution, Exemplar, Principle, TopicSeed

if TYPE_CHECKING:
    from jinja2 import Template

# What stands before each part of a worked example; an answer ends where the next request would begin.
REQUEST, NOTE, REPLY = "### Request:", "### Note:", "### Reply:"
PRESETS = ("paper", "compact")


class Prompts:
    """Renders the prompts of a constitution.

    Templates are rendered in Jinja's sandbox: a file from elsewhere can call nothing. A request is put in as it is; it
    is data, and braces in it mean nothing.

    Args:
        constitution ([`Constitution`]): with its templates.
        preset (`str`): `"paper"`, with principles in full and all worked examples; or `"compact"`, for contexts of 2048
            tokens, with short principles and those examples that are marked: a deviation from the paper.

    Raises:
        ValueError: for an unknown preset, or a template that cannot be compiled.
    """

    def __init__(self, constitution: Constitution, preset: str = "paper"):
        if preset not in PRESETS:
            raise ValueError(f"You set preset={preset!r}. It has to be one of {list(PRESETS)}.")
        self.constitution, self.preset = constitution, preset
        self._templates = {name: compiled(name, source) for name, source in constitution.templates.items()}
        if preset == "compact" and not any(exemplar.compact for exemplar in constitution.exemplars):
            raise ValueError(
                "You set preset='compact', and no exemplar is marked with `compact: true`. Mark at least one of them."
            )

    @property
    def exemplars(self) -> list[Exemplar]:
        """Those that the preset shows."""
        return [e for e in self.constitution.exemplars if self.preset == "paper" or e.compact]

    def tasks(self, examples: Sequence[str], count: int = 20) -> str:
        """Asks for a list of `count` tasks, which begins with the examples."""
        return self._render("tasks", {"examples": list(examples), "count": count})

    def topics(self, kind: str, examples: Sequence[str], count: int = 20) -> str:
        """Asks for a list of `count` topics of a kind of questions, which begins with the examples."""
        return self._render("topics", {"type": kind, "examples": list(examples), "count": count})

    def question(self, kind: str, topic: str, examples: Sequence[TopicSeed]) -> str:
        """Asks for a question of a kind about a topic."""
        return self._render("questions", {"type": kind, "topic": topic, "examples": list(examples)})

    def respond(self, request: str, principles: bool = True) -> str:
        """Asks for a note and a reply, by the principles; or, without them, for a reply alone, in the same form."""
        name = "respond_plain" if not principles else "respond" if self.preset == "paper" else "respond_compact"
        return self._render(
            name,
            {
                "request": request,
                "principles": list(self.constitution.principles),
                "exemplars": self.exemplars,
                "request_mark": REQUEST,
                "note_mark": NOTE,
                "reply_mark": REPLY,
            },
        )

    def engraved(self, request: str) -> str:
        """A request as a base is taught to answer it, without principles and examples; of no use where the model has a
        chat template."""
        return self._render("engraved", {"request": request, "request_mark": REQUEST, "reply_mark": REPLY})

    def at_length(self, request: str, message: bool) -> str:
        """Asks an engraved model to answer at length: in a user's message, or in the form of [`Prompts.engraved`]."""
        told = self._render("at_length", {})
        return f"{told}\n\n{request if message else self.engraved(request)}"

    def compared(self, principle: Principle, request: str, first: str, second: str) -> str:
        """Asks which of two replies keeps better to a principle, up to where the letter A or B comes."""
        values = {"principle": self.worded(principle), "request": request, "first": first, "second": second}
        return self._render("judge", values)

    def worded(self, principle: Principle, negated: bool = False) -> str:
        """A principle as the preset words it, or its opposite."""
        if negated:
            return principle.negated
        return principle.text if self.preset == "paper" else principle.short

    def judged(self, principles: Sequence[str], request: str, message: bool) -> str:
        """A request with the principles, as they are worded, by which a reward model is to judge the reply: a user's
        message, or the same in the form of [`Prompts.engraved`]."""
        told = self._render("judged", {"request": request, "principles": list(principles)}).rstrip()
        return told if message else self.engraved(told)

    def _render(self, name: str, values: Mapping[str, Any]) -> str:
        return rendered(name, self._templates[name], values)


def compiled(name: str, source: str) -> "Template":
    """A template in Jinja's sandbox, for a language model and not for a browser.

    Raises:
        ValueError: if it is no sound Jinja.
    """
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import SandboxedEnvironment

    try:
        return SandboxedEnvironment(undefined=StrictUndefined, autoescape=False).from_string(source)
    except TemplateError as error:
        raise ValueError(f"The template {name!r} is no sound Jinja: {error}.") from error


def rendered(name: str, template: "Template", values: Mapping[str, Any]) -> str:
    """A template with its values.

    Raises:
        ValueError: if it asks for others.
    """
    from jinja2 import TemplateError

    try:
        return template.render(**values)
    except TemplateError as error:
        raise ValueError(f"The template {name!r} cannot be rendered: {error}. It is given {sorted(values)}.") from error
