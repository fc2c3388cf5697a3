"""The preference-weight-net: from a prompt's features to the weights of the objectives."""

import torch
from torch import nn
from torch.nn import functional as F


class PreferenceWeightNet(nn.Module):
    r"""
    ``f_psi``: features of a prompt to weights on the simplex (arXiv 2604.24178; the shape of the MLP is our choice).

    Features are layer-normalised without parameters, then Linear, GELU, Linear, softmax. The last layer starts at
    zero, so that every prompt first gets equal weights.

    An objective that was added with [`grow`] sleeps: its weight is exactly 0, and those of the others are as before,
    until [`wake`] is called, as a trainer does.

    Args:
        features (`int`): width of the features.
        objectives (`int`): number of objectives.
        hidden (`int`, *optional*, defaults to 256): width of the hidden layer.
    """

    sleeping: torch.Tensor

    def __init__(self, features: int, objectives: int, hidden: int = 256):
        super().__init__()
        self.features = features
        self.hidden = nn.Linear(features, hidden)
        self.output = nn.Linear(hidden, objectives)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.register_buffer("sleeping", torch.zeros(objectives, dtype=torch.bool))

    @property
    def objectives(self) -> int:
        return self.output.out_features

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits of the weights, `torch.Tensor` of shape `(prompts, objectives)`; -inf for sleeping objectives."""
        return self._padded(self._awake(features), float("-inf"))

    def _awake(self, features: torch.Tensor) -> torch.Tensor:
        """Logits of the objectives that are awake, in shapes that do not depend on the others: to the bit as before
        they were added."""
        awake = ~self.sleeping
        normed = F.layer_norm(features.to(self.output.weight.dtype), (self.features,))
        return F.linear(F.gelu(self.hidden(normed)), self.output.weight[awake], self.output.bias[awake])

    def _padded(self, values: torch.Tensor, asleep: float) -> torch.Tensor:
        return F.pad(values, (0, int(self.sleeping.sum())), value=asleep)

    def log_weights(self, features: torch.Tensor) -> torch.Tensor:
        """Logarithms of the weights, `torch.Tensor` of shape `(prompts, objectives)`."""
        return self._padded(torch.log_softmax(self._awake(features), dim=-1), float("-inf"))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Weights of the objectives.

        Args:
            features (`torch.Tensor` of shape `(prompts, features)`).

        Returns:
            `torch.Tensor` of shape `(prompts, objectives)`; each row sums to 1.
        """
        return self._padded(torch.softmax(self._awake(features), dim=-1), 0.0)

    def grow(self, objectives: int) -> None:
        """Adds sleeping objectives, up to `objectives` in all; the others keep their weights."""
        known = self.objectives
        grown = nn.Linear(self.output.in_features, objectives).to(self.output.weight)
        with torch.no_grad():
            grown.weight.zero_()
            grown.bias.zero_()
            grown.weight[:known] = self.output.weight
            grown.bias[:known] = self.output.bias
        self.output = grown
        fresh = torch.ones(objectives - known, dtype=torch.bool, device=self.sleeping.device)
        self.sleeping = torch.cat([self.sleeping, fresh])

    def wake(self) -> None:
        """Lets added objectives take part. Their logit starts at the mean of the others' biases."""
        if bool(self.sleeping.any()):
            with torch.no_grad():
                self.output.bias[self.sleeping] = self.output.bias[~self.sleeping].mean()
            self.sleeping = torch.zeros_like(self.sleeping)
