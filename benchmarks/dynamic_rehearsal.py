"""Does rehearsal that follows the measured forces forget as little as a fixed share, with fewer replayed rows?

python benchmarks/dynamic_rehearsal.py DATA [--order harmless helpful] [--answers refusals] [--seeds 0 1 2]

DATA is a folder of preference tasks in TRL's format (DATA/harmless/train.jsonl, DATA/harmless/test.jsonl, ...). A life
of SmolLM2-135M with plain LoRA and DPO learns the first task, and goes on from there with the second one in three arms
of as many steps: `none` replays nothing, `fixed` a fifth of the first task's rows in the published way, `dynamic` what
the forces on the first task's score ask for: how surely its pairs are ranked right, or with `--watch judge` the score
that is told below.

With `--answers refusals` the prompts are the data's, and the conflict is plain: the first task prefers a refusal to an
answer, the second one an answer to a refusal, each with an SFT term on what it prefers. The score is the share of
answers to the first task's prompts that refuse. With `--answers own` the pairs are the data's, and the score is the
share of answers that a Bradley-Terry head, fitted on the first task, finds better than the base's usual answer.

Forgetting is what the first task loses of its preference accuracy and margin on held-out pairs, and of its score, while
the second one is learnt. A killed run goes on where it was. It ends with a table, paired bootstrap intervals over pairs
and probes, and a picture in benchmarks/results/dynamic_rehearsal/.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import keep_settings, quiet
from datasets import Dataset
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel
from refusals import complying, refusals, said
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_lifealign import (
    FPOConfig,
    FPOTrainer,
    LifelongConfig,
    LifelongTrainer,
    MiniLMBradleyTerryReward,
    Task,
    TaskStream,
)
from hf_lifealign._files import read_json, write_json
from hf_lifealign.dynamics.likelihood import undisturbed
from hf_lifealign.dynamics.measuring import AlignmentMeter
from hf_lifealign.dynamics.samples import read_probes
from hf_lifealign.judges import Judge, RewardJudge, refusal
from hf_lifealign.lifelong.scoring import encode_pairs, score_pairs
from hf_lifealign.models import resolve_model
from hf_lifealign.report.drawing import drawing_style, save_png
from hf_lifealign.strategies.dynamic_replay import DynamicReplayStrategy

RESULTS = Path(__file__).resolve().parent / "results" / "dynamic_rehearsal"
ARMS = ("none", "fixed", "dynamic")
BATCH = 4
_Array = NDArray[np.float64]


class Bench:
    """What all arms share.

    Args:
        args (`argparse.Namespace`): settings of the command line.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.root = Path(args.output or RESULTS) / "-".join([*args.order, args.answers])
        free = ("arms", "seeds", "output", "threads")
        told = {key: str(value) if key == "data" else value for key, value in vars(args).items() if key not in free}
        keep_settings(self.root, told)
        self.folder = resolve_model("embedded:smollm2-135m")
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.data = {name: {split: self._rows(name, split) for split in ("train", "test")} for name in args.order}
        self.judge: Judge = refusal if args.answers == "refusals" else self._judge(args.order[0])

    def _rows(self, task: str, split: str) -> list[dict[str, Any]]:
        """Short rows of one turn, in an order of their own."""
        lines = (self.args.data / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        found = []
        for row in map(json.loads, lines):
            longest = max(len(row[side][-1]["content"]) for side in ("chosen", "rejected"))
            if len(row["prompt"]) == 1 and len(row["prompt"][0]["content"]) + longest < self.args.characters:
                found.append({key: row[key] for key in ("prompt", "chosen", "rejected")})
        draws = np.random.default_rng(0)
        order = draws.permutation(len(found))
        rows = [found[i] for i in order]
        if self.args.answers == "refusals":
            rows = self._opposed(task == self.args.order[0], rows, draws)
        return rows[: self.args.rows if split == "train" else self.args.tests]

    @staticmethod
    def _opposed(refuse: bool, rows: list[dict[str, Any]], draws: np.random.Generator) -> list[dict[str, Any]]:
        """A refusal against what complies, or the other way round."""
        texts, found = refusals("diverse"), []
        for row in rows:
            text = complying(row, ("rejected", "chosen") if refuse else ("chosen", "rejected"))
            if text is not None:
                sides = [said(texts[draws.integers(len(texts))]), said(text)]
                chosen, rejected = sides if refuse else reversed(sides)
                found.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected})
        return found

    def _judge(self, task: str) -> RewardJudge:
        """A reward fitted on the task, and the median of the base's answers as what it has to exceed."""
        folder = self.root / "reward"
        if not (folder / "reward.json").is_file():
            lines = (self.args.data / task / "train.jsonl").read_text(encoding="utf-8").splitlines()
            tests = (self.args.data / task / "test.jsonl").read_text(encoding="utf-8").splitlines()
            held_out = list(map(json.loads, tests))
            MiniLMBradleyTerryReward.fit(list(map(json.loads, lines)), name=task, held_out=held_out).save_pretrained(
                folder
            )
        reward = MiniLMBradleyTerryReward.from_pretrained(folder)
        print(f"reward {task}: held-out accuracy {reward.metadata['accuracy']:.3f}", flush=True)
        file = self.root / "threshold.json"
        if not file.is_file():
            rewards: list[float] = []

            def note(prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]) -> list[float]:
                rewards.extend(reward(prompts=prompts, completions=answers))
                return [0.0] * len(answers)

            model = self.model()
            with undisturbed(model):
                self.meter(note).draw(model, 0)
            write_json(file, {"threshold": float(np.median(rewards))})
        return RewardJudge(reward, threshold=float(read_json(file)["threshold"]))

    def meter(self, judge: Judge) -> AlignmentMeter:
        probes = read_probes(self.data[self.args.order[0]]["test"], limit=self.args.probes)
        return AlignmentMeter(probes, judge, self.tokenizer, 4, self.args.tokens, seed=1)

    def model(self, adapter: Path | None = None) -> Any:
        base = AutoModelForCausalLM.from_pretrained(self.folder, dtype=getattr(torch, self.args.dtype))
        return base.eval() if adapter is None else PeftModel.from_pretrained(base, str(adapter)).eval()

    # Lives

    def live(self, folder: Path, seed: int, tasks: int, strategies: list[Any], continue_from: Path | None) -> None:
        args = self.args
        stream = TaskStream(
            [
                # what is reported is measured in `measure`; a life asks for held-out rows too, and scores them often
                Task(name, Dataset.from_list(self.data[name]["train"]), Dataset.from_list(self.data[name]["test"][:8]))
                for name in args.order[:tasks]
            ]
        )
        steps = args.steps if continue_from or args.first_steps is None else args.first_steps
        # gamma 0 and the policy at the start as the reference: DPO, in packed rows
        training = FPOConfig(
            "unused", max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=args.rate, use_cpu=True,
            lr_scheduler_type="constant", max_length=128, logging_steps=5, bf16=False, gradient_checkpointing=False,
            disable_tqdm=True, loss_type=["sigmoid", "sft"] if args.answers == "refusals" else ["sigmoid"],
            focal_gamma=0.0, reference="previous",
        )  # fmt: skip
        config = LifelongConfig(
            str(folder), seed=seed, strategies=strategies, general_text="none", disable_tqdm=True,
            checkpoint_steps=20, continue_from=None if continue_from is None else str(continue_from),
        )  # fmt: skip
        LifelongTrainer(
            "embedded:smollm2-135m", config, stream, processing_class=self.tokenizer, trainer_class=FPOTrainer,
            training_args=training, model_init_kwargs={"dtype": args.dtype},
            peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        ).train()  # fmt: skip

    def strategies(self, arm: str) -> list[Any]:
        if arm == "none":
            return []
        if arm == "fixed":
            return [{"name": "replay", "fraction": 0.2}]
        args = self.args
        judge = self.judge if args.watch == "judge" else "preference"
        return [
            DynamicReplayStrategy(
                {args.order[0]: judge}, fraction=0.2, tolerance=args.tolerance, keep=args.keep, every=args.every,
                probes=16, samples=args.samples, max_new_tokens=args.tokens, force_rows=16, booster_steps=5,
            )
        ]  # fmt: skip

    def run(self, seed: int, arms: list[str]) -> dict[str, dict[str, Any]]:
        """What each arm, and the model before it, came to."""
        home = self.root / f"seed-{seed}"
        first = home / "first" / "adapters" / f"01-{self.args.order[0]}"
        if not (home / "first" / "done.json").is_file():
            self.live(home / "first", seed, 1, self.strategies("dynamic"), None)
            write_json(home / "first" / "done.json", {})
        found = {"first": self.measure(home / "first", first)}
        for arm in arms:
            folder = home / arm
            if not (folder / "done.json").is_file():
                self.live(folder, seed, 2, self.strategies(arm), first)
                write_json(folder / "done.json", {})
            found[arm] = self.measure(folder, folder / "adapters" / f"02-{self.args.order[1]}")
            record = read_json(folder / "state.json")["tasks"][1]["record"]["phases"][-1]
            rows = record["train_rows"] + record["replay_rows"]
            drawn = record["steps"] * BATCH * record["replay_rows"] / rows
            found[arm] |= {"replayed": record.get("rehearsal", {}).get("drawn_rehearsed", drawn), "record": record}
            numbers = {key: float(np.mean(found[arm][key])) for key in ("margins", "learnt", "scores")}
            print(f"seed {seed} {arm}: {numbers}, replayed {found[arm]['replayed']:.0f}", flush=True)
        return found

    def measure(self, folder: Path, adapter: Path) -> dict[str, Any]:
        """Margins of held-out pairs of both tasks, in nats against the base, and scores of the first task's probes."""
        file = folder / "measured.json"
        if not file.is_file():
            model, base = self.model(adapter), self.model()
            told: dict[str, Any] = {}
            for key, task in zip(("margins", "learnt"), self.args.order, strict=True):
                pairs = encode_pairs(Dataset.from_list(self.data[task]["test"]), self.tokenizer, 128)
                pairs = [pair for pair in pairs if not pair.is_empty]
                scored = [score_pairs(m, pairs, self.tokenizer.pad_token_id or 0, 8) for m in (model, base)]
                told[key] = [(c - rc) - (r - rr) for (c, r), (rc, rr) in zip(scored[0], scored[1], strict=True)]
            meter = self.meter(self.judge)
            with undisturbed(model):
                drawn = meter.draw(model, 0)
            told["scores"] = [float(np.mean(row)) for row in drawn.labels]
            write_json(file, told)
        content: dict[str, Any] = read_json(file)
        return content


