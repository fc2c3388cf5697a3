"""How preference weights enter the policy: as a logit bias (the paper's way), or through a LoRA adapter (ours)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from accelerate.utils import is_peft_model
from peft import LoraConfig
from torch import nn
from torch.utils.hooks import RemovableHandle

from hf_lifealign.meta_aligner.encoders import backbone_of

ConditioningKind = Literal["logit_bias", "lora"]
CONDITIONINGS = get_args(ConditioningKind)
_ADAPTER = "default"


def _mixed(weights: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """``weights @ columns.T`` of shapes `(rows, objectives)` and `(width, objectives)`, objective by objective: the sum
    is the same to the bit whatever number of objectives with weight 0 follow."""
    parts = [weights[:, k : k + 1] * columns[:, k] for k in range(columns.shape[1])]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


class Conditioning(nn.Module):
    """Base class: holds the weights under which the policy is to answer, and lets them into its forward.

    While no weights are given, the policy is left as it is.
    """

    kind: str

    def __init__(self, objectives: int):
        super().__init__()
        self.objectives = objectives
        self._given: torch.Tensor | None = None
        self._handles: list[RemovableHandle] = []

    def attach(self, model: Any) -> None:
        """Hooks into a policy; a second call does nothing."""
        if not self._handles:
            self._handles = self._hook(model)

    def detach(self) -> None:
        """Takes the hooks out of the policy, which is then as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, model: Any) -> list[RemovableHandle]:
        raise NotImplementedError

    def bias(self) -> torch.Tensor:
        """What the given weights add to the last hidden states, `torch.Tensor` of shape `(rows, width)`."""
        raise NotImplementedError

    def grow(self, objectives: int) -> None:
        """Adds objectives. Under weights that give them 0, the policy answers exactly as before."""
        raise NotImplementedError

    def give(self, weights: torch.Tensor | None) -> None:
        """Sets the weights for the rows of the next forwards, `torch.Tensor` of shape `(rows, objectives)`."""
        self._given = weights

    @contextmanager
    def given(self, weights: torch.Tensor | None) -> Iterator[None]:
        """The policy under `weights`, `torch.Tensor` of shape `(rows, objectives)`; under none if `None`."""
        before, self._given = self._given, weights
        try:
            yield
        finally:
            self._given = before

    def _for_rows(self, effect: torch.Tensor, rows: int) -> torch.Tensor:
        """Repeats `effect` (one row for each prompt) for the answers that generation makes of each prompt."""
        if rows % len(effect):
            raise ValueError(
                f"The policy was given {len(effect)} preferences, and a batch of {rows} rows. Give one preference for "
                "each prompt of the batch."
            )
        return effect.repeat_interleave(rows // len(effect), dim=0)


class LogitBiasConditioning(Conditioning):
    r"""
    ``h = h_base + g_phi(w)`` just before the LM head (arXiv 2604.24178); that ``g_phi`` is Linear, GELU,
    Linear is our choice.

    The last layer starts at zero, so that step 0 is the base model. With a frozen head this adds one constant vector
    ``head(g_phi(w))`` to the logits of every position: it can move tone, length and vocabulary, not reasoning.

    It hooks into the backbone's output rather than the LM head, so that TRL's fused head, which reads the head's
    weights by itself, sees the same states as `generate()`.

    Args:
        width (`int`): hidden size of the policy.
        objectives (`int`): number of objectives.
    """

    kind = "logit_bias"

    def __init__(self, width: int, objectives: int):
        super().__init__(objectives)
        self.input = nn.Linear(objectives, width)
        self.output = nn.Linear(width, width)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, weights: torch.Tensor) -> torch.Tensor:
        """``g_phi(w)``: `torch.Tensor` of shape `(rows, width)` for weights of shape `(rows, objectives)`."""
        mixed = _mixed(weights.to(self.input.weight), self.input.weight) + self.input.bias
        return self.output(nn.functional.gelu(mixed))

    def bias(self) -> torch.Tensor:
        if self._given is None:
            raise ValueError("No preference is given.")
        return self(self._given)

    def _hook(self, model: Any) -> list[RemovableHandle]:
        def add(module: nn.Module, args: Any, output: Any) -> Any:
            if self._given is None:
                return output
            states = output.last_hidden_state
            bias = self._for_rows(self(self._given), len(states))
            output.last_hidden_state = states + bias.unsqueeze(1).to(states)
            return output

        return [backbone_of(model).register_forward_hook(add)]

    def grow(self, objectives: int) -> None:
        grown = nn.Linear(objectives, self.input.out_features).to(self.input.weight)
        with torch.no_grad():
            grown.weight.zero_()
            grown.weight[:, : self.objectives] = self.input.weight
            grown.bias.copy_(self.input.bias)
        self.input, self.objectives = grown, objectives


