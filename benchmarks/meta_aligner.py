"""Does Meta-Aligner move a small model along two objectives, and where should the training weights come from?

python benchmarks/meta_aligner.py DATA [--pair helpful harmless] [--seeds 0 1 2 3 4] [--arms learned random ...]

DATA is a folder of preference tasks in TRL's format (DATA/helpful/train.jsonl, DATA/helpful/test.jsonl, ...). Both
rewards of a pair are Bradley-Terry heads on MiniLM embeddings, fitted on their task; `brevity` needs no data.

The arms of a seed start from the same pre-training and differ only in where the weights of the meta phase come from:
prompts, inner steps and decoding are the same. `offline` is the pre-training alone. `soups` are Rewarded Soups: a LoRA
adapter for each reward, each with the pre-training, prompts and inner steps of an arm, so twice its budget, averaged by
the user's weights. Each arm is swept over 11 user weights on the same held-out prompts; z-scores and the reference
point are those of the offline set of seed 0 for all. Hours on two CPU cores; a killed run goes on where it was. It
ends with the table, paired bootstrap intervals, and a picture in benchmarks/results/meta_aligner/.
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
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_lifealign import BrevityReward, MetaAlignerConfig, MetaAlignerTrainer, MiniLMBradleyTerryReward
from hf_lifealign._files import read_json, write_json
from hf_lifealign.meta_aligner.compare import compare_fronts
from hf_lifealign.meta_aligner.front import sweep_front
from hf_lifealign.meta_aligner.front_figures import Front, Scale
from hf_lifealign.meta_aligner.policy import MetaAlignedPolicy
from hf_lifealign.meta_aligner.storage import read_policy
from hf_lifealign.models import resolve_model
from hf_lifealign.report.front_picture import write_front_picture

RESULTS = Path(__file__).resolve().parent / "results" / "meta_aligner"
ARMS = ("learned", "frozen", "reward", "random", "uniform", "offline", "soups")
# The paper's rates are for models 50 times as large. These were chosen after one look at a trial training (seed 100)
# with 48 of the held-out prompts, where a meta rate of 1e-3 raised the rewards further, and halved distinct-2.
RATES = {
    "pretrain_learning_rate": 1e-3, "pretrain_weight_learning_rate": 1e-3, "learning_rate": 3e-4,
    "weight_learning_rate": 1e-4,
}  # fmt: skip


def read_rows(data: Path, task: str, split: str) -> list[dict[str, Any]]:
    """Rows of a task whose prompts are a single turn."""
    lines = (data / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if len(row["prompt"]) == 1 and len(row["prompt"][0]["content"]) < 400]


class Bench:
    """Everything that the arms share.

    Args:
        args (`argparse.Namespace`): settings of the command line.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.root = Path(args.output or RESULTS) / "-".join(args.pair)
        self.tasks = [task for task in args.pair if task != "brevity"]
        if not self.tasks:
            raise SystemExit("Name at least one task beside 'brevity': its prompts are what is answered.")
        told = {key: getattr(args, key) for key in ("pair", "prompts", "train_prompts", "offline", "tokens", "rates")}
        keep_settings(self.root, told | {"default_rates": RATES, "data": str(args.data)})
        self.rewards = [self._reward(name) for name in args.pair]
        folder = resolve_model("embedded:smollm2-135m")
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model_folder = folder
        share = -(-args.prompts // len(self.tasks))
        self.held_out = self._prompts("test", share)[: args.prompts]

    def scale(self) -> Scale:
        """By which all arms and seeds are measured: the offline set of seed 0, before any arm is trained."""
        saved = read_policy(self.pretrained(0) / "meta_aligner")
        statistics = saved.settings["reward_statistics"]
        return Scale.of(statistics["mean"], statistics["std"])

    def _reward(self, name: str) -> Any:
        if name == "brevity":
            return BrevityReward()
        folder = self.root.parent / "rewards" / name
        if not (folder / "reward.json").is_file():
            rows = [json.loads(line) for line in (self.args.data / name / "train.jsonl").read_text().splitlines()][
                :1500
            ]
            tests = [json.loads(line) for line in (self.args.data / name / "test.jsonl").read_text().splitlines()]
            reward = MiniLMBradleyTerryReward.fit(rows, name=name, held_out=tests)
            reward.save_pretrained(folder)
        reward = MiniLMBradleyTerryReward.from_pretrained(folder)
        print(f"reward {name}: held-out accuracy {reward.metadata['accuracy']:.3f}", flush=True)
        return reward

    def _prompts(self, split: str, share: int, seed: int = 0) -> list[dict[str, Any]]:
        rows = []
        for task in self.tasks:
            found = read_rows(self.args.data, task, split)
            order = np.random.default_rng(seed).permutation(len(found))[:share]
            rows += [{"prompt": found[i]["prompt"]} for i in order]
        return rows

    def offline(self, seed: int) -> Dataset:
        """Preference rows of all tasks, whose both answers are the offline set."""
        rows: list[dict[str, Any]] = []
        for task in self.tasks:
            found = read_rows(self.args.data, task, "train")
            order = np.random.default_rng(seed + 1).permutation(len(found))[: self.args.offline // len(self.tasks)]
            rows += [{key: found[i][key] for key in ("prompt", "chosen", "rejected")} for i in order]
        return Dataset.from_list(rows)

    def model(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.model_folder, dtype=torch.bfloat16)

    def trainer(
        self, folder: Path, seed: int, cls: type[MetaAlignerTrainer] = MetaAlignerTrainer, **settings: Any
    ) -> Any:
        args = self.args
        options: dict[str, Any] = {
            "per_device_train_batch_size": 8, "generation_batch_size": 64, "num_generations": 4, "num_rounds": 2,
            "num_train_epochs": 2, "pretrain_epochs": 1, "max_completion_length": args.tokens, "use_cpu": True,
            "bf16": False, "gradient_checkpointing": False, "save_strategy": "no", "logging_steps": 10,
            "report_to": [], "disable_tqdm": True, "seed": seed, "lr_scheduler_type": "constant",
        }  # fmt: skip
        peft_config = settings.pop("peft_config", None)
        offline = settings.pop("offline_dataset", None)
        return cls(
            model=self.model(),
            reward_funcs=list(self.rewards),
            objective_names=list(args.pair),
            args=MetaAlignerConfig(str(folder), **{**options, **RATES, **args.rates, **settings}),
            train_dataset=Dataset.from_list(self._prompts("train", args.train_prompts // len(self.tasks), seed + 2)),
            offline_dataset=offline,
            processing_class=self.tokenizer,
            peft_config=peft_config,
        )

    # Arms

    def pretrained(self, seed: int) -> Path:
        """The common start of all arms of a seed."""
        folder = self.root / f"seed-{seed}" / "offline"
        if not (folder / "meta_aligner" / "meta_aligner.json").is_file():
            trainer = self.trainer(folder, seed, num_rounds=0, offline_dataset=self.offline(seed))
            trainer.train()
            trainer.save_model()
            write_json(folder / "log.json", trainer.state.log_history)
        return folder

    def policy(self, arm: str, seed: int) -> MetaAlignedPolicy:
        """The policy of an arm, trained or as it was saved."""
        start, folder = self.pretrained(seed), self.root / f"seed-{seed}" / arm
        source = "uniform" if arm == "offline" else arm
        trainer = self.trainer(folder, seed, weight_source=source)
        if arm == "offline" or (folder / "meta_aligner" / "meta_aligner.json").is_file():
            trainer.continue_from(folder)
        else:
            trainer.continue_from(start)
            trainer.train()
            trainer.save_model()
            write_json(folder / "log.json", trainer.state.log_history)
        policy: MetaAlignedPolicy = trainer.policy
        return policy

    def front(self, arm: str, seed: int) -> Front:
        """The swept front of an arm; base and preference-weight-net included."""
        folder = self.root / f"seed-{seed}" / arm
        file = folder / "front.json"
        if not file.is_file():
            policy = self.soups(seed) if arm == "soups" else self.policy(arm, seed)
            # the base does not depend on the seed of training, only on that of sampling
            front = sweep_front(
                policy, self.held_out, self.rewards, name=arm, scale=self.scale(), include_base=arm == "offline",
                batch_size=100, seed=seed, store=folder / "sweep", keep_answers=True, progress=self.args.progress,
                prefix_cache_gb=0.0 if arm == "soups" else 4.0,  # a soup reads prompts otherwise for each weight
            )  # fmt: skip
            write_json(file, front.to_json())
        return Front.from_json(read_json(file))

    # Rewarded Soups

    def soups(self, seed: int) -> MetaAlignedPolicy:
        """One LoRA adapter for each reward, trained with the budget of an arm; averaged by the user's weights."""
        adapters = []
        for k, name in enumerate(self.args.pair):
            folder = self.root / f"seed-{seed}" / f"soup-{name}"
            if not (folder / "adapter_model.safetensors").is_file():
                trainer = self.trainer(
                    folder, seed, OneObjective, weight_source="uniform", conditioning="lora", learning_rate=2e-4,
                    pretrain_learning_rate=2e-4, offline_dataset=self.offline(seed),
                    peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
                )  # fmt: skip
                trainer.only = k
                trainer.train()
                trainer.save_model()
            adapters.append(folder)
        return Soup.of(self, adapters, self.policy("offline", seed))


class OneObjective(MetaAlignerTrainer):
    """Rejection sampling by one reward alone: the weights are those of its corner, and so the adapter is plain LoRA."""

    only = 0

    def _generating_weights(self, number: int, prompts: Sequence[int]) -> torch.Tensor:
        weights = torch.zeros(len(prompts), len(self.policy.objective_names))
        weights[:, self.only] = 1.0
        return weights

    def _nll(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Any:
        # the adapter itself is what learns, not how a preference scales it
        self.policy.conditioning.give(None)
        return super()._nll(model, inputs)


class Soup(MetaAlignedPolicy):
    """Answers under a user's weights with the average of specialised adapters (Rewarded Soups, arXiv 2306.04488)."""

    @classmethod
    def of(cls, bench: Bench, adapters: Sequence[Path], arm: MetaAlignedPolicy) -> "Soup":
        from peft import PeftModel

        model = PeftModel.from_pretrained(bench.model(), str(adapters[0]), adapter_name="soup-0")
        for k, folder in enumerate(adapters[1:], start=1):
            model.load_adapter(str(folder), adapter_name=f"soup-{k}")
        policy = cls(model, bench.tokenizer, bench.args.pair)
        policy.statistics, policy.generation = arm.statistics, arm.generation
        return policy

    def under(self, preference: Any, rows: int) -> Any:
        weights = torch.as_tensor(preference, dtype=torch.float32)
        mean = (weights if weights.dim() == 1 else weights.mean(0)).tolist()
        if "mixed" in self.model.peft_config:
            self.model.delete_adapter("mixed")
        # "cat" adds the products BA; "linear" would add A and B apart and bring cross terms
        names = sorted(name for name in self.model.peft_config if name.startswith("soup-"))
        self.model.add_weighted_adapter(names, mean, "mixed", combination_type="cat")
        self.model.set_adapter("mixed")
        return super().under(preference, rows)


def table(bench: Bench, fronts: dict[str, list[Front]]) -> list[dict[str, Any]]:
    """One row for each arm: means over its seeds."""
    rows = []
    for arm, found in fronts.items():
        figures = [front.figures() for front in found]
        points = [point.to_json(front.scale) for front in found for point in front.points]
        own = [front.own.to_json(front.scale) for front in found if front.own is not None]
        row: dict[str, Any] = {"arm": arm, "seeds": len(found)}
        for name in ("hypervolume", "inner_product", "controllability"):
            values = [f[name] for f in figures if f[name] is not None]
            row[name] = float(np.mean(values)) if values else None
        for name in ("distinct_1", "distinct_2", "mean_length", "perplexity"):
            row[name] = float(np.mean([point[name] for point in points]))
        row["own_choice"] = np.mean([point["z"] for point in own], axis=0).tolist()
        rows.append(row)
    base = [front.base for front in fronts.get("offline", ()) if front.base is not None]
    scale = fronts["offline"][0].scale if base else None
    if base and scale is not None:
        told = [point.to_json(scale) for point in base]
        keys = ("distinct_1", "distinct_2", "mean_length", "perplexity")
        means = {key: float(np.mean([t[key] for t in told])) for key in keys}
        rows.append({"arm": "base", "seeds": len(base), "z": np.mean([t["z"] for t in told], axis=0).tolist(), **means})
    return rows


def report(bench: Bench, fronts: dict[str, list[Front]], pairs: Sequence[tuple[str, str]]) -> None:
    """Prints and writes table, intervals and picture of what is there."""
    rows = table(bench, fronts)
    for row in rows:
        print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}))
    intervals = {}
    for first, second in pairs:
        count = min(len(fronts.get(first, ())), len(fronts.get(second, ())))
        if count:
            differences = compare_fronts(fronts[first][:count], fronts[second][:count])
            intervals[f"{first} - {second}"] = {"seeds": count} | {k: d.to_json() for k, d in differences.items()}
            told = ", ".join(f"{k} {d.difference:+.4f} [{d.low:+.4f}, {d.high:+.4f}]" for k, d in differences.items())
            print(f"{first} - {second} ({count} seeds): {told}")
    write_json(bench.root / "table.json", {"rows": rows, "intervals": intervals})
    first_seed = [found[0].to_json() for found in fronts.values() if found]
    write_front_picture(first_seed, bench.root / "fronts.png")
    print(f"table and picture: {bench.root}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of preference tasks")
    parser.add_argument("--pair", nargs="+", default=["helpful", "harmless"], help="objectives; 'brevity' is built in")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--prompts", type=int, default=200, help="held-out prompts")
    parser.add_argument("--train-prompts", type=int, default=64)
    parser.add_argument("--offline", type=int, default=200, help="preference pairs of the offline set")
    parser.add_argument("--tokens", type=int, default=24, help="longest answer")
    parser.add_argument("--rates", type=json.loads, default={}, help="JSON of learning rates other than the table's")
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--progress", action="store_true")
    args = parser.parse_args()
    quiet(args.threads)
    bench = Bench(args)
    fronts: dict[str, list[Front]] = {arm: [] for arm in args.arms}
    for seed in args.seeds:
        for arm in args.arms:
            fronts[arm].append(bench.front(arm, seed))
            print(f"seed {seed} {arm}: {json.dumps(fronts[arm][-1].figures())}", flush=True)
    report(
        bench, fronts, [("learned", other) for other in ("random", "frozen", "reward", "uniform", "offline", "soups")]
    )


if __name__ == "__main__":
    main()
