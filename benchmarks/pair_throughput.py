"""Pairs a second of FPOTrainer with packed rows, against DPOTrainer, in one process, batch by batch in turn.

    python benchmarks/pair_throughput.py DATA [--tasks harmless helpful safe truthful] [--batches 4 8] [--steps 8]
    python benchmarks/pair_throughput.py --device cuda --shape 1b --dtype bfloat16

DATA is a folder of preference tasks in TRL's format (DATA/harmless/train.jsonl, ...); without it the pairs are made up,
of the lengths of a dialogue. Both trainers have the same model, LoRA adapter, rows and batches (gamma 0, so that it is
the same loss too), and their references are computed in each step. A step is the loss, its gradient and the optimizer's
step. Steps alternate, and which goes first alternates too; told are pairs over seconds of all steps, their ratio, and
the median of the ratios of single steps (long batches weigh more in the first). `--memory` measures the peak memory of
each side in a process of its own, `--trajectory 50` the losses of as many steps on both sides, and `--profile` tells
where a packed step spends its time. On CUDA the model is random, of the shape that was asked for:
weights do not change how long it takes.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import quiet
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import compute_flops_per_token, get_peak_flops

from hf_lifealign import FPOConfig, FPOTrainer
from hf_lifealign.models import resolve_model

SIDES: dict[str, tuple[type[DPOTrainer], type[DPOConfig]]] = {
    "DPOTrainer": (DPOTrainer, DPOConfig),
    "FPOTrainer": (FPOTrainer, FPOConfig),
}
SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8},
}  # fmt: skip


def rows_of(options: argparse.Namespace, task: str, count: int) -> Dataset:
    """Rows of a task, or made-up ones; some more than `count`, since those are dropped whose prompts fill a row."""
    count = count * 3 // 2 + 8
    if options.data is not None:
        with open(options.data / task / "train.jsonl", encoding="utf-8") as lines:
            found = [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]
        return Dataset.from_list([{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in found])
    draws = np.random.default_rng(0)

    def text(mean: float) -> str:
        size = int(np.clip(draws.lognormal(np.log(mean), 0.6), 2, 4 * mean))
        return " ".join(f"word{number}" for number in draws.integers(0, 500, size))

    pairs = [{"prompt": text(40), "chosen": text(30), "rejected": text(30)} for _ in range(count)]
    return Dataset.from_list(pairs)


def make(side: str, options: argparse.Namespace, rows: Dataset, batch: int) -> tuple[Any, Any]:
    """A trainer and its optimizer, ready to step."""
    cls, config = SIDES[side]
    folder = resolve_model(options.model)
    dtype = getattr(torch, options.dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if options.shape is None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=options.attention)
    else:
        torch.manual_seed(0)
        shape = LlamaConfig.from_dict({"vocab_size": len(tokenizer)} | SHAPES[options.shape])
        shape._attn_implementation = options.attention if side == "FPOTrainer" else "sdpa"
        model = LlamaForCausalLM(shape).to(dtype)
    args = config(
        "unused", per_device_train_batch_size=batch, learning_rate=options.rate, gradient_checkpointing=False,
        bf16=False, use_cpu=options.device == "cpu", report_to="none", save_strategy="no", seed=0,
        max_length=options.max_length,
    )  # fmt: skip
    if isinstance(args, FPOConfig):
        args.focal_gamma = 0.0
    torch.manual_seed(0)
    peft = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    # the base with adapters off is the reference of both, and no copy is kept
    trainer: Any = cls(peft, args=args, train_dataset=rows, processing_class=tokenizer)
    if "ref" in peft.peft_config:
        peft.delete_adapter("ref")
        peft.set_adapter("default")
    if side == "FPOTrainer" and not trainer.is_packed:
        raise SystemExit("FPOTrainer does not pack here, so that there is nothing to measure.")
    trainer.model.train()
    return trainer, torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad], lr=options.rate)


def step(trainer: Any, optimizer: Any, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Seconds of one optimizer step on a batch, and its loss."""
    device = trainer.accelerator.device
    inputs = {key: value.to(device) for key, value in batch.items()}
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, loss.item()


def batches_of(trainer: Any, size: int, count: int) -> list[dict[str, torch.Tensor]]:
    """The first `count` batches of a trainer's rows, in their own order."""
    rows = list(trainer.train_dataset)
    if len(rows) < size * count:
        raise SystemExit(f"{size * count} pairs are needed, and {len(rows)} have completions within --max-length.")
    return [trainer.data_collator(rows[i : i + size]) for i in range(0, size * count, size)]


def measure(options: argparse.Namespace, task: str, size: int) -> dict[str, Any]:
    """Both sides on the same batches, in turn."""
    rows = rows_of(options, task, size * (options.steps + 1))
    sides = [make(side, options, rows, size) for side in SIDES]
    batches = batches_of(sides[0][0], size, options.steps + 1)
    for side in sides:
        step(*side, batches[-1])
    seconds: list[list[float]] = [[], []]
    for i, batch in enumerate(batches[:-1]):
        for which in (0, 1) if i % 2 else (1, 0):
            seconds[which].append(step(*sides[which], batch)[0])
    dpo, fpo = (size * options.steps / sum(times) for times in seconds)
    median = statistics.median(d / f for d, f in zip(*seconds, strict=True))
    told = {
        "task": task, "batch": size, "steps": options.steps, "pairs_per_second": [dpo, fpo], "ratio": fpo / dpo,
        "median_ratio": median,
    }  # fmt: skip
    print(
        f"{task}, batch {size}: DPOTrainer {dpo:.2f} pairs/s, FPOTrainer {fpo:.2f}, ratio {fpo / dpo:.2f} "
        f"(median of {options.steps} paired steps {median:.2f})",
        flush=True,
    )
    if options.device == "cuda":
        tell_use(sides[1][0], batches[:-1], seconds[1])
    return told


