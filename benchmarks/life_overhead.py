"""What a whole life costs beside the bare training of its tasks: both in one process, one after the other.

python benchmarks/life_overhead.py [RECIPE] [--set KEY=VALUE ...] [--turns 1] [--threads N]

The life is `lifealign run RECIPE` from the first look at its rows to its report: references, training, what its
strategies do, every evaluation after every task, samples, checkpoints, pictures. Rows that a strategy replays are
trained on in the life alone; `--set strategies=[consolidation]` leaves replay out. The bare side loads the model and
trains the same tasks one after the other with the recipe's trainer and arguments, with LoRA of the same size, and does
nothing else: once with the reference computed in each step, as TRL does by default, and once with it computed before
the training (`precompute_ref_log_probs`), as a life does. Prints seconds, what they went to, and both ratios.
"""

import argparse
import copy
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from common import quiet
from peft import LoraConfig

from hf_lifealign._files import read_json
from hf_lifealign._recipes import find_recipe
from hf_lifealign.lifelong.adapters import load_base
from hf_lifealign.lifelong.recipe import build_adapter, build_run, quiet_libraries, read_recipe
from hf_lifealign.models import resolve_model


def life(recipe: dict[str, Any], base_dir: Path) -> dict[str, float]:
    """Seconds of a life, and of its parts that are told apart in its own records."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run = build_run(recipe, base_dir, folder)
        run.train()
        seconds = time.perf_counter() - start
        records = [entry["record"] for entry in read_json(run.directory.state)["tasks"]]
    return {
        "seconds": seconds,
        "training": sum(phase["seconds"] for record in records for phase in record["phases"]),
        "evaluation": sum(record["evaluation_seconds"] for record in records),
    }


def bare(recipe: dict[str, Any], base_dir: Path, precompute: bool) -> float:
    """Seconds of the trainer alone on each task's rows in turn, from loading the model on."""
    with tempfile.TemporaryDirectory() as folder:
        run = build_run(recipe, base_dir, folder)
        own = {field.name for field in dataclasses.fields(LoraConfig)}
        adapter = dict(recipe.get("adapter") or {"target_modules": "all-linear"})
        peft_config: Any = build_adapter({key: adapter[key] for key in adapter if key in own} | {"type": "lora"})
        start = time.perf_counter()
        model: Any = load_base(resolve_model(recipe["model"]), recipe.get("model_init_kwargs") or {}, run.training_args)
        for task in run.stream:
            args = copy.deepcopy(run.training_args)
            args.output_dir, args.save_strategy, args.report_to = folder, "no", []
            args.precompute_ref_log_probs = precompute
            trainer = run.trainer_class(
                model=model, args=args, train_dataset=task.load().train, processing_class=run.processing_class,
                peft_config=peft_config,
            )  # fmt: skip
            trainer.train()
            model, peft_config = trainer.model, None
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="recipes/quickstart.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="overrides, as in lifealign run"
    )
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    quiet(options.threads)
    quiet_libraries()
    recipe, base_dir = read_recipe(options.recipe, options.set), find_recipe(options.recipe).resolve().parent
    if recipe.get("warm_start"):
        raise SystemExit("The bare side has no warm start. Give --set warm_start=null.")
    lives, plain, ahead = [], [], []
    for _ in range(options.turns):
        lives.append(life(recipe, base_dir))
        print(f"life {lives[-1]['seconds']:.1f} s ({lives[-1]['training']:.1f} s of it in trainers, "
              f"{lives[-1]['evaluation']:.1f} s evaluations)", flush=True)  # fmt: skip
        plain.append(bare(recipe, base_dir, precompute=False))
        print(f"bare training {plain[-1]:.1f} s", flush=True)
        ahead.append(bare(recipe, base_dir, precompute=True))
        print(f"bare training, references before it, {ahead[-1]:.1f} s", flush=True)
    whole = statistics.median(each["seconds"] for each in lives)
    ratio, after = whole / statistics.median(plain), whole / statistics.median(ahead)
    print(f"a life takes {ratio:.3f} of the bare training of its tasks, and {after:.3f} of it with references computed "
          f"before (median of {options.turns})")  # fmt: skip


if __name__ == "__main__":
    main()
