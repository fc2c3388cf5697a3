"""MiniLMBradleyTerryReward: a linear Bradley-Terry head on frozen sentence embeddings, as a reward function of TRL."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hf_lifealign.models.embedded import PREFIX
from hf_lifealign.rewards.bradley_terry import bradley_terry_fit
from hf_lifealign.rewards.encoder import DEFAULT_EMBEDDING, DEFAULT_MAX_TOKENS, SharedEncoder, shared_encoder
from hf_lifealign.rewards.record import RewardRecord, check_name, is_public
from hf_lifealign.rewards.storage import fetch_reward, read_reward, write_reward
from hf_lifealign.rewards.texts import PreferenceTexts, check_template, preference_texts, reward_text

Preferences = Iterable[Mapping[str, Any]]

# With the default embedding model no template is best for all pairs: the last turn helps a head for helpfulness by some
# 2 points and costs one for harmlessness as much or more, the whole dialogue is worst and takes over twice the time.
DEFAULT_TEMPLATE = "completion"
DEFAULT_L2 = 3e-3
_PROBE = "The quick brown fox jumps over the lazy dog."
# Two builds of one model differ by rounding; other weights, or other pooling, by far more.
_LEAST_LIKENESS = 0.999


class MiniLMBradleyTerryReward:
    """The reward `r = u . e`, with `e` the frozen embedding of an answer (and what it answers) and `u` a fitted head.

    An instance is a reward function in TRL's protocol; GRPOTrainer and RLOOTrainer take it in `reward_funcs` and log it
    by its name. Several rewards on one embedding model share its embeddings, so that helpful and harmless rewards of
    the same answers cost one pass. Made by [`~MiniLMBradleyTerryReward.fit`] or
    [`~MiniLMBradleyTerryReward.from_pretrained`].

    Args:
        weight (`torch.Tensor`): head, float64 of shape `(dimension,)`.
        probe (`torch.Tensor`): embedding of a fixed sentence, float32 of shape `(dimension,)`, by which the embedding
            model is known again.
        record ([`RewardRecord`]): what is known of the reward.
    """

    def __init__(self, weight: torch.Tensor, probe: torch.Tensor, record: RewardRecord) -> None:
        self.weight = weight
        self.probe = probe
        self.record = record
        self.__name__ = record.name
        self._encoder_is_known = False

    @classmethod
    def fit(
        cls,
        preferences: Preferences,
        *,
        name: str,
        l2: float = DEFAULT_L2,
        held_out: float | Preferences = 0.2,
        embedding: str = DEFAULT_EMBEDDING,
        template: str = DEFAULT_TEMPLATE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        dataset: str = "",
        progress: bool = True,
    ) -> "MiniLMBradleyTerryReward":
        """Fits a head on preference pairs and measures it on pairs that it has not seen.

        Args:
            preferences (`datasets.Dataset` or `list[dict]`): rows of `prompt`, `chosen` and `rejected` in TRL's plain
                or conversational form.
            name (`str`): name of the reward, e.g. `"helpful"`.
            l2 (`float`, *optional*, defaults to 3e-3): penalty, see [`bradley_terry_objective`].
            held_out (`float` or rows, *optional*, defaults to 0.2): share of the pairs kept back for the accuracy, or
                other rows for it. The share is taken by the hash of the prompt: the same rows whatever their order, and
                never one prompt on both sides. 0 keeps nothing back and leaves the accuracy out.
            embedding (`str`, *optional*): embedding model, see [`SharedEncoder`].
            template (`str`, *optional*, defaults to `"completion"`): what is embedded, see [`reward_text`].
            max_tokens (`int`, *optional*, defaults to 256): most tokens of a text; of longer ones the end counts.
            dataset (`str`, *optional*): what the pairs are, in words, for record and card.
            progress (`bool`, *optional*, defaults to `True`): show a progress bar while texts are embedded.

        Raises:
            ValueError: if a row is no pair, has an empty answer or the same one twice, if an option cannot be, or if
                the embedding model cannot be loaded.
        """
        check_name(name)
        fitted, kept = _divide(preference_texts(preferences, template), held_out, template)
        if not embedding.startswith(PREFIX) and Path(embedding).expanduser().is_dir():
            embedding = str(Path(embedding).expanduser().resolve())
        encoder = shared_encoder(embedding, max_tokens)
        # all at once, so that a text which stands in several pairs is embedded once
        both = (fitted, kept) if kept is not None else (fitted,)
        texts = [text for part in both for text in (*part.chosen, *part.rejected)]
        vectors = encoder.embed([*texts, _PROBE], progress)
        pairs = len(fitted)
        chosen, rejected = vectors[:pairs], vectors[pairs : 2 * pairs]
        weight = bradley_terry_fit(chosen, rejected, l2)
        rewards = _rewards(vectors[: 2 * pairs], weight)
        accuracy = None
        if kept is not None:
            better, worse = _rewards(vectors[2 * pairs : -1], weight).chunk(2)
            accuracy = _share(better > worse)
        record = RewardRecord(
            name=name,
            embedding=embedding,
            dimension=encoder.dimension,
            template=template,
            max_tokens=max_tokens,
            l2=float(l2),
            pairs=pairs,
            held_out_pairs=len(kept) if kept is not None else 0,
            accuracy=accuracy,
            fit_accuracy=_share(rewards[:pairs] > rewards[pairs:]),
            mean=float(rewards.mean()),
            std=float(rewards.std(correction=0)),
            dataset=dataset,
        )
        return cls(weight, vectors[-1].clone(), record)

    @property
    def metadata(self) -> dict[str, Any]:
        """The record as JSON: `accuracy`, `pairs`, `held_out_pairs`, `embedding`, `template` and what else is known."""
        return self.record.to_json()

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any = None, **columns: Any
    ) -> list[float]:
        """Rewards in TRL's protocol.

        Args:
            prompts (`list`): a text or a list of messages each.
            completions (`list`): a text or a list of messages each.
            completion_ids, columns: what else TRL passes; not looked at.

        Returns:
            `list[float]`: a reward for each completion.

        Raises:
            ValueError: if there are not as many prompts as completions, or the embedding model is another one than the
                head was fitted on.
        """
        if len(prompts) != len(completions):
            raise ValueError(f"You gave {len(prompts)} prompts and {len(completions)} completions. Give one for one.")
        texts = [reward_text(p, c, self.record.template) for p, c in zip(prompts, completions, strict=True)]
        return _rewards(self.encoder.embed(texts), self.weight).tolist()

    def accuracy(self, preferences: Preferences, progress: bool = False) -> float:
        """Share of the pairs in which the chosen answer has the higher reward; a tie counts as wrong.

        Args:
            preferences (`datasets.Dataset` or `list[dict]`): rows as for [`~MiniLMBradleyTerryReward.fit`].
            progress (`bool`, *optional*): show a progress bar.

        Raises:
            ValueError: as in [`~MiniLMBradleyTerryReward.fit`].
        """
        texts = preference_texts(preferences, self.record.template)
        better, worse = _rewards(self.encoder.embed([*texts.chosen, *texts.rejected], progress), self.weight).chunk(2)
        return _share(better > worse)

    @property
    def encoder(self) -> SharedEncoder:
        """The encoder, loaded when it is first needed and shared with other rewards.

        Raises:
            ValueError: if it is another one than the head was fitted on.
        """
        encoder = shared_encoder(self.record.embedding, self.record.max_tokens)
        if not self._encoder_is_known:
            probe = encoder.embed([_PROBE])[0]
            likeness = float(probe @ self.probe) if probe.shape == self.probe.shape else 0.0
            if likeness < _LEAST_LIKENESS:
                raise ValueError(
                    f"The reward {self.__name__!r} was fitted on the embeddings of {self.record.embedding!r}, and the "
                    f"model of that name gives others here (cosine {likeness:.3f} on the same sentence). Restore that "
                    "model, or fit the reward again."
                )
            self._encoder_is_known = True
        return encoder

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes `reward.safetensors`, `reward.json` and a card, as a whole folder or not at all.

        Raises:
            ValueError: if the folder holds something else.
        """
        from hf_lifealign.rewards.publishing import reward_card

        write_reward(Path(folder), self.weight, self.probe, self.record, reward_card(self.record))

    @classmethod
    def from_pretrained(
        cls, folder_or_repo: str | os.PathLike[str], revision: str | None = None, token: str | None = None
    ) -> "MiniLMBradleyTerryReward":
        """A reward from a folder or a repository of the Hub; only safetensors and JSON are read.

        Args:
            folder_or_repo (`str`): what `save_pretrained` wrote, or `owner/name`.
            revision (`str`, *optional*): branch, tag or commit of the repository.
            token (`str`, *optional*): access token; that of `hf auth login` or `HF_TOKEN` by default.

        Raises:
            FileNotFoundError: if it is neither a folder nor the name of a repository.
            ValueError: if what is there is no reward, or is damaged.
            HubError: if the Hub refuses, or cannot be reached and the cache does not hold the reward.
        """
        path, name = Path(folder_or_repo), os.fspath(folder_or_repo)
        if path.is_dir():
            if revision is not None:
                raise ValueError(f"You gave the revision {revision!r} with the folder {path}, which has no revisions.")
            return cls(*read_reward(path, name))
        if isinstance(folder_or_repo, os.PathLike) or name.count("/") != 1 or name[0] in "./~" or name.endswith("/"):
            raise FileNotFoundError(f"{name} is neither a folder nor a Hub repository of the form owner/name.")
        weight, probe, record = read_reward(fetch_reward(name, revision, token), name)
        if not is_public(record.embedding):
            raise ValueError(
                f"The reward {name} names the embedding model {record.embedding!r}, which is no Hub id. It cannot be "
                "used from the Hub."
            )
        return cls(weight, probe, record)

    def push_to_hub(self, repo_id: str, token: str | None = None, private: bool | None = None) -> str:
        """Publishes the reward with a card: one commit, and none where the repository holds the same already.

        Args:
            repo_id (`str`): `owner/name`; made if it is not there.
            token (`str`, *optional*): access token; that of `hf auth login` or `HF_TOKEN` by default.
            private (`bool`, *optional*): make the repository private; public by default.

        Returns:
            `str`: address of the repository.

        Raises:
            ValueError: if `repo_id` cannot be one.
            NotPublishableError: if the embedding model is a local folder, or the record holds something private.
            HubError: if the repository holds something else, or the Hub refuses or does not answer.
        """
        from hf_lifealign.rewards.publishing import push_reward

        return push_reward(self.weight, self.probe, self.record, repo_id, token, bool(private))

    def __repr__(self) -> str:
        measured = "not measured" if self.record.accuracy is None else f"{self.record.accuracy:.3f}"
        return f"MiniLMBradleyTerryReward({self.__name__!r}, held-out accuracy {measured})"


