"""What AlignmentDynamicsCallback costs at its default schedule: the same LoRA training with it and without, in turns.

python benchmarks/dynamics_overhead.py [--steps 100] [--repeats 3] [--batch 8] [--length 512] [--threads N] [--short]

SFT of SmolLM2-135M with LoRA (r 16, all-linear) on rows of `--length` tokens; 32 probes, 8 answers of 32 tokens, a
score every 20 steps, forces every 100. Prints the median seconds of both sides, their ratio, and the share by
the callback's own clock, which holds whatever else the machine does.

`--short` trains 4 steps on each side, with a score after 2 of them, and counts what 100 steps of that length would have
cost with the default schedule's one anchor and four scores in between: minutes instead of hours on a CPU.
"""

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
from common import quiet
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from hf_lifealign import AlignmentDynamicsCallback
from hf_lifealign._resources import resource_path
from hf_lifealign.models import resolve_model


def rows(tokenizer: Any, length: int, count: int = 256) -> Dataset:
    """Rows of about so many tokens, of the text whose perplexity lives watch."""
    ids = tokenizer(resource_path("recipes", "general_text.txt").read_text(encoding="utf-8"))["input_ids"]
    starts = [(i * 37) % max(1, len(ids) - length) for i in range(count)]
    return Dataset.from_list([{"text": tokenizer.decode(ids[s : s + length])} for s in starts])


def judge(prompts: Any, answers: Any, references: Any) -> list[float]:
    """Costs nothing: the judge's own time is the user's."""
    return [float("the" in answer.lower()) for answer in answers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--short", action="store_true", help="count the default schedule from 4 steps")
    args = parser.parse_args()
    if args.short:
        args.steps, args.repeats = 4, 1
    quiet(args.threads)
    folder = resolve_model("embedded:smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data, probes = rows(tokenizer, args.length), [f"Tell me something about the number {n}." for n in range(32)]
    seconds: dict[bool, list[float]] = {False: [], True: []}
    shares = []
    for _ in range(args.repeats):
        for watched in (False, True):
            schedule = {"every": 2, "anchor_every": args.steps} if args.short else {}
            watch = AlignmentDynamicsCallback(probes, judge, **schedule)
            with tempfile.TemporaryDirectory() as output:
                trainer = SFTTrainer(
                    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
                    args=SFTConfig(
                        output, max_steps=args.steps, per_device_train_batch_size=args.batch, learning_rate=1e-4,
                        max_length=args.length, save_strategy="no", report_to=[], disable_tqdm=True, bf16=False,
                        gradient_checkpointing=False, use_cpu=not torch.cuda.is_available(),
                    ),
                    train_dataset=data,
                    processing_class=tokenizer,
                    peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
                    callbacks=[watch] if watched else [],
                )  # fmt: skip
                start = time.perf_counter()
                trainer.train()
                seconds[watched].append(time.perf_counter() - start)
                if watched:
                    own = sum(entry["seconds"] for entry in watch.entries)
                    shares.append(own / (seconds[True][-1] - own))
                    print(f"measurements: {[round(entry['seconds'], 2) for entry in watch.entries]} s", flush=True)
    plain, with_it = (statistics.median(seconds[side]) for side in (False, True))
    print(f"{args.steps} steps of {args.batch} x {args.length} tokens, median of {args.repeats}:")
    print(f"without {plain:.1f} s, with {with_it:.1f} s: +{100 * (with_it / plain - 1):.1f} %")
    if args.short:
        anchors = [entry["seconds"] for entry in watch.entries if "narrowness" in entry]
        scores = [entry["seconds"] for entry in watch.entries if "narrowness" not in entry]
        anchor, score, step = statistics.median(anchors), statistics.median(scores), plain / args.steps
        print(f"an anchor {anchor:.1f} s, a score {score:.1f} s, a step {step:.2f} s")
        print(f"100 steps at the default schedule: +{100 * (anchor + 4 * score) / (100 * step):.1f} %")
        return
    print(f"by its own clock: {100 * statistics.median(shares):.1f} % of the training")


if __name__ == "__main__":
    main()
