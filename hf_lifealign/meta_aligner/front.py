"""The sweep over user weights: answers under each of them, rated; resumable, and paired between arms."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import is_peft_model
from tqdm.auto import tqdm

from hf_lifealign._files import read_json, write_json
from hf_lifealign._modes import evaluating
from hf_lifealign.meta_aligner.encoders import without_adapter
from hf_lifealign.meta_aligner.front_figures import BASE, OWN, Front, FrontPoint, Scale, distinct_n
from hf_lifealign.meta_aligner.identity import digest_of
from hf_lifealign.meta_aligner.policy import MetaAlignedPolicy
from hf_lifealign.meta_aligner.prefix import PrefixCache
from hf_lifealign.meta_aligner.rating import Rater
from hf_lifealign.meta_aligner.storage import canonical
from hf_lifealign.prompts import prompt_ids, tokenize

# Values of each weight from 0 to 1. More objectives have coarser lattices: 15 points for three, 35 for four.
STEPS_OF_TWO, STEPS_OF_MORE = 11, 5
_SCORED = 4  # answers whose likelihood under the base is computed together


def user_weights(objectives: int, steps: int | None = None) -> list[list[float]]:
    """User weights of a sweep: all points of the simplex whose weights are multiples of `1 / (steps - 1)`.

    For two objectives these are `steps` points, (0, 1) first and (1, 0) last; for `K` of them there are
    `C(steps + K - 2, K - 1)`, in lexicographic order.

    Args:
        objectives (`int`): at least 2.
        steps (`int`, *optional*): values of each weight, at least 2; 11 for two objectives, 5 for more.

    Raises:
        ValueError: for fewer objectives or steps.
    """
    steps = steps if steps is not None else STEPS_OF_TWO if objectives == 2 else STEPS_OF_MORE
    if objectives < 2 or steps < 2:
        raise ValueError(f"You asked for {steps} weights of {objectives} objectives. Give at least 2 of both.")

    def parts(rest: int, places: int) -> Iterator[list[int]]:
        if places == 1:
            yield [rest]
            return
        for first in range(rest + 1):
            yield from ([first, *others] for others in parts(rest - first, places - 1))

    return [[part / (steps - 1) for part in row] for row in parts(steps - 1, objectives)]


def label_of(weights: Sequence[float]) -> str:
    """Weights as text, e.g. `"0.3-0.7"`, which names their file."""
    return "-".join(f"{weight:.6g}" for weight in weights)


@dataclass
class _Sweep:
    """One sweep: what all its points share."""

    policy: MetaAlignedPolicy
    rows: list[dict[str, Any]]
    rater: Rater
    settings: dict[str, Any]
    batch_size: int
    seed: int
    store: Path | None
    keep_answers: bool
    prefix_cache_gb: float
    bar: Any = None
    batches: list[list[int]] = field(default_factory=list)
    fingerprint: str = ""
    rewards_digest: str = ""

    def __post_init__(self) -> None:
        prompts = [row["prompt"] for row in self.rows]
        if len({isinstance(prompt, str) for prompt in prompts}) > 1:
            raise ValueError("Some of your prompts are texts and some are conversations. Give one form.")
        lengths = [len(ids) for ids in prompt_ids(self.policy.tokenizer, prompts, self.policy.chat_template_kwargs)]
        room = getattr(self.policy.model.config.get_text_config(), "max_position_embeddings", None)
        most = int(self.settings.get("max_new_tokens") or 1)
        longest = max(range(len(lengths)), key=lambda i: lengths[i])
        if room is not None and lengths[longest] + most > room:
            raise ValueError(
                f"Prompt {longest} has {lengths[longest]} tokens, an answer up to {most}, and the model reads {room}. "
                "Leave it out, or set fewer max_new_tokens."
            )
        self.prefixes = PrefixCache(self.policy, self.prefix_cache_gb)
        # alike in length, so that a batch has little padding
        order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
        self.batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        # before anything is rated: a reward may note something in itself when it is first called
        self.rewards_digest = self.rater.identity()
        self.fingerprint = digest_of(
            canonical(self.rows), canonical(self.settings), canonical(self.policy.chat_template_kwargs),
            self.batch_size, self.seed, self.rewards_digest, *_parts_of(self.policy),
        )  # fmt: skip

    # What is there already

    def _file(self, label: str) -> Path | None:
        return None if self.store is None else self.store / f"{label}.json"

    def finished(self, label: str) -> dict[str, Any] | None:
        """A point that an earlier sweep of the same policy, prompts and settings has finished."""
        file = self._file(label)
        if file is None or not file.is_file():
            return None
        content = read_json(file)
        fits = isinstance(content, dict) and content.get("fingerprint") == self.fingerprint
        return content if fits and (not self.keep_answers or "answers" in content) else None

    # All points

    def points(
        self, plan: Sequence[tuple[str, list[float] | None]], title: str, progress: bool
    ) -> dict[str, FrontPoint]:
        """The points of a plan of labels and weights; those that are finished are read."""
        done = sum(self.finished(label) is not None for label, _ in plan) * len(self.batches)
        policy = self.policy
        policy.conditioning.give(None)
        with evaluating(policy.model), tqdm(
            total=len(plan) * len(self.batches), initial=done, desc=title, unit="batch", dynamic_ncols=True,
            disable=not progress,
        ) as self.bar:  # fmt: skip
            return {label: self.point(label, row) for label, row in plan}

    def conditions(self) -> dict[str, Any]:
        """What fronts have to share to be compared."""
        plain = {key: value for key, value in self.settings.items() if isinstance(value, int | float | str | list)}
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "generation": plain,
            "prompts": len(self.rows),
            "prompts_digest": digest_of(canonical(self.rows)),
            "rewards_digest": self.rewards_digest,
        }

    # One point

    def point(self, label: str, weights: list[float] | None) -> FrontPoint:
        """The point of a user's weights, of the net's own choice (`"own"`), or of the `"base"`."""
        content = self.finished(label)
        if content is None:
            content = self._measure(label, weights)
            file = self._file(label)
            if file is not None:
                write_json(file, content)
        rewards = np.array([[math.nan if r is None else r for r in row] for row in content["rewards"]], dtype=float)
        return FrontPoint(label, content["weights"], rewards, content["lengths"], content["nll"], content["distinct"])

    def _measure(self, label: str, weights: list[float] | None) -> dict[str, Any]:
        count = len(self.rows)
        answers, lengths, nll = [""] * count, [0] * count, [0.0] * count
        rewards = torch.zeros(count, len(self.rater.names), dtype=torch.float64)
        chosen: list[torch.Tensor] = []
        for number, batch in enumerate(self.batches):
            prompts = [self.rows[i]["prompt"] for i in batch]
            given = self.policy.preference(prompts) if label == OWN else weights
            if isinstance(given, torch.Tensor):
                chosen.append(given)
            inputs, new = self._generate(prompts, given, number)
            texts = list(self.policy.tokenizer.batch_decode(new, skip_special_tokens=True))
            rewards[batch] = self.rater([self.rows[i] for i in batch], texts, new)
            scores = self.prefixes.nll(number, inputs, new)
            if scores is None:
                masks = inputs["attention_mask"].bool()
                told = zip(inputs["input_ids"], masks, strict=True)
                scores = self._nll([ids[mask].tolist() for ids, mask in told], new)
            for i, text, ids, score in zip(batch, texts, new, scores, strict=True):
                answers[i], lengths[i], nll[i] = text, len(ids), score
            if self.bar is not None:
                self.bar.update()
        return {
            "fingerprint": self.fingerprint,
            "weights": torch.cat(chosen).mean(0).tolist() if chosen else weights,
            "rewards": [[None if r != r else r for r in row] for row in rewards.tolist()],
            "lengths": lengths,
            "nll": nll,
            "distinct": [distinct_n(answers, n) for n in (1, 2)],
            **({"answers": answers} if self.keep_answers else {}),
        }

    def _generate(self, prompts: list[Any], preference: Any, number: int) -> tuple[Any, list[list[int]]]:
        """The prompts as a batch, and tokens of their answers, whose end is included; without a preference those of
        the base."""
        policy = self.policy
        inputs = tokenize(policy.tokenizer, prompts, policy.chat_template_kwargs).to(policy.device)
        with _seeded(f"{self.seed}/{number}", inputs["input_ids"].device), contextlib.ExitStack() as stack:
            stack.enter_context(
                without_adapter(policy.model) if preference is None else policy.under(preference, len(prompts))
            )
            # with an adapter the base reads prompts otherwise
            kept = None if preference is None and is_peft_model(policy.model) else self.prefixes.of(number, inputs)
            known = {} if kept is None else {"past_key_values": kept}
            output = policy.model.generate(**inputs, **self.settings, **known)
        width = inputs["input_ids"].shape[1]
        ends = self._ends()
        answers = []
        for row in output[:, width:].tolist():
            end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
            answers.append(row[:end])
        return inputs, answers

    def _ends(self) -> set[int]:
        given = self.settings.get("eos_token_id")
        if given is None:
            given = self.policy.model.generation_config.eos_token_id
        listed = given if isinstance(given, list) else [given]
        return {int(token) for token in [*listed, self.policy.tokenizer.eos_token_id] if token is not None}

    def _nll(self, prompts: list[list[int]], answers: list[list[int]]) -> list[float]:
        """Negative log-likelihoods of answers under the base, in nats."""
        device, found = self.policy.device, []
        for start in range(0, len(prompts), _SCORED):
            part = list(zip(prompts[start : start + _SCORED], answers[start : start + _SCORED], strict=True))
            width = max(len(p) + len(a) for p, a in part)
            # padded on the right, so that positions are those of the tokens
            ids = torch.zeros(len(part), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for i, (prompt, answer) in enumerate(part):
                ids[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
                mask[i, : len(prompt) + len(answer)] = 1
            with without_adapter(self.policy.model):
                logits = self.policy.model(
                    input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
                ).logits
            for i, (prompt, answer) in enumerate(part):
                told = logits[i, len(prompt) - 1 : len(prompt) + len(answer) - 1].float()
                wanted = ids[i, len(prompt) : len(prompt) + len(answer)].to(device)
                found.append(float(torch.nn.functional.cross_entropy(told, wanted, reduction="sum")))
        return found


@torch.no_grad()
def sweep_front(
    policy: MetaAlignedPolicy,
    rows: Sequence[dict[str, Any]],
    reward_funcs: Sequence[Any],
    weights: Sequence[Sequence[float]] | None = None,
    *,
    name: str = "policy",
    scale: Scale | None = None,
    include_base: bool = False,
    generation: dict[str, Any] | None = None,
    batch_size: int = 16,
    seed: int = 0,
    store: str | Path | None = None,
    keep_answers: bool = False,
    prefix_cache_gb: float = 4.0,
    progress: bool = True,
) -> Front:
    r"""
    Measures what a policy reaches under user weights.

    Prompts are answered once under each weight, once under the preference-weight-net's own choice, and once by the base
    if asked for. The randomness of an answer is decided by `seed` and the place of its prompt alone, the same under
    every weight and in every arm: a preference without effect gives the same answers at all of them, and differences
    between arms are paired.

    Args:
        policy ([`MetaAlignedPolicy`]): whose front it is.
        rows (`list[dict]`): with `prompt`, plain or conversational; further columns reach the reward functions.
        reward_funcs (`list`): one for each objective, in TRL's protocol; see [`Rater`].
        weights (`list[list[float]]`, *optional*): of [`user_weights`] by default.
        name (`str`): of the arm.
        scale ([`Scale`], *optional*): that of the first arm, for all others; of the policy's own statistics by default.
        include_base (`bool`): whether to add the base without adapter and preference.
        generation (`dict`, *optional*): for `model.generate`; the settings of the training stand where it says nothing.
        batch_size (`int`): prompts that are answered together. It decides which answers are sampled.
        seed (`int`): of the sampling.
        store (`str` or `Path`, *optional*): folder for a JSON file of each finished point. A sweep that was killed goes
            on with the next point; files of another policy or other settings are not used.
        keep_answers (`bool`): whether these files hold the answers.
        prefix_cache_gb (`float`): memory for prompts that were read, in GiB, which under a logit bias need not be read
            again for each weight.
        progress (`bool`): whether to show a progress bar with the time that is left.

    Returns:
        [`Front`].

    Raises:
        ValueError: if there are no rows, rewards or weights do not fit the objectives, or the policy has no statistics
            of its rewards.
    """
    if not rows:
        raise ValueError("You gave no prompts. Give at least one; a front is worth looking at from about 100 on.")
    if scale is None:
        if policy.statistics is None:
            raise ValueError("The policy has no reward statistics, so that its rewards have no scale. Train it first.")
        scale = Scale.of(policy.statistics.mean.tolist(), policy.statistics.std.tolist())
    names = policy.objective_names
    if len(scale.mean) != len(names):
        raise ValueError(f"The scale has {len(scale.mean)} objectives. The policy has {names}.")
    swept = [[float(w) for w in row] for row in (weights if weights is not None else user_weights(len(names)))]
    settings = {**policy.generation, **(generation or {})}
    settings.setdefault("pad_token_id", policy.tokenizer.pad_token_id)
    sweep = _Sweep(
        policy, [dict(row) for row in rows], Rater(reward_funcs, names), settings, batch_size, seed,
        None if store is None else Path(store), keep_answers, prefix_cache_gb,
    )  # fmt: skip
    plan: list[tuple[str, list[float] | None]] = [(label_of(row), row) for row in swept]
    plan += [(OWN, None)] + ([(BASE, None)] if include_base else [])
    found = sweep.points(plan, f"front of {name}", progress)
    points = [found[label_of(row)] for row in swept]
    return Front(name, list(names), scale, points, found[OWN], found.get(BASE), sweep.conditions())


@contextlib.contextmanager
def _seeded(name: str, device: torch.device) -> Iterator[None]:
    """Randomness that a name alone decides; that of the caller is left as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(digest_of("sweep", name)[:12], 16))
        yield


def _parts_of(policy: MetaAlignedPolicy) -> Iterator[Any]:
    """What tells a policy from another: all it has learnt, and the beginning of each of the base's tensors."""
    yield from (part for item in sorted(policy.tensors().items()) for part in item)
    for name, parameter in policy.model.named_parameters():
        yield name
        yield parameter.detach() if "lora_" in name else parameter.detach().flatten()[:256]