def interval(values: list[_Array], replicates: int = 4000) -> tuple[float, float, float]:
    """Mean over seeds of the mean over pairs, with a 95 % interval by redrawing pairs, the same for all seeds."""
    stacked = np.stack(values).mean(axis=0)
    rng = np.random.default_rng(0)
    redrawn = [stacked[rng.integers(len(stacked), size=len(stacked))].mean() for _ in range(replicates)]
    low, high = np.quantile(redrawn, [0.025, 0.975])
    return float(stacked.mean()), float(low), float(high)


def forgotten(told: dict[str, Any], arm: str, measure: str) -> _Array:
    """What a pair, or a probe, of the first task lost: `accuracy`, `margin` or `score`."""
    key = "scores" if measure == "score" else "margins"
    before, after = (np.array(told[name][key], dtype=np.float64) for name in ("first", arm))
    if measure == "accuracy":
        before, after = (np.where(m > 0, 1.0, np.where(m == 0, 0.5, 0.0)) for m in (before, after))
    return np.asarray(before - after, dtype=np.float64)


def report(bench: Bench, runs: dict[int, dict[str, Any]], arms: list[str]) -> None:
    """Prints and writes the table and the intervals."""
    table: dict[str, Any] = {"seeds": list(runs), "arms": {}, "differences": {}}
    for arm in arms:
        told: dict[str, Any] = {
            f"forgotten_{m}": interval([forgotten(run, arm, m) for run in runs.values()])
            for m in ("accuracy", "margin", "score")
        }
        learnt = [np.array(run[arm]["learnt"]) for run in runs.values()]
        told["learnt_margin"] = interval(learnt)
        told["learnt_accuracy"] = interval([np.where(x > 0, 1.0, np.where(x == 0, 0.5, 0.0)) for x in learnt])
        told["replayed_rows"] = [round(run[arm]["replayed"], 1) for run in runs.values()]
        table["arms"][arm] = told
    pairs = [(a, b) for a, b in (("dynamic", "fixed"), ("dynamic", "none"), ("fixed", "none")) if {a, b} <= set(arms)]
    for one, other in pairs:
        table["differences"][f"{one} - {other}"] = {
            f"forgotten_{m}": interval([forgotten(r, one, m) - forgotten(r, other, m) for r in runs.values()])
            for m in ("accuracy", "margin", "score")
        } | {
            "learnt_margin": interval(
                [np.array(r[one]["learnt"]) - np.array(r[other]["learnt"]) for r in runs.values()]
            )
        }
    write_json(bench.root / "table.json", table)
    for part in ("arms", "differences"):
        for name, told in table[part].items():
            print(name, json.dumps({k: [round(x, 3) for x in v] for k, v in told.items()}))
    draw(bench, runs, arms)


