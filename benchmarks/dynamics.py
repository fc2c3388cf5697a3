"""Do the measured forces foretell how fast a small model is aligned, turned back and aligned again?

python benchmarks/dynamics.py DATA [--kinds fixed ten diverse] [--seeds 0 1 2] [--steps 40]

DATA is a folder of preference tasks in TRL's format; its `harmless` prompts are asked for. A run trains SmolLM2-135M
with LoRA in three stages of `--steps`: to refuse (align), to comply (reverse), to refuse again (realign). What it
learns to refuse with is one sentence, ten, or one of 1728: narrow to wide. The judge is `refusal`; the score is the
probability of a refusal. Each stage writes `dynamics.jsonl`; a killed run goes on with the next stage. It ends with how
changes of log-odds that one half of the samples predicts correlate with what the other half measures, the rebound by
the width of the data, at the reversal and where the runs have the same score, and priming ratios, as table and pictures
in benchmarks/results/dynamics/.
"""

import argparse
import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import keep_settings, quiet
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from refusals import KINDS, complying, refusals, said
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from hf_lifealign import AlignmentDynamicsCallback, diversity_report
from hf_lifealign._files import write_json
from hf_lifealign.dynamics.agreement import agreement
from hf_lifealign.dynamics.findings import find
from hf_lifealign.dynamics.series import read_series
from hf_lifealign.metrics.alignment_dynamics import priming_ratio
from hf_lifealign.models import resolve_model
from hf_lifealign.report.drawing import drawing_style, save_png

RESULTS = Path(__file__).resolve().parent / "results" / "dynamics"
STAGES = ("align", "reverse", "realign")
# A score that all runs pass, at which their forces can be compared.
SAME = 0.4


