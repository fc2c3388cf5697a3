"""What a run of SELF-ALIGN adds to bare `model.generate`, in turns.

python benchmarks/self_align_generation.py [--model embedded:smollm2-135m] [--batch 16] [--tokens 32] [--repeats 5]

Both sides answer the same short prompts with the same seed, batch and settings, so that they write the same tokens;
longer prompts would only hide what is added. The bare side is given tensors; ours encodes the prompts, generates,
decodes, finds the stop strings and keeps the calls on disk. Prints the medians and their ratio.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import quiet
from transformers import GenerationConfig

from hf_lifealign.self_align.constitution import load_constitution
from hf_lifealign.self_align.generators import CallCache, Sampling, TransformersGenerator
from hf_lifealign.self_align.generators.protocol import plan_calls
from hf_lifealign.self_align.rendering import REQUEST, Prompts


def encoded(generator: TransformersGenerator, texts: list[str]) -> dict[str, torch.Tensor]:
    """A left-padded batch."""
    tokenizer = generator.tokenizer
    tokenizer.padding_side = "left"
    return dict(tokenizer(texts, return_tensors="pt", padding=True))


def bare(generator: TransformersGenerator, batch: dict[str, torch.Tensor], sampling: Sampling, seed: int) -> Any:
    """What anybody would write."""
    torch.manual_seed(seed)
    settings = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens, do_sample=True, temperature=sampling.temperature, top_p=sampling.top_p,
        top_k=0, pad_token_id=generator.tokenizer.pad_token_id, eos_token_id=generator.tokenizer.eos_token_id,
        stop_strings=list(sampling.stop) or None,
    )  # fmt: skip
    more = {"tokenizer": generator.tokenizer} if sampling.stop else {}
    with torch.no_grad():
        return generator.model.generate(**batch, generation_config=settings, **more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:smollm2-135m")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32, help="longest answer")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    quiet()
    generator = TransformersGenerator(args.model, batch_size=args.batch)
    constitution = load_constitution({}, None)
    prompts = Prompts(constitution, "compact")
    texts = [prompts.engraved(seed) for seed in constitution.seeds[: args.batch]]
    batch = encoded(generator, texts)
    print(f"{len(texts)} prompts of up to {batch['input_ids'].shape[1]} tokens, answers of up to {args.tokens}")
    for stop in ((), (REQUEST,)):
        sampling = Sampling(0.5, 0.9, args.tokens, stop)
        ours, theirs, same = [], [], True
        for repeat in range(args.repeats + 1):
            (call,) = plan_calls(texts, sampling, repeat, args.batch)
            start = time.perf_counter()
            output = bare(generator, batch, sampling, call.seed)
            middle = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                begun = time.perf_counter()
                made = list(CallCache(generator, Path(folder)).texts(texts, sampling, repeat))
                ended = time.perf_counter()
            written = generator.tokenizer.batch_decode(
                output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
            )
            same &= all(text.startswith(each.text) for text, each in zip(written, made, strict=True))
            if repeat:  # the first one of each warms up
                theirs.append(middle - start)
                ours.append(ended - begun)
        one, other = statistics.median(ours), statistics.median(theirs)
        print(
            f"stop strings {list(stop)}: ours {one:.2f} s, bare generate {other:.2f} s, ratio {one / other:.3f}, "
            f"same texts: {same}"
        )


if __name__ == "__main__":
    main()
