"""What a run of SELF-ALIGN is made of: its settings, from YAML or from Python, checked before anything is loaded."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lifealign._recipes import build, find_recipe, read_settings, refuse_unknown
from hf_lifealign.self_align.constitution import Constitution, load_constitution
from hf_lifealign.self_align.rendering import PRESETS
from hf_lifealign.self_align.settings import (
    METHODS,
    RL,
    VERBOSE_CLONING,
    CloningSettings,
    EngraveSettings,
    Refinement,
    RLSettings,
    refuse_uncopyable,
)
from hf_lifealign.self_align.stages.prompts import PromptSettings
from hf_lifealign.self_align.stages.responses import ResponseSettings

if TYPE_CHECKING:
    from hf_lifealign.self_align.generators import Generator

PROMPTS, RESPONSES, ENGRAVE, REFINE = "prompts", "responses", "engrave", "refine"
CLONING = "cloning"
JUDGEMENTS, REWARD = "judgements", "reward"
# Of each method of refinement, in order.
STAGES = {
    VERBOSE_CLONING: (PROMPTS, RESPONSES, ENGRAVE, CLONING, REFINE),
    RL: (PROMPTS, RESPONSES, ENGRAVE, JUDGEMENTS, REWARD, REFINE),
}

_KEYS = {
    "model": "the base that is aligned: Hub id, local folder or embedded:NAME",
    "output_dir": "folder of the run",
    "seed": "of everything that is drawn",
    "preset": "paper, or compact for contexts of 2048 tokens",
    "constitution": "files in place of shipped ones: principles, exemplars, seeds, topics; and templates, a folder",
    "generator": "who writes: backend (transformers, vllm or server), its options; the base itself by default",
    "prompts": "settings of stage 1",
    "responses": "settings of stage 2",
    "engrave": "settings of stage 3; null leaves it and stage 4 out",
    "refine": "settings of stage 4, by its method: verbose_cloning or rl; null leaves it out",
    "conversational": "whether training rows are messages",
    "held_out": "share of the rows that is not trained on",
}
_BACKENDS = ("transformers", "vllm", "server")


@dataclass(frozen=True)
class SelfAlignConfig:
    """Settings of a run of SELF-ALIGN.

    Args:
        output_dir (`str`): folder of the run. A run that was interrupted goes on when it is started again with it.
        model (`str`): the base that is aligned.
        seed (`int`): of examples, calls and training.
        preset (`str`): `"paper"` or `"compact"`; see [`Prompts`].
        constitution (`dict`): files of [`load_constitution`], and `templates`.
        generator (`dict`): `backend`, `"transformers"`, `"vllm"` or `"server"`, and the options of
            [`TransformersGenerator`], [`VLLMGenerator`] or [`ServerGenerator`]; the base itself by default.
        prompts ([`PromptSettings`]), responses ([`ResponseSettings`]): of the first two stages.
        engrave ([`EngraveSettings`], *optional*): of the third; `None` ends with the data.
        refine ([`CloningSettings`] or [`RLSettings`], *optional*): of the fourth; `None` ends with the engraved model.
        conversational (`bool`, *optional*): whether training rows are messages, or plain texts in the form of the
            template `engraved`. By default they are messages where the base's tokenizer has a chat template.
        held_out (`float`): share of the rows that is not trained on.

    Raises:
        ValueError: for settings that cannot work.
    """

    output_dir: str
    model: str
    seed: int = 0
    preset: str = "paper"
    constitution: Mapping[str, str] = field(default_factory=dict)
    generator: Mapping[str, Any] = field(default_factory=dict)
    prompts: PromptSettings = field(default_factory=PromptSettings)
    responses: ResponseSettings = field(default_factory=ResponseSettings)
    engrave: EngraveSettings | None = field(default_factory=EngraveSettings)
    refine: Refinement | None = None
    conversational: bool | None = None
    held_out: float = 0.1

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"You set preset={self.preset!r}. It has to be one of {list(PRESETS)}.")
        if not self.output_dir or not self.model:
            raise ValueError("You set an empty output_dir or model. Name a folder, and the base that is aligned.")
        if not 0 < self.held_out < 1:
            raise ValueError(f"You set held_out={self.held_out}. It has to lie in (0, 1).")
        if self.refine is not None and self.engrave is None:
            raise ValueError("You set refine, and engrave is null: there is no engraved model to refine. Set both.")
        if isinstance(self.refine, RLSettings) and self.engrave is not None:
            refuse_uncopyable(self.engrave.adapter)
        backend = self.generator.get("backend", _BACKENDS[0])
        if backend not in _BACKENDS:
            raise ValueError(
                f"You set the backend {backend!r} of the generator. It has to be one of {list(_BACKENDS)}."
            )

    @property
    def stages(self) -> tuple[str, ...]:
        """Those that the run has, in order."""
        if self.refine is not None:
            return STAGES[self.refine.method]
        return (PROMPTS, RESPONSES) if self.engrave is None else (PROMPTS, RESPONSES, ENGRAVE)

    def load_constitution(self) -> Constitution:
        """The constitution that is set."""
        files = {name: path for name, path in self.constitution.items() if name != "templates"}
        return load_constitution(files, self.constitution.get("templates"))

    def load_generator(self) -> "Generator":
        """Who writes the texts.

        Raises:
            ValueError: for options that the backend does not have.
        """
        from hf_lifealign.self_align.generators import ServerGenerator, TransformersGenerator, VLLMGenerator

        options = dict(self.generator)
        backend = options.pop("backend", _BACKENDS[0])
        cls: Any = {"server": ServerGenerator, "vllm": VLLMGenerator}.get(backend, TransformersGenerator)
        if backend != "server":
            options.setdefault("model", self.model)
        elif "model" not in options:
            raise ValueError("You set a server as the generator, and no model. Name the model as the server calls it.")
        refuse_unknown(options, inspect.signature(cls).parameters, "generator")
        made: Generator = cls(**options)
        return made

    def decides(self, stage: str) -> dict[str, Any]:
        """The settings by which a stage comes out as it does, beside those of the stages before it."""
        if stage == PROMPTS:
            return {"settings": asdict(self.prompts), "seed": self.seed, "preset": self.preset}
        if stage == RESPONSES:
            told = asdict(self.responses) | {"held_out": self.held_out}
            return {"settings": told, "seed": self.seed, "preset": self.preset}
        if isinstance(self.refine, RLSettings) and stage in RLSettings.parts:
            own_part = {name: getattr(self.refine, name) for name in RLSettings.parts[stage]}
            return {"settings": own_part, "seed": self.seed} | ({"held_out": self.held_out} if stage == REWARD else {})
        own = self.engrave if stage == ENGRAVE else self.refine
        settings = {} if own is None else asdict(own)
        if stage in (CLONING, REFINE):
            # one makes rows and the other trains on them: settings of the one do not undo the other
            trains = {each.name for each in fields(EngraveSettings)}
            settings = {key: value for key, value in settings.items() if (key in trains) == (stage == REFINE)}
        return {"settings": settings, "seed": self.seed} | ({"held_out": self.held_out} if stage == CLONING else {})

    def limited(self, prompts: int) -> "SelfAlignConfig":
        """The same for so many prompts, of both kinds in the same proportion.

        Raises:
            ValueError: for fewer than 1.
        """
        if prompts < 1:
            raise ValueError(f"You set --limit {prompts}. Set at least 1.")
        own = self.prompts
        wanted = own.self_instruct + own.red_team
        first = -(-prompts * own.self_instruct // wanted)
        if prompts >= wanted:
            return self
        return replace(self, prompts=replace(own, self_instruct=first, red_team=prompts - first))


def read_config(path: str | Path, overrides: Sequence[str] = (), output_dir: str | None = None) -> SelfAlignConfig:
    """Reads the settings of a run from YAML.

    Args:
        path (`str` or `Path`): the file. Files that it names are looked for beside it first.
        overrides (`list[str]`): `"key.sub=value"` each.
        output_dir (`str`, *optional*): in place of the file's.

    Raises:
        FileNotFoundError, ValueError: if it cannot be read, or sets what is not known.
    """
    content = read_settings(path, _KEYS, ("model",), overrides)
    folder = output_dir or content.pop("output_dir", None)
    content.pop("output_dir", None)
    if not folder:
        raise ValueError("The recipe sets no output_dir. Set it there, or give --output-dir.")
    beside = find_recipe(path).resolve().parent
    files = content.get("constitution") or {}
    refuse_unknown(files, ("principles", "exemplars", "seeds", "topics", "templates"), "constitution")
    content["constitution"] = {
        name: str(beside / str(file)) if (beside / str(file)).exists() else str(file) for name, file in files.items()
    }
    content["prompts"] = build(PromptSettings, content.get("prompts"), "prompts")
    content["responses"] = build(ResponseSettings, content.get("responses"), "responses")
    if content.get("engrave", {}) is not None:
        content["engrave"] = build(EngraveSettings, content.get("engrave"), "engrave")
    if content.get("refine") is not None:
        content["refine"] = _refinement(content["refine"])
    content["generator"] = content.get("generator") or {}
    return SelfAlignConfig(output_dir=str(folder), **content)


def _refinement(options: dict[str, Any]) -> Refinement:
    """The settings of the method that is named."""
    method = options.get("method", VERBOSE_CLONING)
    if method not in METHODS:
        raise ValueError(f"You set method={method!r} of the stage 'refine'. It has to be one of {list(METHODS)}.")
    made: Refinement = build(RLSettings if method == RL else CloningSettings, options, "refine")
    return made
