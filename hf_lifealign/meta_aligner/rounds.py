"""The answers that are trained on: generated under preferences, rated, cached, and chosen."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from hf_lifealign._files import read_json, remove_folder, write_json
from hf_lifealign.meta_aligner.buffers import (
    Answer,
    AnswerCache,
    Buffer,
    as_json,
    from_json,
    rewards_of,
    shares,
)
from hf_lifealign.meta_aligner.config import MetaAlignerConfig
from hf_lifealign.meta_aligner.identity import digest_of
from hf_lifealign.meta_aligner.policy import MetaAlignedPolicy
from hf_lifealign.meta_aligner.preferences import RewardStatistics
from hf_lifealign.meta_aligner.selection import select
from hf_lifealign.meta_aligner.storage import canonical

if TYPE_CHECKING:
    from trl import RLOOTrainer

    _Base = RLOOTrainer
else:
    _Base = object

logger = logging.getLogger(__name__)

# The leading underscore keeps it out of what a trainer uploads.
CACHE = "_rounds"
CHECKPOINT_FILE = "meta_aligner_rounds.json"


class RoundsMixin(_Base):
    """Mixin for a TRL trainer that generates: its buffers of rated answers.

    What it needs of the trainer: `policy`, `args`, `prompt_rows` and `offline_rows` (lists of examples),
    `offline_tokens`, `prompt_lengths`, `_reward_code`, and TRL's `_generate` and `_calculate_rewards`.
    """

    policy: MetaAlignedPolicy
    args: MetaAlignerConfig
    prompt_rows: Sequence[dict[str, Any]]
    offline_rows: Sequence[dict[str, Any]]
    offline_tokens: list[tuple[list[int], list[int]]]
    prompt_lengths: list[int]
    _reward_code: list[Any]
    _logs: dict[str, Any]

    def adapter_tensors(self) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def _reset_rounds(self) -> None:
        self._offline_answers: list[Answer] | None = None
        self._offline_buffer: Buffer | None = None
        self._round_answers: list[Answer] | None = None
        self._round_buffer: Buffer | None = None
        self._round = 0
        self._feature_tables: dict[str, torch.Tensor] = {}

    # Features

    def features(self, kind: str, indices: Sequence[int]) -> torch.Tensor:
        """Features of prompts of `"train"` or `"offline"`, `torch.Tensor` of shape `(indices, width)`.

        A frozen encoder reads each prompt once.
        """
        rows = self.prompt_rows if kind == "train" else self.offline_rows
        if self.policy.encoder.trainable:
            return self.policy.encoder.encode([rows[i]["prompt"] for i in indices])
        if kind not in self._feature_tables:
            self._feature_tables[kind] = self.policy.encode([row["prompt"] for row in rows])
        return self._feature_tables[kind][torch.as_tensor(list(indices))]

    # Buffers

    def offline_buffer(self) -> Buffer:
        """The offline set, rated; its statistics become those of the rewards."""
        if self._offline_buffer is None:
            if self._offline_answers is None:
                rows = self.offline_rows
                public = [self._public(row) for row in rows]
                fingerprint = digest_of(*map(canonical, (self._rated_by(), public, self.offline_tokens)))
                self._offline_answers = self._collect(
                    "offline", fingerprint, "rating the offline set", list(range(len(rows))), self._rate_offline
                )
            if self.policy.statistics is None or self._statistics_are_old:
                self._take_statistics(self._offline_answers)
            self._offline_buffer = self._rated(self._offline_answers, "the offline set")
        return self._offline_buffer

    def round_buffer(self, number: int) -> Buffer:
        """The answers of a round: generated when it is first asked for, then kept until the next one."""
        if self._round != number or self._round_buffer is None:
            if self._round != number or self._round_answers is None:
                if self.offline_rows:
                    self._ensure_statistics()
                self._round_answers = self._generate_round(number)
                self._round = number
                if self.policy.statistics is None or self._statistics_are_old:
                    self._take_statistics(self._round_answers)
                fresh = True
            else:
                fresh = False
            self._round_buffer = self._choose(self._round_answers)
            if fresh:
                self._log_round(self._round_answers, self._round_buffer)
        return self._round_buffer

    def _ensure_statistics(self) -> None:
        """Takes the statistics that rewards are z-scored by, if there are none yet for all objectives."""
        if self.policy.statistics is None or self._statistics_are_old:
            if self.offline_rows:
                self.offline_buffer()
            else:
                self.round_buffer(1)

    def _take_statistics(self, answers: list[Answer]) -> None:
        found = RewardStatistics.of(rewards_of(answers))
        known = self.policy.statistics
        self.policy.statistics = known.grow(found) if known is not None else found
        constant = [self.policy.objective_names[i] for i in self.policy.statistics.constant()]
        if constant and self.is_world_process_zero():
            logger.warning(
                f"The rewards {constant} gave every answer the same value, so that they cannot tell answers apart. "
                "Their z-score is taken as 0 throughout."
            )

    @property
    def _statistics_are_old(self) -> bool:
        """Whether objectives have been added since the statistics were taken."""
        known = self.policy.statistics
        return known is not None and len(known.mean) < len(self.policy.objective_names)

    def _rated(self, answers: list[Answer], what: str) -> Buffer:
        assert self.policy.statistics is not None
        rewards = rewards_of(answers)
        buffer = Buffer.of(answers, self.policy.statistics, self.args.tau)
        missing = len(answers) - len(buffer.kept)
        if missing and self.is_world_process_zero():
            names = [n for n, gone in zip(self.policy.objective_names, rewards.isnan().any(0), strict=True) if gone]
            logger.warning(f"{missing} of {len(answers)} answers of {what} are left out: not rated by {names}.")
        return buffer

    def _choose(self, answers: list[Answer]) -> Buffer:
        buffer = self._rated(answers, f"round {self._round}")
        rated = torch.tensor(buffer.kept)
        weights = torch.tensor([answers[i].weights for i in buffer.kept])
        prompts = torch.tensor([answers[i].prompt for i in buffer.kept])
        args = self.args
        chosen = select(buffer.scores[rated], weights, prompts, args.rho, args.selection, args.scope)
        buffer.kept = rated[chosen].tolist()
        return buffer

    # Generating and rating

    def round_prompts(self, number: int) -> list[int]:
        """Which prompts round `number` (from 1) answers: they take turns in a seeded order."""
        count = len(self.prompt_rows)
        wanted = min(self.args.prompts_per_round or count, count)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.args.seed)).tolist()
        first = (number - 1) * wanted
        return sorted(order[(first + i) % count] for i in range(wanted))

    def _generate_round(self, number: int) -> list[Answer]:
        prompts = self.round_prompts(number)
        weights = self._generating_weights(number, prompts)
        # alike in length, so that a batch has little padding
        lengths = self.prompt_lengths
        order = sorted(range(len(prompts)), key=lambda i: (lengths[prompts[i]], prompts[i]))
        items = [i for i in order for _ in range(self.args.num_generations or 1)]

        def answer(batch: Sequence[int], index: int) -> list[Answer]:
            rows = [prompts[i] for i in batch]
            return self._answer(rows, weights[torch.tensor(batch)], f"{number}/{index}")

        fingerprint = self._round_fingerprint(number, prompts, weights)
        batch = (self.args.generation_batch_size or 1) // self.accelerator.num_processes
        answers = self._collect(f"round-{number}", fingerprint, f"round {number}", items, answer, max(batch, 1))
        self._remove_round(number - 1)
        return answers

    def _generating_weights(self, number: int, prompts: Sequence[int]) -> torch.Tensor:
        """Preferences under which a round's prompts are answered, `torch.Tensor` of shape `(prompts, objectives)`."""
        count = len(self.policy.objective_names)
        source = self.args.weight_source
        if source == "uniform":
            return torch.full((len(prompts), count), 1.0 / count)
        if source == "random":
            generator = torch.Generator().manual_seed(self.args.seed * 7919 + number)
            # exponentials divided by their sum are uniform on the simplex
            drawn = torch.empty(len(prompts), count).exponential_(generator=generator)
            return drawn / drawn.sum(-1, keepdim=True)
        with torch.no_grad():
            return self.policy.weight_net(self.features("train", prompts)).cpu()

    def _round_fingerprint(self, number: int, prompts: Sequence[int], weights: torch.Tensor) -> str:
        args = self.args
        settings = {
            "round": number,
            "seed": args.seed,
            "generation": self.generation_kwargs,
            "generations": args.num_generations,
            "base": self.policy.settings()["base_model"],
            "rewards": self._rated_by(),
            "prompts": [self._public(self.prompt_rows[i]) for i in prompts],
        }
        tensors = {**self.policy.tensors(), **self.adapter_tensors()}
        return digest_of(canonical(settings), weights, *(part for item in sorted(tensors.items()) for part in item))

    def _rated_by(self) -> list[Any]:
        return [list(self.reward_func_names), self._reward_code]

    @staticmethod
    def _public(row: dict[str, Any]) -> Any:
        return {key: row[key] for key in sorted(row)}

    def _answer(self, rows: Sequence[int], weights: torch.Tensor, name: str) -> list[Answer]:
        """Generates and rates one answer to each of `rows` (repeated for several), under `weights`."""
        examples = [self.prompt_rows[i] for i in rows]
        prompts = [example["prompt"] for example in examples]
        with self._seeded(name), self.policy.conditioning.given(weights.to(self.accelerator.device)):
            prompt_ids, completion_ids, completions = self._generate(prompts)
        rewards = self._rewards_here(examples, prompts, completions, completion_ids)
        return [
            Answer(row, list(p), list(c), r, w)
            for row, p, c, r, w in zip(rows, prompt_ids, completion_ids, rewards, weights.tolist(), strict=True)
        ]

    def _rate_offline(self, rows: Sequence[int], index: int) -> list[Answer]:
        examples = [self.offline_rows[i] for i in rows]
        tokens = [self.offline_tokens[i] for i in rows]
        prompts = [example["prompt"] for example in examples]
        completions = [example["completion"] for example in examples]
        rewards = self._rewards_here(examples, prompts, completions, [list(ids) for _, ids in tokens])
        return [Answer(row, list(p), list(c), r, []) for row, (p, c), r in zip(rows, tokens, rewards, strict=True)]

    def _rewards_here(self, examples: Any, prompts: Any, completions: Any, completion_ids: Any) -> list[list[float]]:
        """The rewards of this process's answers, as TRL calculates them."""
        gathered = self._calculate_rewards(examples, prompts, completions, completion_ids)
        if torch.isinf(gathered).any():
            row, k = torch.isinf(gathered).nonzero()[0].tolist()
            raise ValueError(
                f"The reward {self.policy.objective_names[k]!r} returned {gathered[row, k].item()} for an answer. "
                "Return a finite number, or None to leave an answer out."
            )
        rank, count = self.accelerator.process_index, len(prompts)
        return gathered[rank * count : (rank + 1) * count].tolist()

    @contextlib.contextmanager
    def _seeded(self, name: str) -> Iterator[None]:
        """Randomness that the run's seed and a name alone decide; that of the training is left as it was."""
        rank = self.accelerator.process_index
        seed = int(digest_of(self.args.seed, rank, name)[:12], 16)
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield

    def _collect(
        self,
        name: str,
        fingerprint: str,
        title: str,
        items: list[int],
        work: Callable[[Sequence[int], int], list[Answer]],
        batch: int = 64,
    ) -> list[Answer]:
        """The answers of all `items`, made batch by batch on all processes; what is in the cache is not made again."""
        process = self.accelerator
        plan = shares(len(items), batch, process.num_processes, process.process_index)
        # which answers a part holds depends on how they are shared out
        fingerprint = digest_of(fingerprint, process.num_processes, batch)
        cache = AnswerCache(Path(str(self.args.output_dir)) / CACHE / name, fingerprint, process.process_index,
                            process.is_main_process)  # fmt: skip
        process.wait_for_everyone()
        # they work in step, so that all go on from where the slowest was
        finished = min(gather_object([min(cache.finished(), len(plan))]))
        own: list[Answer] = []
        told: list[dict[str, list[float]]] = []
        metrics = {mode: {k: list(v) for k, v in found.items()} for mode, found in self._metrics.items()}
        seen = self.state.num_input_tokens_seen
        bar = tqdm(total=len(plan), desc=title, unit="batch", dynamic_ncols=True,
                   disable=self.args.disable_tqdm or not process.is_main_process)  # fmt: skip
        with bar:
            for index, (positions, count) in enumerate(plan):
                if index < finished:
                    answers, logged = cache.read(index)
                else:
                    answers = work([items[i] for i in positions], index)[:count]
                    logged = self._take_user_metrics()
                    cache.write(index, answers, logged)
                own += answers
                told.append(logged)
                bar.update()
        # TRL counts what it has just generated; a resumed round has to log the same as an undisturbed one
        for mode, before in metrics.items():
            self._metrics[mode].clear()
            self._metrics[mode].update(before)
        self.state.num_input_tokens_seen = seen
        self._log_user_metrics(told, "train")
        answers = sorted(gather_object(own), key=lambda answer: answer.prompt)
        if not torch.isfinite(rewards_of(answers)).all(-1).any():
            if process.is_main_process:
                remove_folder(cache.folder)  # or they would be read again when the rewards are mended
            raise ValueError(
                f"Not one of the {len(answers)} answers ({title}) was rated by every reward function, so that nothing "
                "is left to train on. None leaves an answer out; return numbers."
            )
        return answers

    def _take_user_metrics(self) -> dict[str, list[float]]:
        """What reward functions have told TRL's `log_metric` since the last call."""
        found = {name: [float(value) for value in values] for name, values in self._pending_metrics.items()}
        self._pending_metrics.clear()
        self._pending_extra_logs.clear()
        return found

    def _log_user_metrics(self, told: Sequence[dict[str, list[float]]], mode: str) -> None:
        """Logs the means of what reward functions told on all processes."""
        everyone = gather_object(list(told))
        for name in sorted({name for part in everyone for name in part}):
            values = [value for part in everyone for value in part.get(name, ())]
            self._metrics[mode][name].append(sum(values) / len(values))

    def _remove_round(self, number: int) -> None:
        if self.is_world_process_zero():
            remove_folder(Path(str(self.args.output_dir)) / CACHE / f"round-{number}")

    def _remove_rounds(self) -> None:
        """Ends a training: another one in the same folder has nothing to go on with."""
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            remove_folder(Path(str(self.args.output_dir)) / CACHE)

    def _log_round(self, answers: list[Answer], buffer: Buffer) -> None:
        """Logs a round once, when it has been generated, under TRL's names where there are some."""
        metrics = self._metrics["train"]
        lengths = torch.tensor([len(a.completion_ids) for a in answers]).float()
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        cut = [a.completion_ids[-1] not in ends if a.completion_ids else False for a in answers]
        self.state.num_input_tokens_seen += sum(len(a.prompt_ids) + len(a.completion_ids) for a in answers)
        metrics["num_tokens"] = [self.state.num_input_tokens_seen]
        metrics["completions/mean_length"].append(lengths.mean().item())
        metrics["completions/min_length"].append(lengths.min().item())
        metrics["completions/max_length"].append(lengths.max().item())
        metrics["completions/clipped_ratio"].append(sum(cut) / len(cut))
        rewards, weights = rewards_of(answers), torch.tensor([a.weights for a in answers])
        for k, name in enumerate(self.policy.objective_names):
            rated = rewards[:, k][~rewards[:, k].isnan()]
            metrics[f"rewards/{name}/mean"].append(rated.mean().item())
            metrics[f"rewards/{name}/std"].append(rated.std(correction=0).item())
            metrics[f"preference/{name}"].append(weights[:, k].mean().item())
        inner = (buffer.scores * weights).sum(-1)
        metrics["reward/inner_product"].append(inner.nanmean().item())
        metrics["reward/inner_product_kept"].append(inner[buffer.kept].mean().item())
        metrics["round"] = [float(self._round)]
        metrics["kept"].append(len(buffer.kept) / len(answers))
        if self.accelerator.is_main_process and self.log_completions:
            self._show_completions(answers, inner)

    def _show_completions(self, answers: list[Answer], inner: torch.Tensor) -> None:
        """Fills TRL's table of completions; its column of advantages shows the inner product."""
        for answer, merit in zip(answers, inner.tolist(), strict=True):
            self._logs["prompt"].append(self.prompt_rows[answer.prompt]["prompt"])
            text = self._tokenizer.decode(answer.completion_ids, skip_special_tokens=True)
            conversational = isinstance(self.prompt_rows[answer.prompt]["prompt"], list)
            self._logs["completion"].append([{"role": "assistant", "content": text}] if conversational else text)
            for name, reward in zip(self.reward_func_names, answer.rewards, strict=True):
                self._logs["rewards"][name].append(reward)
            self._logs["advantages"].append(merit)

    # Checkpoints

    def _save_rounds(self, folder: Path) -> None:
        """What a checkpoint needs to go on inside a round or the pre-training."""
        content = {
            "offline": None
            if self._offline_answers is None
            else [r["rewards"] for r in as_json(self._offline_answers)],
            "round": self._round,
            "answers": None if self._round_answers is None else as_json(self._round_answers),
        }
        write_json(folder / CHECKPOINT_FILE, content)

    def _load_rounds(self, folder: Path) -> None:
        content = read_json(folder / CHECKPOINT_FILE)
        self._reset_rounds()
        if content["offline"] is not None:
            tokens = [{"prompt_ids": list(p), "completion_ids": list(c)} for p, c in self.offline_tokens]
            self._offline_answers = from_json(
                [
                    {"prompt": i, "rewards": rewards, "weights": [], **tokens[i]}
                    for i, rewards in enumerate(content["offline"])
                ]
            )
        if content["answers"] is not None:
            self._round, self._round_answers = content["round"], from_json(content["answers"])
