"""Time of a round's training with hidden states read once, against reading them at every step (135M model, CPU).

python benchmarks/meta_aligner_step.py [--answers 48] [--tokens 32] [--repeats 3]

Both sides train the same answers, generated beforehand, for three epochs of inner and outer steps, in turns in one run.
"""

import argparse
import logging
import statistics
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_lifealign import BrevityReward, MetaAlignerConfig, MetaAlignerTrainer
from hf_lifealign.meta_aligner.buffers import Answer
from hf_lifealign.models import resolve_model

QUESTIONS = (
    "How do I cook rice?",
    "What is a good name for a small grey cat that sleeps all day?",
    "Why is the sky blue?",
)


def vowels(completions: list[Any], **kwargs: Any) -> list[float]:
    """A second objective that needs no model."""
    return [float(sum(letter in "aeiou" for letter in row[0]["content"])) for row in completions]


def made_up(trainer: MetaAlignerTrainer, rows: list[dict[str, Any]], tokens: int) -> list[Answer]:
    """Two answers of random tokens to each prompt."""
    drawn = torch.Generator().manual_seed(0)
    prompts = trainer._prompt_ids(Dataset.from_list(rows))
    return [
        Answer(
            i, prompt, torch.randint(100, 40000, (tokens,), generator=drawn).tolist(), [-1.0 * i, 1.0 * i], [0.5, 0.5]
        )
        for i, prompt in enumerate(prompts)
        for _ in range(2)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    disable_progress_bars()
    logging.disable(logging.WARNING)
    folder = resolve_model("embedded:smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = [{"prompt": [{"role": "user", "content": QUESTIONS[i % 3]}]} for i in range(args.answers // 2)]

    def seconds(gigabytes: float) -> float:
        with tempfile.TemporaryDirectory() as scratch:
            config = MetaAlignerConfig(
                scratch, num_rounds=1, num_generations=2, max_completion_length=args.tokens, rho=1.0, bf16=False,
                use_cpu=True, gradient_checkpointing=False, save_strategy="no", report_to=[], disable_tqdm=True,
                per_device_train_batch_size=8, state_cache_gb=gigabytes,
            )  # fmt: skip
            trainer = MetaAlignerTrainer(
                model, [BrevityReward(), vowels], args=config, train_dataset=Dataset.from_list(rows),
                processing_class=tokenizer,
            )  # fmt: skip
            # generation is the same on both sides and no part of what is timed
            trainer._generate_round = lambda number: made_up(trainer, rows, args.tokens)  # type: ignore[method-assign]
            started = time.perf_counter()
            trainer.train()
            taken = time.perf_counter() - started
            trainer.policy.conditioning.detach()
        print(f"state_cache_gb={gigabytes:g}: {trainer.state.global_step} steps in {taken:.1f} s", flush=True)
        return taken

    seconds(4.0)  # warm-up
    pairs = [(seconds(0.0), seconds(4.0)) for _ in range(args.repeats)]
    anew, once = (statistics.median(side) for side in zip(*pairs, strict=True))
    threads = torch.get_num_threads()
    print(f"{threads} threads, median of {args.repeats}: read at every step {anew:.1f} s, read once {once:.1f} s")
    print(f"ratio {anew / once:.2f}")


if __name__ == "__main__":
    main()
