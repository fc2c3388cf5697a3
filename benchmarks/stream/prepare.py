"""Cuts a folder of preference tasks into training, validation and test rows for the stream benchmark.

    python benchmarks/stream/prepare.py DATA OUT [--tokens 192] [--train 200] [--validation 100] [--test 200]

DATA is a folder of tasks in TRL's format (DATA/<task>/train.jsonl and test.jsonl). Rows whose longer side has more than
`--tokens` tokens are left out, and so are prompts that stand twice. Test rows are those of test.jsonl in a seeded
order; where these are fewer than asked for, rows of train.jsonl take the missing places, which then are in no other
part. Nothing is chosen by looking at a model.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from hf_lifealign.models import resolve_model

TASKS = ("truthful", "safe", "harmless", "helpful")
PARTS = ("train", "validation", "test")
Rows = list[dict[str, Any]]


def rows_of(file: Path) -> Rows:
    """Preference rows of a file."""
    with open(file, encoding="utf-8") as lines:
        return [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in map(json.loads, lines)]


def words_of(value: Any) -> str:
    """A prompt or a completion as one text."""
    return value if isinstance(value, str) else "\n".join(message["content"] for message in value)


def fits(row: dict[str, Any], tokenizer: Any, most: int) -> bool:
    """Whether both sequences of a row are within the limit."""
    sides = [row["prompt"] + row[side] for side in ("chosen", "rejected")]
    if not isinstance(row["prompt"], str):
        sides = [tokenizer.apply_chat_template(side, tokenize=False) for side in sides]
    return all(len(tokenizer(side)["input_ids"]) <= most for side in sides)


def cut(folder: Path, sizes: dict[str, int], tokenizer: Any, tokens: int, seed: int) -> dict[str, Rows]:
    """The three parts of a task.

    Raises:
        SystemExit: if the task has too few rows.
    """
    seen: set[str] = set()
    pools: dict[str, Rows] = {}
    for part in ("test", "train"):
        pools[part] = []
        found = rows_of(folder / f"{part}.jsonl")
        order = np.random.default_rng([seed, len(part)]).permutation(len(found))
        for i in order:
            words = " ".join(words_of(found[i]["prompt"]).split()).lower()
            if words not in seen and fits(found[i], tokenizer, tokens):
                seen.add(words)
                pools[part].append(found[i])
    test = pools["test"][: sizes["test"]]
    missing = sizes["test"] - len(test)
    rest = pools["train"]
    test, rest = test + rest[:missing], rest[missing:]
    parts = {"test": test, "validation": rest[: sizes["validation"]]}
    parts["train"] = rest[sizes["validation"] : sizes["validation"] + sizes["train"]]
    for part in PARTS:
        if len(parts[part]) < sizes[part]:
            raise SystemExit(f"{folder.name} has {len(parts[part])} rows for {part} within {tokens} tokens, and "
                             f"{sizes[part]} are needed. Raise --tokens, or lower --{part}.")  # fmt: skip
    return parts


def prepare(data: Path, out: Path, sizes: dict[str, int], tokens: int, model: str, seed: int = 0) -> dict[str, Any]:
    """Writes OUT/<task>/<part>.jsonl and OUT/manifest.json, and returns what the manifest holds."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(model))
    manifest: dict[str, Any] = {"tokens": tokens, "sizes": sizes, "model": model, "seed": seed, "tasks": {}}
    for task in TASKS:
        parts = cut(data / task, sizes, tokenizer, tokens, seed)
        (out / task).mkdir(parents=True, exist_ok=True)
        told = {}
        for part, rows in parts.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (out / task / f"{part}.jsonl").write_text(text, encoding="utf-8")
            told[part] = {"rows": len(rows), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        manifest["tasks"][task] = told
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """The options that decide the cut."""
    parser.add_argument("--tokens", type=int, default=192, help="longest side of a pair")
    parser.add_argument("--train", type=int, default=200, help="rows of a task to train on")
    parser.add_argument("--validation", type=int, default=100, help="rows by which every choice is made")
    parser.add_argument("--test", type=int, default=200, help="rows that are looked at once")
    parser.add_argument("--model", default="embedded:smollm2-135m")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    add_sizes(parser)
    options = parser.parse_args()
    sizes = {part: getattr(options, part) for part in PARTS}
    print(json.dumps(prepare(options.data, options.out, sizes, options.tokens, options.model), indent=1))


if __name__ == "__main__":
    main()
