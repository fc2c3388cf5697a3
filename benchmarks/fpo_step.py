"""FPOTrainer's step against DPOTrainer's, in one process, step by step in turn.

    python benchmarks/fpo_step.py [--model embedded:smollm2-135m] [--steps 12] [--batch 2] [--threads 2]

Both trainers have the same model, LoRA adapter, rows and reference (adapters off). Steps alternate, and which goes
first alternates too, so that a change of the machine's speed touches both. The overhead is the median of the paired
ratios, minus one; FPO adds a handful of operations on one number per pair. Both pad their pairs here, so that the gate
is what is measured; what packing saves is measured by pair_throughput.py.
"""

import argparse
import json
import statistics
import time
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer

from hf_lifealign import FPOConfig, FPOTrainer
from hf_lifealign._resources import resource_path
from hf_lifealign.models import resolve_model

BAR = 0.01


def make(cls: type[DPOTrainer], config: type[DPOConfig], model: str, rows: Dataset, batch: int) -> tuple[Any, Any]:
    """A trainer and its optimizer, ready to step."""
    args = config(
        "unused", per_device_train_batch_size=batch, learning_rate=1e-5, gradient_checkpointing=False, bf16=False,
        use_cpu=not torch.cuda.is_available(), report_to="none", save_strategy="no", max_length=256, seed=0,
    )  # fmt: skip
    if config is FPOConfig:
        args.pair_packing = "off"  # type: ignore[attr-defined]
    trainer: Any = cls(
        model, args=args, train_dataset=rows, processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.model.train()
    return trainer, torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad], lr=1e-5)


def step(trainer: Any, optimizer: Any, batch: dict[str, torch.Tensor]) -> float:
    """Seconds of one optimizer step on a batch."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    optimizer.step()
    optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:smollm2-135m")
    parser.add_argument("--steps", type=int, default=12, help="measured steps of each trainer")
    parser.add_argument("--batch", type=int, default=2, help="pairs per step")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    source = resource_path("recipes", "quickstart", "data", "detailed", "train.jsonl").read_text()
    rows = Dataset.from_list([json.loads(line) for line in source.splitlines()[: 4 * options.batch]])
    model = resolve_model(options.model)
    sides = [
        make(cls, config, model, rows, options.batch)
        for cls, config in ((DPOTrainer, DPOConfig), (FPOTrainer, FPOConfig))
    ]
    batches = list(sides[0][0].get_train_dataloader())
    for side in sides:
        step(*side, batches[0])
    seconds: list[list[float]] = [[], []]
    for i in range(options.steps):
        batch = batches[i % len(batches)]
        for which in (0, 1) if i % 2 else (1, 0):
            seconds[which].append(step(*sides[which], batch))
    dpo, fpo = (statistics.median(times) for times in seconds)
    overhead = statistics.median(f / d for d, f in zip(*seconds, strict=True)) - 1
    print(f"{options.model}, batch {options.batch}, {options.threads} threads, {options.steps} paired steps")
    print(f"DPOTrainer  {dpo:.3f} s/step (median)")
    print(f"FPOTrainer  {fpo:.3f} s/step (median)")
    print(f"overhead    {overhead * 100:+.2f} % (median of paired ratios; bar {BAR * 100:.0f} %)")


if __name__ == "__main__":
    main()