def tell_use(trainer: Any, batches: list[dict[str, torch.Tensor]], seconds: list[float]) -> None:
    """Tokens a second of the padded batches' real tokens, and the share of the device's peak that they need."""
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    rate = tokens / sum(seconds)
    width = int(statistics.mean(batch["input_ids"].shape[1] for batch in batches))
    # the reference's forward is a third of what the policy's forward and backward need
    needed = compute_flops_per_token(trainer.model.config, width) * 4 / 3
    peak = get_peak_flops(torch.cuda.get_device_name(), "bf16")
    share = f", {rate * needed / peak:.1%} of the peak" if peak else ""
    print(f"  {rate:.0f} tokens/s of chosen and rejected sequences{share}", flush=True)


def remember(options: argparse.Namespace, side: str, task: str, size: int) -> None:
    """Prints the peak memory of one side's steps, in MiB; in a process of its own."""
    trainer, optimizer = make(side, options, rows_of(options, task, size * 4), size)
    for batch in batches_of(trainer, size, 4):
        step(trainer, optimizer, batch)
    peak = (
        torch.cuda.max_memory_allocated() / 2**20
        if options.device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    )
    print(json.dumps({"peak": peak}))


def compare_memory(task: str, size: int) -> dict[str, float]:
    """Peak memory of both sides, in MiB."""
    found = {}
    for side in SIDES:
        line = [sys.executable, *sys.argv, "--peak-of", side, "--tasks", task, "--batches", str(size)]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        found[side] = float(json.loads(done.stdout.splitlines()[-1])["peak"])
    dpo, fpo = found["DPOTrainer"], found["FPOTrainer"]
    print(
        f"{task}, batch {size}: peak {dpo:.0f} MiB DPOTrainer, {fpo:.0f} MiB FPOTrainer ({fpo / dpo:.2f})", flush=True
    )
    return found


def trajectory(options: argparse.Namespace, task: str, size: int) -> None:
    """How far the losses of both sides part in as many steps on the same batches."""
    rows = rows_of(options, task, size * options.trajectory)
    sides = [make(side, options, rows, size) for side in SIDES]
    worst = 0.0
    for batch in batches_of(sides[0][0], size, options.trajectory):
        dpo, fpo = (step(*side, batch)[1] for side in sides)
        worst = max(worst, abs(fpo - dpo) / abs(dpo))
    print(f"{task}, batch {size}: losses of {options.trajectory} steps differ by {worst:.1e} at most, relative; last "
          f"{dpo:.5f} and {fpo:.5f}", flush=True)  # fmt: skip


def tell_profile(options: argparse.Namespace, task: str, size: int) -> None:
    """Where a packed step spends its time."""
    trainer, optimizer = make("FPOTrainer", options, rows_of(options, task, size * 4), size)
    batches = batches_of(trainer, size, 4)
    step(trainer, optimizer, batches[0])
    with torch.profiler.profile() as profiler:
        for batch in batches[1:]:
            step(trainer, optimizer, batch)
    key = "self_cuda_time_total" if options.device == "cuda" else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=key, row_limit=14, max_name_column_width=46))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=None, help="folder of preference tasks")
    parser.add_argument("--tasks", nargs="+", default=["harmless", "helpful", "safe", "truthful"])
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8], help="pairs a step")
    parser.add_argument("--steps", type=int, default=8, help="measured steps of each side")
    parser.add_argument("--model", default="embedded:smollm2-135m", help="whose tokenizer is used in any case")
    parser.add_argument("--shape", default=None, choices=sorted(SHAPES), help="a random model of this shape")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--attention", default="sdpa", choices=("sdpa", "eager", "flex_attention"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--rate", type=float, default=1e-5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead")
    parser.add_argument("--trajectory", type=int, default=0, help="compare the losses of so many steps instead")
    parser.add_argument("--profile", action="store_true", help="tell where a packed step spends its time instead")
    parser.add_argument("--output", type=Path, default=None, help="a JSON file for the figures")
    parser.add_argument("--peak-of", default=None, choices=sorted(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet(options.threads)
    print(f"{options.shape or options.model}, {options.dtype}, {options.attention}, {options.device}, "
          f"{torch.get_num_threads()} threads, at most {options.max_length} tokens", flush=True)  # fmt: skip
    tasks = options.tasks if options.data is not None else ["made-up"]
    told = []
    for task in tasks:
        for size in options.batches:
            if options.peak_of:
                remember(options, options.peak_of, task, size)
            elif options.memory:
                told.append({"task": task, "batch": size} | compare_memory(task, size))
            elif options.trajectory:
                trajectory(options, task, size)
            elif options.profile:
                tell_profile(options, task, size)
            else:
                told.append(measure(options, task, size))
    if options.output is not None:
        options.output.write_text(json.dumps(told, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
