"""Evaluates a run after each task, and keeps every result in a file of its own so that none is computed twice."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset

from hf_lifealign._files import read_json, write_json
from hf_lifealign._resources import resource_path
from hf_lifealign.judges import Judge, judge_name, resolve_judge
from hf_lifealign.lifelong.evaluation import (
    BESIDE,
    ROUTES,
    adapters_off,
    generate_answers,
    judge_results,
    margin_results,
)
from hf_lifealign.lifelong.matrix import PERPLEXITY
from hf_lifealign.lifelong.phases import REFERENCE_COLUMNS
from hf_lifealign.lifelong.references import ReferenceStore
from hf_lifealign.lifelong.scoring import EncodedPair, encode_pairs, score_pairs, text_perplexity
from hf_lifealign.strategies.registry import is_function_path

if TYPE_CHECKING:
    from hf_lifealign.lifelong.trainer import LifelongTrainer

_SAMPLES = "_samples"


class Examiner:
    """Evaluation of a run.

    Args:
        run ([`LifelongTrainer`]): the run.
        judges (`Mapping[str, Callable]`): the user's judges by name; those that the run's settings name are added.

    Raises:
        ValueError: if a judge stands twice, takes a reserved name, or `args.metric` is not measured.
        ImportError: if a judge cannot be imported.
    """

    def __init__(self, run: "LifelongTrainer", judges: Mapping[str, Judge]) -> None:
        self.run = run
        self.judges: dict[str, Judge] = dict(judges)
        named: dict[str, str] = {}
        for spec in run.args.judges:
            name, judge = _named_judge(spec)
            if name in named:
                raise ValueError(
                    f"You set the judges {named[name]!r} and {spec!r}, which are both measured as {name!r}. Leave one "
                    "out, or give its function another name."
                )
            if name in self.judges:
                raise ValueError(
                    f"The judge {name!r} is named in the settings and passed as an object. Do one of both."
                )
            named[name], self.judges[name] = spec, judge
        measured = ["preference_accuracy", "margin", *self.judges]
        if len(set(measured)) < len(measured):
            raise ValueError("A judge may not be called 'preference_accuracy' or 'margin'. Give it another name.")
        if run.args.metric not in measured:
            raise ValueError(
                f"You set metric={run.args.metric!r}. This run measures {measured}. Choose one of them, or add a judge "
                "of that name."
            )
        shared = run.args.reference_dir
        folder = Path(shared).expanduser() if shared else run.directory.references
        self.store = ReferenceStore(folder, run.is_main_process)
        self._credited: set[str] = set()
        self._routes: dict[str, int] = {}
        self._encoded: dict[str, tuple[Dataset, list[EncodedPair]]] = {}

    # References

    def _encode(self, rows: Dataset, key: str) -> list[EncodedPair]:
        cached = self._encoded.get(key)
        if cached is None or cached[0] is not rows:
            args = self.run.training_args
            mode = getattr(args, "truncation_mode", "keep_start")
            pairs = encode_pairs(rows, self.run.processing_class, getattr(args, "max_length", None), mode)
            cached = self._encoded[key] = (rows, pairs)
        return cached[1]

    def reference(self, rows: Dataset, key: str, for_training: bool = False) -> list[tuple[float, float]]:
        """Log-probabilities of rows under the untouched base, computed once per run. Every process has to call it.

        Args:
            rows (`datasets.Dataset`): preference rows.
            key (`str`): their name in the run, `"<task>-train"`, say.
            for_training (`bool`): compute them as the trainer computes the policy's: with its `ld_alpha`, and in its
                mixed precision, without which a margin that is zero would not look it.
        """
        run = self.run
        pairs = self._encode(rows, key)
        args = run.training_args
        ld_alpha = getattr(args, "ld_alpha", None) if for_training else None
        mixed = (torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None) if for_training else None
        base = run.state.content["settings"]["base_digest"]
        way = str(getattr(run.model.config, "_attn_implementation", None))
        words = (base, str(run.model.dtype), way, str(ld_alpha), str(mixed), run.pair_packing)

        def compute() -> list[tuple[float, float]]:
            run.progress.stage(f"reference · {key}")
            device = next(run.model.parameters()).device.type
            autocast = torch.autocast(device, mixed) if mixed is not None else nullcontext()
            with adapters_off(run.model), autocast:
                return score_pairs(
                    run.model, pairs, self._pad, run.args.eval_batch_size, ld_alpha, pair_packing=run.pair_packing
                )

        values = self.store.get(pairs, words, compute)
        if key not in self._credited:
            self._credited.add(key)
            run.progress.advance(len(pairs))
        return values

    def with_reference(self, rows: Dataset, key: str) -> Dataset:
        """Rows with columns of what [`Examiner.reference`] gives for training."""
        columns = zip(*self.reference(rows, key, for_training=True), strict=True)
        for name, column in zip(REFERENCE_COLUMNS, columns, strict=True):
            rows = rows.add_column(name, list(column))
        return rows

    def reference_pairs(self, rows: Dataset, key: str) -> tuple[list[EncodedPair], list[tuple[float, float]]]:
        """Rows as the trainer cuts them, and their log-probabilities as of [`Examiner.reference`]."""
        return self._encode(rows, key), self.reference(rows, key)

    @property
    def _pad(self) -> int:
        return int(self.run.processing_class.pad_token_id or 0)

    # Evaluation

    def examine(self, index: int) -> None:
        """Evaluates the model after task `index` on every task seen so far (or on all), and on general text."""
        run = self.run
        after = run.stream.names[index]
        names = run.stream.names if run.args.evaluate_all_tasks else run.stream.names[: index + 1]
        for name in names:
            self._examine_task(after, name)
        self._perplexity(after)

    def examine_base(self) -> None:
        """Evaluates the untouched base where that is asked for."""
        run = self.run
        with adapters_off(run.model):
            if run.args.evaluate_all_tasks:
                for name in run.stream.names:
                    self._examine_task(None, name)
            self._perplexity(None)
            path = run.directory.evaluation(None, _SAMPLES)
            if run.args.sample_prompts and not run.agreed(path.is_file()):
                self._write(path, {"answers": self._generate(self._sample_rows())})

    def _examine_task(self, after: str | None, name: str) -> None:
        run = self.run
        path = run.directory.evaluation(after, name)
        # the base is nobody's
        strategies = [] if after is None else run.strategies
        for strategy in strategies:
            strategy.before_evaluation(run, name)
        if not run.agreed(path.is_file()):
            run.progress.stage(f"after {after or 'nothing'} · evaluating {name}")
            test = run.stream[name].load().test
            pairs = self._encode(test, f"{name}-test")
            reference = self.reference(test, f"{name}-test")
            if after is None:
                run.progress.advance(len(pairs))
            self._routes = {}

            def score(kept: list[int]) -> list[tuple[float, float]]:
                return self._score([pairs[i] for i in kept], test.select(kept))

            results = margin_results(None if after is None else score, pairs, reference)
            if self._routes:
                results[ROUTES] = self._routes
            subset = test.select(range(min(len(test), run.args.judge_prompts)))
            results |= judge_results(self._generate if after is None else self._answer, subset, self.judges)
            self._write(path, results)
        else:
            run.progress.advance(len(run.stream[name].load().test))
        results = {name: value for name, value in read_json(path).items() if name not in BESIDE}
        for strategy in strategies:
            strategy.after_evaluation(run, name, results)

    def _parts(self, rows: Sequence[Mapping[str, Any]]) -> list[tuple[list[int], AbstractContextManager[None]]]:
        """Which rows' prompts are answered together, and the context in which the model is what answers them.

        Raises:
            ValueError: if several strategies route prompts.
        """
        run = self.run
        routed = [(s, found) for s in run.strategies if (found := s.routes(run, rows)) is not None]
        if len(routed) > 1:
            raise ValueError(
                f"The strategies {[s.name for s, _ in routed]} each say which view answers a prompt. Use one of them."
            )
        if not routed:
            return [(list(range(len(rows))), nullcontext())]
        strategy, names = routed[0]
        self._routes = {name: names.count(name) for name in sorted(set(names))}
        return [
            ([i for i, other in enumerate(names) if other == name], strategy.view(run, name))
            for name in sorted(set(names))
        ]

    def _score(self, pairs: list[EncodedPair], rows: Dataset) -> list[tuple[float, float]]:
        """Log-probabilities of chosen and rejected under the policy, of pairs and the rows they are of."""
        run = self.run
        scored: dict[int, tuple[float, float]] = {}
        for indices, context in self._parts(rows):
            with context:
                part = score_pairs(
                    run.model, [pairs[i] for i in indices], self._pad, run.args.eval_batch_size,
                    progress=run.progress.advance, pair_packing=run.pair_packing,
                )  # fmt: skip
            scored |= zip(indices, part, strict=True)
        return [scored[i] for i in range(len(pairs))]

    def _answer(self, rows: list[dict[str, Any]]) -> list[str]:
        """The policy's answers to the prompts of rows."""
        answers: dict[int, str] = {}
        for indices, context in self._parts(rows):
            with context:
                answers |= zip(indices, self._generate([rows[i] for i in indices]), strict=True)
        return [answers[i] for i in range(len(rows))]

    def _generate(self, rows: list[dict[str, Any]]) -> list[str]:
        """Answers of the model as it stands."""
        run = self.run
        return generate_answers(
            run.model, run.processing_class, rows, run.args.max_new_tokens, run.args.eval_batch_size
        )

    def _perplexity(self, after: str | None) -> None:
        run = self.run
        path = run.directory.evaluation(after, PERPLEXITY)
        if run.args.general_text == "none" or run.agreed(path.is_file()):
            return
        text = general_text(run.args.general_text)
        value = text_perplexity(run.model, run.processing_class, text, batch_size=run.args.eval_batch_size)
        self._write(path, {"perplexity": value, "text_sha256": self.general_text_digest()})

    def general_text_digest(self) -> str | None:
        """SHA-256 of the general text, or `None` if none is watched."""
        choice = self.run.args.general_text
        return None if choice == "none" else hashlib.sha256(general_text(choice).encode()).hexdigest()

    # Samples

    def _sample_rows(self) -> list[dict[str, Any]]:
        run = self.run
        rows: list[dict[str, Any]] = [{"prompt": prompt} for prompt in run.args.sample_prompts]
        if run.processing_class.chat_template is not None:
            rows = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
        return rows

    def sample_answers(self) -> None:
        """Answers the sample prompts with the final policy, beside the base's answers."""
        run = self.run
        path = run.directory.root / "samples.json"
        if not run.args.sample_prompts or run.agreed(path.is_file()):
            return
        before = read_json(run.directory.evaluation(None, _SAMPLES))["answers"]
        self._write(
            path, {"prompts": run.args.sample_prompts, "base": before, "after": self._answer(self._sample_rows())}
        )

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        if self.run.is_main_process:
            write_json(path, content)
        self.run.distributed.wait_for_everyone()


def _named_judge(spec: str) -> tuple[str, Judge]:
    """The judge that a text means, and under which name it is measured: that of its entry point, or of its function.

    Raises:
        ValueError, ImportError: see [`~hf_lifealign.judges.resolve_judge`].
    """
    judge = resolve_judge(spec)
    if not is_function_path(spec.strip()):
        return spec.strip(), judge
    name = judge_name(judge)
    # of an object it would be its settings, and of a lambda no name
    return name if name.isidentifier() else spec.strip().rpartition(":")[2].rpartition(".")[2], judge


def general_text(choice: str) -> str:
    """The text that `LifelongConfig.general_text` names."""
    path = resource_path("recipes", "general_text.txt") if choice == "default" else Path(choice).expanduser()
    return path.read_text(encoding="utf-8")