def draw(bench: Bench, runs: dict[int, dict[str, Any]], arms: list[str]) -> None:
    """Forgetting over replayed rows, a mark for each seed and arm; and the dynamic shares over steps."""
    import matplotlib.pyplot as plt

    with drawing_style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
        for arm, marker in zip(arms, ("o", "s", "^"), strict=False):
            x = [run[arm]["replayed"] for run in runs.values()]
            y = [float(forgotten(run, arm, "margin").mean()) for run in runs.values()]
            left.plot(x, y, marker, label=arm)
        left.set(xlabel="replayed rows", ylabel="margin forgotten (nats)", title=f"{bench.args.order[0]}: forgetting")
        left.legend()
        for seed, run in runs.items():
            plan = run.get("dynamic", {}).get("record", {}).get("rehearsal", {}).get("plan", [])
            right.step([at for at, _ in plan], [share for _, share in plan], where="post", label=f"seed {seed}")
        right.set(xlabel="batch", ylabel="share of rehearsal", title="What the forces asked for", ylim=(-0.02, 1.02))
        right.legend()
        save_png(figure, bench.root / "forgetting.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of preference tasks")
    parser.add_argument("--order", nargs=2, default=["harmless", "helpful"], help="the two tasks")
    parser.add_argument("--answers", default="refusals", choices=("refusals", "own"), help="of the pairs")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of a task")
    parser.add_argument("--first-steps", type=int, default=None, help="of the first task, if other than --steps")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate")
    parser.add_argument("--rows", type=int, default=400, help="training rows of a task")
    parser.add_argument("--characters", type=int, default=300, help="of a prompt and its longer answer, at most")
    parser.add_argument("--tests", type=int, default=150, help="held-out pairs of a task")
    parser.add_argument("--tolerance", type=float, default=0.05, help="by how much a judged score may fall")
    parser.add_argument("--keep", type=float, default=0.9, help="share of what was gained by pairs that shall stay")
    parser.add_argument("--every", type=int, default=8, help="steps between measurements")
    parser.add_argument("--watch", default="preference", choices=("preference", "judge"), help="what dynamic holds")
    parser.add_argument("--samples", type=int, default=8, help="answers to each of the 16 probes of a measurement")
    parser.add_argument("--probes", type=int, default=48, help="probes of the score that is reported")
    parser.add_argument("--tokens", type=int, default=24, help="longest answer")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"), help="of the base")
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    quiet(args.threads)
    bench = Bench(args)
    runs = {seed: bench.run(seed, args.arms) for seed in args.seeds}
    report(bench, runs, args.arms)


if __name__ == "__main__":
    main()