def _rewards(vectors: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`vectors . weight` in float64, row by row, so that a reward does not depend on what else is in the batch."""
    return (vectors.double() * weight).sum(-1)


def _share(right: torch.Tensor) -> float:
    return float(right.double().mean())


def _divide(
    texts: PreferenceTexts, held_out: float | Preferences, template: str
) -> tuple[PreferenceTexts, PreferenceTexts | None]:
    """The pairs to fit on and those kept back, no prompt on both sides of a share."""
    if not isinstance(held_out, int | float) or isinstance(held_out, bool):
        if not isinstance(held_out, Iterable):
            raise ValueError(f"You set held_out={held_out!r}. Set a share from 0 to 1, or rows.")
        return texts, preference_texts(held_out, check_template(template))
    if not 0 <= held_out < 1:
        raise ValueError(f"You set held_out={held_out}. Set a share of the pairs, at least 0 and below 1, or rows.")
    wanted = round(held_out * len(texts))
    if held_out == 0:
        return texts, None
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(texts.prompts):
        rows.setdefault(hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest(), []).append(row)
    back: list[int] = []
    for digest in sorted(rows):
        if len(back) >= wanted:
            break
        back += rows[digest]
    fitted = sorted(set(range(len(texts))) - set(back))
    if not back or not fitted:
        raise ValueError(
            f"You set held_out={held_out} for {len(texts)} pairs with {len(rows)} prompts, which leaves nothing on one "
            "side. Set held_out=0, other rows for it, or give more pairs."
        )
    return texts.select(fitted), texts.select(sorted(back))
