"""MetaAlignedPolicy: a causal language model that answers under preference weights, its own or a user's."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl.trainer.utils import create_model_from_path, get_config_model_id

from hf_lifealign.hub.contents import WEIGHTS
from hf_lifealign.meta_aligner.conditioning import Conditioning, make_conditioning
from hf_lifealign.meta_aligner.encoders import AutoEncoder, Encoder, PolicyEncoder
from hf_lifealign.meta_aligner.preferences import RewardStatistics, check_preference
from hf_lifealign.meta_aligner.storage import (
    FOLDER,
    SETTINGS,
    TOKENIZER,
    SavedPolicy,
    check_chat_template_kwargs,
    check_policy,
    locate_policy,
    policy_file,
    read_policy,
    write_policy,
)
from hf_lifealign.meta_aligner.weight_net import PreferenceWeightNet
from hf_lifealign.models import public_name, resolve_model
from hf_lifealign.prompts import Prompt, is_conversation, tokenize

# Prompts that are encoded together.
_ENCODED = 32


class MetaAlignedPolicy(nn.Module):
    r"""
    A causal language model conditioned on preference weights, with the preference-weight-net that chooses them.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): the policy without its conditioning.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its tokenizer.
        objective_names (`list[str]`): names of the objectives, in the order of the weights.
        conditioning (`str`): `"logit_bias"` or `"lora"`.
        encoder (`PolicyEncoder` or `AutoEncoder`, *optional*): of prompts; the frozen policy by default.
        hidden (`int`): width of the preference-weight-net's hidden layer.
        chat_template_kwargs (`dict`, *optional*): for the chat template, e.g. `{"enable_thinking": False}`: texts,
            numbers and booleans. Conversations are read with them wherever the policy reads any.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        objective_names: Sequence[str],
        conditioning: str = "logit_bias",
        encoder: Encoder | None = None,
        hidden: int = 256,
        chat_template_kwargs: dict[str, Any] | None = None,
    ):
        super().__init__()
        # not a submodule: its weights are saved by its own means
        self._model = [model]
        self.tokenizer = tokenizer
        self.objective_names = list(objective_names)
        self.encoder = encoder or PolicyEncoder(model, tokenizer)
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.conditioning: Conditioning = make_conditioning(conditioning, model, len(self.objective_names))
        self.weight_net = PreferenceWeightNet(self.encoder.width, len(self.objective_names), hidden)
        self.statistics: RewardStatistics | None = None
        self.generation: dict[str, Any] = {}
        self._follow()
        self.conditioning.attach(model)

    @property
    def model(self) -> Any:
        """The model that generates, conditioned whenever weights are given."""
        return self._model[0]

    @property
    def device(self) -> torch.device:
        """Where the model reads."""
        return next(self.model.parameters()).device

    @property
    def backbone_is_frozen(self) -> bool:
        """Whether the states below the LM head are the same under every preference, so that prompts may be read once
        for all of them. A subclass that lets the preference into the backbone says `False`."""
        return self.conditioning.kind == "logit_bias"

    @property
    def chat_template_kwargs(self) -> dict[str, Any]:
        """What conversations are read with."""
        return self._chat_template_kwargs

    @chat_template_kwargs.setter
    def chat_template_kwargs(self, given: dict[str, Any]) -> None:
        check_chat_template_kwargs(given, "the settings of the policy")
        self._chat_template_kwargs = given
        if isinstance(self.encoder, PolicyEncoder):
            self.encoder.chat_template_kwargs = given

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        placed = getattr(self.model, "hf_device_map", None) or {}
        if len(set(placed.values())) <= 1:  # what accelerate has spread over devices stays there
            self.model._apply(fn)
        return super()._apply(fn, recurse)

    def _follow(self) -> None:
        """Brings the policy's own modules to where the model is, which a user may have moved by itself."""
        device = self.device
        for module in self.children():
            module.to(device)

    # Preferences

    def encode(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Features of prompts, `torch.Tensor` of shape `(prompts, width)`, whatever preference is given."""
        self._follow()
        with torch.no_grad(), self.conditioning.given(None):
            parts = [self.encoder.encode(prompts[i : i + _ENCODED]) for i in range(0, len(prompts), _ENCODED)]
        return torch.cat(parts)

    @torch.no_grad()
    def preference(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """What the preference-weight-net gives each prompt, `torch.Tensor` of shape `(prompts, objectives)`."""
        return self.weight_net(self.encode(prompts))

    @contextmanager
    def under(self, preference: Any, rows: int) -> Iterator[None]:
        """The model under a preference for the `rows` prompts of a batch, for any call of `model` or its `generate`.

        Args:
            preference: as in [`generate`].
            rows (`int`): prompts of the batch.
        """
        self._follow()
        weights = check_preference(preference, self.objective_names, rows).to(self.device)
        with self.conditioning.given(weights):
            yield

    # Generation

    @torch.no_grad()
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        preference: Any = None,
        batch_size: int = 16,
        **kwargs: Any,
    ) -> list[str]:
        r"""
        Answers prompts.

        Args:
            prompts (`str`, `list[str]`, `list[dict]` or `list[list[dict]]`):
                plain texts or conversations, one or several.
            preference (`Sequence[float]`, `dict[str, float]` or one for each prompt, *optional*):
                weights of the objectives, on the simplex. By default the preference-weight-net decides for each prompt.
            batch_size (`int`, *optional*, defaults to 16):
                prompts that are answered together.
            **kwargs:
                for `model.generate`, e.g. `max_new_tokens`, `num_return_sequences`; the settings of the training
                stand where they say nothing.

        Returns:
            `list[str]`: the answers; with `num_return_sequences=n` there are `n` for each prompt, one after another.

        Raises:
            ValueError: if there are no prompts, or the preference is off the simplex or of the wrong size.
        """
        one = isinstance(prompts, str) or is_conversation(prompts)
        batch: list[Any] = [prompts] if one else list(prompts)
        if not batch:
            raise ValueError("You gave no prompts. Give a text, a conversation, or a list of either.")
        self._follow()
        if preference is None:
            weights = self.preference(batch)
        else:
            weights = check_preference(preference, self.objective_names, len(batch))
        settings = {**self.generation, **kwargs}
        settings.setdefault("pad_token_id", self.tokenizer.pad_token_id)
        answers: list[str] = []
        training = self.model.training
        self.model.eval()
        try:
            for start in range(0, len(batch), batch_size):
                part = batch[start : start + batch_size]
                answers += self._answer(part, weights[start : start + batch_size], settings)
        finally:
            self.model.train(training)
        return answers

    def _answer(self, prompts: list[Prompt], weights: torch.Tensor, settings: dict[str, Any]) -> list[str]:
        inputs = tokenize(self.tokenizer, prompts, self.chat_template_kwargs).to(self.device)
        with self.conditioning.given(weights.to(self.device)):
            output = self.model.generate(**inputs, **settings)
        new = output[:, inputs["input_ids"].shape[1] :]
        return list(self.tokenizer.batch_decode(new, skip_special_tokens=True))

    # Growth, saving

    def grow(self, objective_names: Sequence[str]) -> None:
        """Adds objectives. The answers, with and without a user's preference, stay as they were until training wakes
        the new ones.

        Raises:
            ValueError: if `objective_names` does not begin with the known ones.
        """
        known = self.objective_names
        if list(objective_names[: len(known)]) != known or len(set(objective_names)) != len(objective_names):
            raise ValueError(
                f"You asked for the objectives {list(objective_names)} of a policy that knows {known}. Objectives are "
                "added at the end, under names of their own."
            )
        if len(objective_names) > len(known):
            self.conditioning.grow(len(objective_names))
            self.weight_net.grow(len(objective_names))
            self.objective_names = list(objective_names)

    def settings(self) -> dict[str, Any]:
        """What `meta_aligner.json` holds."""
        encoder: dict[str, Any] = {"kind": "policy"}
        if isinstance(self.encoder, AutoEncoder):
            encoder = {
                "kind": "auto",
                "name": public_name(self.encoder.name),
                "revision": self.encoder.revision,
                "trainable": self.encoder.trainable,
            }
        statistics = self.statistics
        return {
            "objectives": self.objective_names,
            "conditioning": self.conditioning.kind,
            "encoder": encoder,
            "hidden": self.weight_net.hidden.out_features,
            "base_model": public_name(get_config_model_id(self.model.config) or ""),
            "adapter": is_peft_model(self.model),
            "generation": self.generation,
            "chat_template_kwargs": self.chat_template_kwargs,
            "reward_statistics": None
            if statistics is None
            else {"mean": statistics.mean.tolist(), "std": statistics.std.tolist()},
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """What `meta_aligner.safetensors` holds."""
        parts = {"conditioning": self.conditioning, "weight_net": self.weight_net}
        if isinstance(self.encoder, AutoEncoder) and self.encoder.trainable:
            parts["encoder"] = self.encoder.model
        return {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}

    def save_weights(self, path: str | os.PathLike[str]) -> None:
        """Writes everything but base and adapter.

        Args:
            path (`str` or `os.PathLike`): a folder, which gets `meta_aligner/`; or the name of the JSON itself.
        """
        path = Path(path)
        file = path if path.suffix == ".json" else path / FOLDER / SETTINGS
        write_policy(file, self.settings(), self.tensors())

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes a folder that [`load_meta_aligned`] takes: tokenizer, the adapter, if there is one, and
        `meta_aligner/`."""
        check_policy(self.settings(), self.tensors())
        self.tokenizer.save_pretrained(str(folder))
        if is_peft_model(self.model):
            self.model.save_pretrained(str(folder), selected_adapters=["default"])
            (Path(folder) / "README.md").unlink(missing_ok=True)  # PEFT's is blank
        self.save_weights(folder)

    def load_weights(self, saved: SavedPolicy, any_encoder_name: bool = False) -> None:
        """Takes over what was saved of a policy with the same objectives, or the first of them; all but its
        `chat_template_kwargs`, with which this policy was made.

        Args:
            saved ([`SavedPolicy`]): what [`read_policy`] has read.
            any_encoder_name (`bool`): whether the encoder is the saved one though its name is another.

        Raises:
            ValueError: if it was saved of a policy of another make. This policy is then as it was.
        """
        settings, wanted = saved.settings, list(self.objective_names)
        self._refuse_another_make(settings, any_encoder_name)
        known = len(settings["objectives"])
        # all that can fail comes before anything of this policy changes
        conditioning = make_conditioning(settings["conditioning"], self.model, known)
        weight_net = PreferenceWeightNet(self.encoder.width, known, settings["hidden"])
        _load(conditioning, "conditioning", saved)
        _load(weight_net, "weight_net", saved)
        if isinstance(self.encoder, AutoEncoder) and settings["encoder"]["trainable"]:
            _load(self.encoder.model, "encoder", saved)
        self.conditioning.detach()
        self.conditioning, self.weight_net, self.objective_names = conditioning, weight_net, wanted[:known]
        self._follow()
        self.conditioning.attach(self.model)
        if settings["reward_statistics"] is not None:
            values = settings["reward_statistics"]
            self.statistics = RewardStatistics(torch.tensor(values["mean"]), torch.tensor(values["std"]))
        self.generation = dict(settings["generation"])
        self.grow(wanted)

    def _refuse_another_make(self, settings: dict[str, Any], any_encoder_name: bool) -> None:
        own = self.settings()
        if settings["conditioning"] != own["conditioning"]:
            raise ValueError(
                f"You set conditioning={own['conditioning']!r}. The saved policy has {settings['conditioning']!r}. "
                "Use that."
            )
        wanted, there = list(self.objective_names), list(settings["objectives"])
        if wanted[: len(there)] != there:
            raise ValueError(
                f"You asked for the objectives {wanted}. The saved policy has {there}, which have to come first, in "
                "that order."
            )
        told = [encoder.get("name", "the policy itself") for encoder in (own["encoder"], settings["encoder"])]
        kinds = [encoder["kind"] for encoder in (own["encoder"], settings["encoder"])]
        if kinds[0] != kinds[1] or (told[0] != told[1] and not any_encoder_name):
            raise ValueError(
                f"You set {told[0]} as the encoder of prompts. The preference-weight-net of the saved policy reads the "
                f"features of {told[1]}. Use that."
            )


def _load(module: nn.Module, part: str, saved: SavedPolicy) -> None:
    """Loads a part of a saved policy into a module, wholly or not at all.

    Raises:
        ValueError: if names or shapes are others.
    """
    own = {k.removeprefix(f"{part}."): t for k, t in saved.tensors.items() if k.startswith(f"{part}.")}
    shapes = {k: tuple(t.shape) for k, t in module.state_dict().items()}
    differing = [k for k in sorted({*own, *shapes}) if k not in own or shapes.get(k) != tuple(own[k].shape)]
    if differing:
        raise ValueError(
            f"The saved {part} does not fit this base, adapter or encoder: it differs in {', '.join(differing[:5])}."
        )
    module.load_state_dict(own)


def _tokenizer_of(folder: Path, base: Any, revision: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer saved with a policy, whose chat template it was trained with; else that of its base."""
    if all((folder / name).is_file() for name in TOKENIZER[:2]):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    name = get_config_model_id(base.config)
    if not name:
        raise ValueError("You passed a base that was built in memory. Pass its tokenizer as well.")
    return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)


def _with_adapter(base: Any, folder: Path | None) -> Any:
    """The base with the adapter of a folder, if the policy has one."""
    if is_peft_model(base) or any(isinstance(module, BaseTunerLayer) for module in base.modules()):
        raise ValueError(
            "You passed a base that has adapter layers already, such as those of a policy that was loaded on it; a "
            "second adapter would overwrite the first. Pass a freshly loaded base, or its name."
        )
    if folder is None:
        return base
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(
            f"The policy in {folder} has an adapter, and there is no {WEIGHTS}. Pickled weights are never read. Save "
            "or fetch the policy again."
        )
    return PeftModel.from_pretrained(base, str(folder))


def load_meta_aligned(
    base: Any,
    path_or_repo: str | os.PathLike[str],
    revision: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    token: str | None = None,
    encoder: str | None = None,
    base_revision: str | None = None,
    **model_init_kwargs: Any,
) -> MetaAlignedPolicy:
    r"""
    Loads a policy that [`MetaAlignerTrainer`] has trained.

    Args:
        base (`str` or [`~transformers.PreTrainedModel`]):
            The base: a Hub id, a local folder, `"embedded:smollm2-135m"`, or a freshly loaded model, which has no
            adapters.
        path_or_repo (`str` or `os.PathLike`):
            Folder that `save_model()` wrote, or a repository on the Hub.
        revision (`str`, *optional*):
            Tag, branch or commit of the repository.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer; by default the one that was saved with the policy, else that of the base.
        token (`str`, *optional*):
            Token for the Hub.
        encoder (`str`, *optional*):
            Hub id or local folder of the `AutoModel` encoder, if the policy has one and it is no longer found under
            the name that was saved, which of a local folder is its last component.
        base_revision (`str`, *optional*):
            Revision of the base and of its tokenizer, where `base` is a Hub id.
        **model_init_kwargs:
            For `from_pretrained`, where `base` is a string, e.g. `dtype="bfloat16"`.

    Returns:
        [`MetaAlignedPolicy`], in evaluation mode.

    Raises:
        FileNotFoundError: if there is no such folder or repository, or it holds no policy.
        HubError: if the Hub refuses or cannot be reached, or a file is not what its lineage says.
        ValueError: if it is damaged or does not fit the base, or the base has an adapter. Only safetensors and JSON
            are read.
    """
    folder = locate_policy(path_or_repo, revision, token)
    saved = read_policy(policy_file(folder))
    settings = saved.settings
    if isinstance(base, str):
        revised = {} if base_revision is None else {"revision": base_revision}
        base = create_model_from_path(resolve_model(base), **{"dtype": "float32", **revised, **model_init_kwargs})
    if tokenizer is None:
        tokenizer = _tokenizer_of(folder, base, base_revision)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = _with_adapter(base, folder if settings["adapter"] else None)
    reader = None
    if settings["encoder"]["kind"] == "auto":
        given = settings["encoder"]
        reader = AutoEncoder(encoder or given["name"], given["revision"], given["trainable"])
    policy = MetaAlignedPolicy(
        model, tokenizer, settings["objectives"], settings["conditioning"], reader,
        chat_template_kwargs=settings["chat_template_kwargs"],
    )  # fmt: skip
    policy.load_weights(saved, any_encoder_name=encoder is not None)
    policy.requires_grad_(False).eval()
    model.eval()
    return policy
