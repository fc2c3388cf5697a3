"""Measures an alignment score: answers drawn, judged, and weighed anew as the model moves on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed
from transformers import GenerationConfig

from hf_lifealign._modes import generating_with
from hf_lifealign.diversity.collision import prefix_collision
from hf_lifealign.dynamics.forces import importance_weights
from hf_lifealign.dynamics.likelihood import logps_of, prompt_cache, takes, weighted_gradient
from hf_lifealign.dynamics.samples import Probe, Samples
from hf_lifealign.dynamics.updates import Tensors, inner_product
from hf_lifealign.judges import Judge, JudgeError, judged
from hf_lifealign.metrics.alignment_dynamics import ChangeEstimate, ScoreEstimate, alignment_score, log_odds_change
from hf_lifealign.prompts import prompt_ids, tokenize
from hf_lifealign.stream.rows import text_of

T = TypeVar("T")

# Tokens into aligned answers at which narrowness is measured.
NARROWNESS = (1, 2, 4, 8)
# Groups of probes, or of pairs, by whose spread the error of a force is told.
_GROUPS = 8
# Share of what the model says that samples have to speak for, two standard errors allowed for.
_LEAST_COVERAGE = 0.9


@dataclass(frozen=True)
class Rescored:
    """A score between two anchors.

    Args:
        score ([`ScoreEstimate`]): S now, by the samples of the anchor; its `ess` says how far they carry.
        change ([`ChangeEstimate`]): of log-odds since the anchor.
        logps (`list` of lists of float): log-likelihoods of the samples now.
        coverage (`float`): mean weight of the samples, which is 1 but for chance where they speak for all that the
            model says now; less where it says what is not among them.
        missed (`str`, *optional*): that they miss a part of it, if that is no chance: S and its change are then those
            of the rest, and may be far off, however many samples are effective.
    """

    score: ScoreEstimate
    change: ChangeEstimate
    logps: list[list[float]]
    coverage: float = 1.0
    missed: str | None = None


class AlignmentMeter:
    r"""
    Measures the alignment score S (arXiv 2605.18309, eq. 2): the probability that the model's answer to a probe is
    aligned, by a judge.

    Answers are drawn from the model itself: temperature 1, nothing cut off, up to `max_new_tokens`. What is longer is
    judged as far as it goes, so that S is that of answers of this length.

    Args:
        probes (`list[Probe]`): of [`read_probes`].
        judge (`Callable`): of `(prompts, answers, references)`, all texts; one number in [0, 1] for each answer.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): of the model.
        samples (`int`): answers to each probe; at least 2, or there are no forces.
        max_new_tokens (`int`): longest answer.
        score_tokens (`int`, *optional*): tokens of an answer by whose likelihood it is weighed; all by default. Fewer
            keep the weights of long answers from collapsing, and leave out what changes after them.
        seed (`int`): of the drawing.
        judge_timeout (`float`, *optional*): seconds.
        batch_size (`int`): answers drawn together.
        replicates (`int`): of the bootstrap.
        chat_template_kwargs (`dict`, *optional*): for the chat template.
    """

    def __init__(
        self,
        probes: Sequence[Probe],
        judge: Judge,
        tokenizer: Any,
        samples: int = 8,
        max_new_tokens: int = 32,
        score_tokens: int | None = None,
        seed: int = 0,
        judge_timeout: float | None = None,
        batch_size: int = 64,
        replicates: int = 1000,
        chat_template_kwargs: dict[str, Any] | None = None,
    ):
        self.probes, self.judge, self.tokenizer = list(probes), judge, tokenizer
        self.samples, self.max_new_tokens, self.score_tokens = samples, max_new_tokens, score_tokens
        self.seed, self.judge_timeout, self.batch_size, self.replicates = seed, judge_timeout, batch_size, replicates
        self.chat_template_kwargs = chat_template_kwargs or {}
        prompts = [probe.prompt for probe in self.probes]
        self.prompt_ids = prompt_ids(tokenizer, prompts, self.chat_template_kwargs)
        self.texts = [text_of(prompt) for prompt in prompts]

    def refuse_too_long(self, model: Any) -> None:
        """Refuses probes that the model cannot read.

        Raises:
            ValueError: naming the longest one.
        """
        room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        longest = max(range(len(self.prompt_ids)), key=lambda i: len(self.prompt_ids[i]))
        if room is not None and len(self.prompt_ids[longest]) + self.max_new_tokens > room:
            raise ValueError(
                f"Probe {longest} has {len(self.prompt_ids[longest])} tokens, an answer up to {self.max_new_tokens}, "
                f"and the model reads {room}. Leave it out, or set fewer max_new_tokens."
            )

    # Drawing

    @torch.no_grad()
    def draw(self, model: Any, step: int) -> Samples:
        """Draws and judges answers of the model, which is in evaluation mode.

        The same seed and step draw the same answers of the same model. With several processes the answers and the
        judgements are those of the first one on all of them: a judge need not say the same twice, and processes that
        go on differently wait for each other without end. Where it fails, it fails on all.

        Raises:
            JudgeError: if the judge fails; see [`judged`].
        """
        torch.manual_seed((self.seed * 1_000_003 + step) % 2**63)
        completions: list[list[list[int]]] = [[] for _ in self.probes]
        together = max(1, self.batch_size // self.samples)
        order = sorted(range(len(self.probes)), key=lambda i: (len(self.prompt_ids[i]), i))
        for start in range(0, len(order), together):
            chosen = order[start : start + together]
            for i, rows in zip(chosen, self._generate(model, chosen), strict=True):
                completions[i] = rows
        completions = from_first_process(lambda: completions)
        drawn = Samples(step, self.prompt_ids, completions)
        drawn.labels = from_first_process(lambda: self._judge(completions))
        drawn.logps = self.logps(model, drawn)
        return drawn

    def _generate(self, model: Any, chosen: Sequence[int]) -> list[list[list[int]]]:
        device = next(model.parameters()).device
        prompts = [self.probes[i].prompt for i in chosen]
        inputs = tokenize(self.tokenizer, prompts, self.chat_template_kwargs).to(device)
        ends = self._ends(model)
        plain = GenerationConfig(
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=1,
            max_new_tokens=self.max_new_tokens, pad_token_id=self.tokenizer.pad_token_id, eos_token_id=sorted(ends),
            use_cache=True,
        )  # fmt: skip
        cache = prompt_cache(model, inputs["input_ids"], inputs["attention_mask"], self.samples)
        repeated = {name: tensor.repeat_interleave(self.samples, dim=0) for name, tensor in inputs.items()}
        shared = {} if cache is None else {"past_key_values": cache}
        # nothing of the model's own settings: S is of what it says by itself
        with generating_with(model, plain):
            output = model.generate(**repeated, **shared)[:, inputs["input_ids"].shape[1] :].tolist()
        rows = []
        for row in output:
            end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
            rows.append(row[:end])
        return [rows[i * self.samples : (i + 1) * self.samples] for i in range(len(chosen))]

    def _ends(self, model: Any) -> set[int]:
        given = model.generation_config.eos_token_id
        listed = given if isinstance(given, list) else [given]
        return {int(token) for token in [*listed, self.tokenizer.eos_token_id] if token is not None}

    def _judge(self, completions: list[list[list[int]]]) -> list[list[float]]:
        answers = self.tokenizer.batch_decode([ids for row in completions for ids in row], skip_special_tokens=True)
        prompts = [text for text in self.texts for _ in range(self.samples)]
        references = [probe.reference for probe in self.probes for _ in range(self.samples)]
        labels = judged(self.judge, prompts, answers, references, self.judge_timeout)
        return [labels[i : i + self.samples] for i in range(0, len(labels), self.samples)]

    # Following

    def logps(self, model: Any, samples: Samples) -> list[list[float]]:
        """Log-likelihoods of samples now, `P` lists of `n`, in nats."""
        return logps_of(model, samples.prompt_ids, samples.completion_ids, self.score_tokens)

    def anchored(self, samples: Samples) -> ScoreEstimate:
        """S when the samples were drawn."""
        return alignment_score(samples.labels, replicates=self.replicates, seed=self.seed)

    def rescored(self, samples: Samples, logps: list[list[float]]) -> Rescored:
        """S of the model that gives samples of another one these log-likelihoods."""
        weights = samples.log_weights(logps)
        score = alignment_score(samples.labels, weights, replicates=self.replicates, seed=self.seed)
        change = log_odds_change(samples.labels, weights, replicates=self.replicates, seed=self.seed)
        covered, error = coverage_of(weights)
        missed = None
        if covered + 2 * error < _LEAST_COVERAGE:
            missed = f"the samples miss {100 * (1 - covered):.0f} % of what the model says now"
        return Rescored(score, change, logps, covered, missed)

    def score_gradient(
        self, model: Any, parameters: Sequence[torch.Tensor], samples: Samples, logps: list[list[float]]
    ) -> Tensors:
        """grad S now, by samples that the model may have drawn earlier; see [`importance_weights`]."""
        weights = importance_weights(samples.labels, samples.log_weights(logps))
        return weighted_gradient(
            model, parameters, samples.prompt_ids, samples.completion_ids, weights, self.score_tokens
        )

    def forces(
        self,
        model: Any,
        parameters: Sequence[torch.Tensor],
        samples: Samples,
        steps: Sequence[Tensors],
    ) -> list[tuple[float, float]]:
        """Change of S by each of some steps of the parameters, to first order, and its standard error, by samples of
        the model as it is.

        The error is by the spread over groups of probes, for the price of one gradient; NaN with a single probe.
        """
        weights = importance_weights(samples.labels, samples.log_weights(samples.logps))

        def gradient(chosen: Sequence[int]) -> Tensors:
            return weighted_gradient(
                model, parameters, [samples.prompt_ids[i] for i in chosen], [samples.completion_ids[i] for i in chosen],
                [weights[i] for i in chosen], self.score_tokens,
            )  # fmt: skip

        return sums_over_groups(len(weights), gradient, steps)

    def narrowness(self, samples: Samples) -> dict[str, float]:
        """c_1, c_2, c_4, c_8: how often two aligned answers to the same probe begin alike; mean over the probes that
        have two. Empty if none has."""
        found: dict[str, float] = {}
        for k in NARROWNESS:
            told = []
            for rows, labels in zip(samples.completion_ids, samples.labels, strict=True):
                aligned = [ids for ids, label in zip(rows, labels, strict=True) if label >= 0.5]
                if len(aligned) > 1:
                    told.append(prefix_collision(aligned, k))
            if told:
                found[f"c_{k}"] = sum(told) / len(told)
        return found


def sums_over_groups(
    count: int, gradient: Callable[[Sequence[int]], Tensors], steps: Sequence[Tensors]
) -> list[tuple[float, float]]:
    """Inner product of a gradient, a sum over `count` parts, with each of some steps, and its standard error by the
    spread over groups of parts, for the price of one gradient; NaN with a single part.

    Args:
        count (`int`): of the parts.
        gradient (`Callable`): of the numbers of some parts; their gradient.
        steps (`list` of lists of `torch.Tensor`): of the parameters.
    """
    groups = min(_GROUPS, count)
    parts = np.zeros((groups, len(steps)))
    for k in range(groups):
        found = gradient(range(k, count, groups))
        parts[k] = [inner_product(found, step) for step in steps]
    errors = parts.std(axis=0, ddof=1) * groups**0.5 if groups > 1 else np.full(len(steps), np.nan)
    return [(float(value), float(error)) for value, error in zip(parts.sum(axis=0), errors, strict=True)]


def coverage_of(log_weights: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Mean importance weight over prompts, and its standard error by their spread.

    The expectation of the weight of a sample is 1, since the new model's probabilities add up to 1 over all answers.
    A mean that is surely lower says that much of these lies where nothing was drawn.

    Args:
        log_weights (`P` lists of float): of the samples of each prompt.
    """
    # a weight beyond e^60 says the same as one of that size, and its sum can be written
    means = np.array([np.exp(np.minimum(row, 60.0)).mean() for row in log_weights])
    return float(means.mean()), float(means.std(ddof=1) / len(means) ** 0.5) if len(means) > 1 else 0.0


def from_first_process(made: Callable[[], T]) -> T:
    """What the first process makes, on every process of a distributed training; with one process just that.

    Raises:
        JudgeError: on the others, if it fails on the first, where its own error is raised.
    """
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return made()
    box: list[Any] = [None, None]
    failed: Exception | None = None
    if distributed.get_rank() == 0:
        try:
            box[0] = made()
        except Exception as error:
            # the others wait for this, whatever it is
            failed, box[1] = error, str(error) or type(error).__name__
    distributed.broadcast_object_list(box, src=0)
    if failed is not None:
        raise failed
    if box[1] is not None:
        raise JudgeError(box[1])
    found: T = box[0]
    return found


def forward_arguments(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Of a training batch, what a forward without loss takes."""
    names = ("input_ids", "attention_mask", "position_ids", "token_type_ids")
    return {name: batch[name] for name in names if name in batch and takes(model, name)}
