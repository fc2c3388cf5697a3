"""A small autoregressive model all of whose sequences are enumerated, so that scores and forces are known exactly."""

import itertools
from dataclasses import dataclass

import torch

from hf_lifealign.dynamics.forces import split_nll

VOCABULARY, LENGTH, PROMPTS, WIDTH = 3, 3, 2, 5


@dataclass
class Toy:
    """Logits are linear in features that all states share, so that a step on one state moves the others.

    Args:
        features (`torch.Tensor` of shape `(prompts, states, width)`): of the states, prefix by prefix.
        labels (`torch.Tensor` of shape `(prompts, sequences)`): 1 where a sequence is aligned.
        data (`torch.Tensor` of shape `(prompts, sequences)`): distribution of the training data.
    """

    features: torch.Tensor
    labels: torch.Tensor
    data: torch.Tensor
    sequences: torch.Tensor
    states: torch.Tensor

    @classmethod
    def make(cls, seed: int = 0) -> "Toy":
        generator = torch.Generator().manual_seed(seed)
        rows = list(itertools.product(range(VOCABULARY), repeat=LENGTH))
        prefixes = [p for n in range(LENGTH) for p in itertools.product(range(VOCABULARY), repeat=n)]
        number = {prefix: i for i, prefix in enumerate(prefixes)}
        states = torch.tensor([[number[row[:t]] for t in range(LENGTH)] for row in rows])
        features = torch.randn(PROMPTS, len(prefixes), WIDTH, generator=generator, dtype=torch.float64)
        labels = (torch.rand(PROMPTS, len(rows), generator=generator) < 0.4).double()
        data = torch.rand(PROMPTS, len(rows), generator=generator, dtype=torch.float64) ** 4
        return cls(features, labels, data / data.sum(-1, keepdim=True), torch.tensor(rows), states)

    def parameters(self, seed: int = 1) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (WIDTH, VOCABULARY)
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    def logits(self, parameters: torch.Tensor) -> torch.Tensor:
        """`(prompts, states, vocabulary)`."""
        return self.features @ parameters

    def sequence_logps(self, parameters: torch.Tensor) -> torch.Tensor:
        """`(prompts, sequences)`."""
        logps = torch.log_softmax(self.logits(parameters), -1)[:, self.states]
        return logps.gather(-1, self.sequences.expand(PROMPTS, -1, -1).unsqueeze(-1)).squeeze(-1).sum(-1)

    def score(self, parameters: torch.Tensor) -> torch.Tensor:
        """S, by enumeration."""
        return (self.labels * self.sequence_logps(parameters).exp()).sum(-1).mean()

    def score_gradient(self, parameters: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(self.score(parameters), parameters)[0]

    def losses(self, parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Driving and rebound term of the negative log-likelihood of the data."""
        drive = rebound = torch.zeros((), dtype=torch.float64)
        logits = self.logits(parameters)
        for x in range(PROMPTS):
            for i, row in enumerate(self.sequences):
                parts = split_nll(logits[x, self.states[i]], row)
                drive = drive + self.data[x, i] * parts[0] / PROMPTS
                rebound = rebound + self.data[x, i] * parts[1] / PROMPTS
        return drive, rebound

    def posteriors(self, parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of each state: its probability, P(aligned | prefix), and the next token given aligned and given not."""
        probabilities = self.sequence_logps(parameters).exp().detach()
        count = self.features.shape[1]
        reach, plus = torch.zeros(PROMPTS, count).double(), torch.zeros(PROMPTS, count).double()
        tokens = torch.zeros(2, PROMPTS, count, VOCABULARY).double()
        for x in range(PROMPTS):
            for i, row in enumerate(self.sequences):
                for t, state in enumerate(self.states[i]):
                    p, a = probabilities[x, i], self.labels[x, i]
                    reach[x, state] += p
                    plus[x, state] += p * a
                    tokens[0, x, state, row[t]] += p * a
                    tokens[1, x, state, row[t]] += p * (1 - a)
        share = plus / reach
        return (
            reach,
            share,
            tokens[0] / plus.clamp(min=1e-300).unsqueeze(-1),
            tokens[1] / (reach - plus).clamp(min=1e-300).unsqueeze(-1),
        )

    def theorem(self, parameters: torch.Tensor, change: torch.Tensor, sign: float = -1.0) -> float:
        """Theorem 2.7 for a change of the parameters, by its states; `sign` is that of the pi- term."""
        reach, plus, aligned, other = self.posteriors(parameters)
        dz = self.features @ change
        gate = reach * plus * (1 - plus)
        return float((gate * ((aligned + sign * other) * dz).sum(-1)).sum() / PROMPTS)