class Bench:
    """What all runs share.

    Args:
        args (`argparse.Namespace`): settings of the command line.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.root = Path(args.output or RESULTS)
        told = {key: value for key, value in vars(args).items() if key not in ("kinds", "seeds", "output", "threads")}
        told["data"] = str(args.data)
        keep_settings(self.root, told)
        folder = resolve_model("embedded:smollm2-135m")
        self.folder, self.tokenizer = folder, AutoTokenizer.from_pretrained(folder)
        self.train, self.test = self._rows("train"), self._rows("test")

    def _rows(self, split: str) -> list[dict[str, Any]]:
        lines = (self.args.data / "harmless" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        return [row for row in rows if len(row["prompt"]) == 1 and len(row["prompt"][0]["content"]) < 200]

    def probes(self) -> list[dict[str, Any]]:
        return [{"prompt": row["prompt"]} for row in self.test[: self.args.probes]]

    def data(self, kind: str, stage: str, seed: int) -> Dataset:
        draws = np.random.default_rng((seed, STAGES.index(stage)))
        rows = [self.train[i] for i in draws.permutation(len(self.train))]
        if stage == "reverse":
            told = ((row["prompt"], complying(row, ("rejected", "chosen"))) for row in rows)
            found = [{"prompt": prompt, "completion": said(text)} for prompt, text in told if text is not None]
            return Dataset.from_list(found[: self.args.rows])
        texts = refusals(kind)
        return Dataset.from_list(
            [
                {
                    "prompt": row["prompt"],
                    "completion": said(texts[draws.integers(len(texts))]),
                }
                for row in rows[: self.args.rows]
            ]
        )

    def run(self, kind: str, seed: int) -> dict[str, list[dict[str, Any]]]:
        """The series of the three stages."""
        home = self.root / f"{kind}-{seed}"
        found, before = {}, None
        for stage in STAGES:
            folder = home / stage
            if not (folder / "done.json").is_file():
                self._train(folder, before, self.data(kind, stage, seed), seed)
                write_json(folder / "done.json", {})
            found[stage], before = read_series(folder), folder
        return found

    def _train(self, folder: Path, before: Path | None, rows: Dataset, seed: int) -> None:
        args = self.args
        base = AutoModelForCausalLM.from_pretrained(self.folder, dtype=getattr(torch, args.dtype))
        torch.manual_seed(seed)
        if before is None:
            model: Any = get_peft_model(base, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
        else:
            model = PeftModel.from_pretrained(base, str(before), is_trainable=True)
        watch = AlignmentDynamicsCallback(
            self.probes(), "refusal", every=args.every, anchor_every=args.anchor_every, force_batch=args.force_batch,
            samples=args.samples, max_new_tokens=args.tokens, seed=seed,
        )  # fmt: skip
        config = SFTConfig(
            str(folder), max_steps=args.steps, per_device_train_batch_size=args.batch, learning_rate=args.rate,
            lr_scheduler_type="constant", max_length=args.max_length, completion_only_loss=True, seed=seed,
            logging_steps=10, report_to=[], save_strategy="no", use_cpu=True, bf16=False, gradient_checkpointing=False,
            disable_tqdm=True,
        )  # fmt: skip
        trainer = SFTTrainer(model, args=config, train_dataset=rows, processing_class=self.tokenizer, callbacks=[watch])
        watch.trainer = trainer
        trainer.train()
        trainer.save_model()


def correlations(runs: dict[tuple[str, int], dict[str, list[dict[str, Any]]]]) -> dict[str, dict[str, Any]]:
    """How predicted and measured changes of log-odds agree over all runs, with intervals by a bootstrap over anchors.

    The headline is `cross`: one half of an anchor's samples predicts what the other half measures. Pairs on the same
    samples agree whatever the judge says; they tell whether first order holds (`linearisation`).
    """
    pairs: dict[str, list[tuple[float, float, int]]] = {
        name: []
        for name in (
            "cross",
            "cross_at_every_checkpoint",
            "linearisation",
            "linearisation_at_every_checkpoint",
            "trapezoid",
            "fresh",
        )
    }
    anchors: dict[tuple[Any, ...], int] = {}
    for key, stages in runs.items():
        for stage, series in stages.items():
            for change in find(series).changes:
                if change.doubt is not None:  # the rarer side stands in too few probes for an interval
                    continue
                anchor = anchors.setdefault((*key, stage, change.since), len(anchors))
                told: dict[str, list[tuple[float | None, float | None]]] = {
                    "linearisation_at_every_checkpoint": [(change.predicted, change.measured)],
                    "cross_at_every_checkpoint": [*change.cross],
                }
                if change.last:
                    told |= {
                        "cross": [*change.cross],
                        "linearisation": [(change.predicted, change.measured)],
                        "trapezoid": [(change.trapezoid, change.measured)],
                        "fresh": [(change.predicted, change.fresh)],
                    }
                for name, found in told.items():
                    pairs[name] += [(x, y, anchor) for x, y in found if x is not None and y is not None]
    names = ("the predicted change", "the measured change")
    table = {}
    for name, rows in pairs.items():
        x, y, groups = [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]
        table[name] = asdict(agreement(x, y, groups, names=names))
    return table


def curve(series: list[dict[str, Any]]) -> tuple[list[int], list[float]]:
    """Steps and scores."""
    told = [(entry["step"], entry["score"]["score"]) for entry in series if "score" in entry]
    return [step for step, _ in told], [score for _, score in told]


def forces_at(series: list[dict[str, Any]], target: float) -> dict[str, float] | None:
    """Drive and rebound where the score first passes a target, in log-odds a step, between two measurements of them;
    `None` if it does not pass."""
    told = [(e["score"]["score"], e["forces"]) for e in series if "rebound" in e.get("forces", {})]
    for (one, before), (other, after) in itertools.pairwise(told):
        if one != other and min(one, other) <= target <= max(one, other):
            part = (target - one) / (other - one)
            return {key: before[key] + part * (after[key] - before[key]) for key in ("drive", "rebound")}
    return None


def report(bench: Bench, runs: dict[tuple[str, int], dict[str, list[dict[str, Any]]]]) -> None:
    """Prints and writes what the runs show."""
    table: dict[str, Any] = {
        "correlation_of_predicted_and_measured": correlations(runs),
        "runs": [],
    }
    for (kind, seed), stages in runs.items():
        steps, scores = curve(stages["align"])
        again_steps, again = curve(stages["realign"])
        primed = priming_ratio((steps, scores), (again_steps, again), target=0.5)
        first = next((e for e in stages["reverse"] if "forces" in e), {})
        table["runs"].append(
            {
                "kind": kind, "seed": seed, "aligned": max(scores), "reversed": curve(stages["reverse"])[1][-1],
                "realigned": max(again), "forces_at_reversal": first.get("forces"),
                "forces_at_same_score": {stage: forces_at(series, SAME) for stage, series in stages.items()},
                "narrowness_at_reversal": first.get("narrowness"), "priming": primed.to_json(),
                "diversity": diversity_report(bench.data(kind, "align", seed).to_list(), column="completion").to_json(),
            }
        )  # fmt: skip
    write_json(bench.root / "table.json", table)
    draw(bench, runs, table)
    print(json.dumps({key: value for key, value in table.items() if key != "runs"}, indent=1))
    for row in table["runs"]:
        print(json.dumps({key: value for key, value in row.items() if key != "diversity"}))


def draw(bench: Bench, runs: dict[tuple[str, int], dict[str, list[dict[str, Any]]]], table: dict[str, Any]) -> None:
    """Scores through the three stages, predicted against measured changes, and the rebound at the reversal."""
    import matplotlib.pyplot as plt

    told = table["correlation_of_predicted_and_measured"]["cross"]
    with drawing_style():
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4), constrained_layout=True)
        for (kind, seed), stages in runs.items():
            colour = f"C{KINDS.index(kind)}"
            points = [
                change.cross
                for stage in STAGES
                for change in find(stages[stage]).changes
                if change.last and not change.doubt
            ]
            x, y = ([pair[i] for cross in points for pair in cross] for i in (0, 1))
            middle.plot(x, y, ".", color=colour, alpha=0.5)
            for number, stage in enumerate(STAGES):
                steps, scores = curve(stages[stage])
                label = kind if not number and seed == min(s for k, s in runs if k == kind) else None
                left.plot([number * bench.args.steps + step for step in steps], scores, color=colour, label=label)
            for place, stage in enumerate(("align", "reverse")):
                forces = forces_at(stages[stage], SAME)
                if forces is not None:
                    right.plot([KINDS.index(kind) + 0.2 * place - 0.1], [forces["rebound"]], "os"[place], color=colour)
        left.set(xlabel="step", ylabel="score", title="Aligned, reversed, aligned again", ylim=(-0.02, 1.02))
        left.legend()
        value, low, high = (told.get(key) for key in ("correlation", "low", "high"))
        agreed = "no correlation" if value is None else f"r = {value:.2f}"
        agreed += "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"
        middle.axline((0, 0), slope=1, color="0.7", linewidth=1)
        middle.set(
            xlabel="predicted by one half", ylabel="measured on the other", title=f"Change of log-odds: {agreed}"
        )
        right.axhline(0, color="0.7", linewidth=1)
        title = f"Rebound at a score of {SAME}: aligning (o), reversing (□)"
        right.set(ylabel="log-odds a step", title=title, xlim=(-0.5, len(KINDS) - 0.5))
        right.set_xticks(range(len(KINDS)), KINDS)
        save_png(figure, bench.root / "dynamics.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of preference tasks")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of a stage")
    parser.add_argument("--rows", type=int, default=320, help="training rows of a stage")
    parser.add_argument("--batch", type=int, default=8, help="rows of a step")
    parser.add_argument("--max-length", type=int, default=160, help="longest row, in tokens")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the base")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate")
    parser.add_argument("--every", type=int, default=2)
    parser.add_argument("--anchor-every", type=int, default=4)
    parser.add_argument("--probes", type=int, default=24)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=16, help="longest answer")
    parser.add_argument("--force-batch", type=int, default=32)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    quiet(args.threads)
    bench = Bench(args)
    runs = {}
    for seed in args.seeds:
        for kind in args.kinds:
            runs[kind, seed] = bench.run(kind, seed)
            told = {stage: curve(series)[1][-1] for stage, series in runs[kind, seed].items()}
            print(f"{kind} {seed}: score at the end of each stage {told}", flush=True)
    report(bench, runs)


if __name__ == "__main__":
    main()