class LoraConditioning(Conditioning):
    r"""
    A LoRA adapter whose ranks are scaled by the preference: ``W x + B diag(s(w)) A x`` with ``s(w) = 1 + C (w - c)``.

    This is ours, not the paper's: it acts in every layer, so that it can move more than a constant logit bias. ``C``
    starts at zero. At the centre ``w = c`` the adapter is itself: loaded by PEFT alone it answers as under equal
    weights.

    Args:
        model: the policy, a PEFT model with a LoRA adapter named "default".
        objectives (`int`): number of objectives.

    Raises:
        ValueError: if the adapter is none whose ranks can be scaled in its forward.
    """

    kind = "lora"
    centre: torch.Tensor

    def __init__(self, model: Any, objectives: int):
        super().__init__(objectives)
        layers = self._layers(model)
        self.register_buffer("centre", torch.full((objectives,), 1.0 / objectives))
        # a module's name may not hold dots
        self.scales = nn.ModuleDict(
            {name.replace(".", "/"): self._zero(objectives, layer.out_features) for name, layer in layers.items()}
        )

    @staticmethod
    def _zero(objectives: int, rank: int) -> nn.Linear:
        layer = nn.Linear(objectives, rank, bias=False)
        nn.init.zeros_(layer.weight)
        return layer

    @staticmethod
    def _layers(model: Any) -> dict[str, nn.Linear]:
        """The matrices A of the adapter by the names of the modules they adapt."""
        config = model.peft_config.get(_ADAPTER) if is_peft_model(model) else None
        if type(config) is not LoraConfig or config.use_dora:
            raise ValueError(
                f"You set conditioning='lora' with {type(config).__name__ if config else 'no adapter'}"
                f"{' and use_dora=True' if getattr(config, 'use_dora', False) else ''}. The preference scales the "
                "ranks of a plain LoRA adapter. Pass peft_config=LoraConfig(...), or use conditioning='logit_bias'."
            )
        layers: dict[str, nn.Linear] = {}
        for name, module in model.get_base_model().named_modules():
            factors = getattr(module, "lora_A", None)
            if isinstance(factors, nn.ModuleDict) and _ADAPTER in factors:
                factor = factors[_ADAPTER]
                if not isinstance(factor, nn.Linear):
                    raise ValueError(
                        f"You set conditioning='lora', and the adapter targets {name}, a "
                        f"{type(module).__name__}. Only linear layers can be conditioned. Leave it out of "
                        "target_modules."
                    )
                layers[name] = factor
            if getattr(module, "lora_embedding_A", None):
                raise ValueError(
                    f"You set conditioning='lora', and the adapter targets the embedding {name}. Only linear layers "
                    "can be conditioned. Leave it out of target_modules."
                )
        return layers

    def _hook(self, model: Any) -> list[RemovableHandle]:
        handles = []
        for name, layer in self._layers(model).items():
            # by its key, since growing replaces the layer
            def rescale(
                module: nn.Module, args: Any, output: torch.Tensor, key: str = name.replace(".", "/")
            ) -> torch.Tensor:
                if self._given is None:
                    return output
                if output.dim() != 3:
                    raise ValueError(
                        "You set conditioning='lora' on a model that flattens its batch, as mixtures of experts do, "
                        "so that rows cannot be told apart. Use conditioning='logit_bias'."
                    )
                columns: Any = self.scales[key].weight
                shift = _mixed(self._given.to(self.centre) - self.centre, columns)
                factor = self._for_rows(1 + shift, len(output))
                return output * factor.unsqueeze(1).to(output)

            handles.append(layer.register_forward_hook(rescale))
        return handles

    def grow(self, objectives: int) -> None:
        fresh = self.centre.new_zeros(objectives - self.objectives)
        self.centre = torch.cat([self.centre, fresh])
        for name, layer in list(self.scales.items()):
            assert isinstance(layer, nn.Linear)
            grown = self._zero(objectives, layer.out_features).to(layer.weight)
            with torch.no_grad():
                grown.weight[:, : self.objectives] = layer.weight
            self.scales[name] = grown
        self.objectives = objectives


def make_conditioning(kind: str, model: Any, objectives: int) -> Conditioning:
    """A new conditioning of a policy that leaves it as it is.

    Args:
        kind (`str`): `"logit_bias"` or `"lora"`.
        model: the policy.
        objectives (`int`): number of objectives.
    """
    if kind == "lora":
        return LoraConditioning(model, objectives)
    return LogitBiasConditioning(int(model.config.get_text_config().hidden_size), objectives)
