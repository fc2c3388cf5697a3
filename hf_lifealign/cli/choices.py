"""`lifealign choices`: how often a model finds the best of given answers, alone and with an adapter."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

_CHOICES = """\
Ask a model questions with given answers, as HHH and TruthfulQA (MC1) have them: each in two orders of its answers, with
the likeliest letter as its answer. Told are how often it finds the best one in an order, and by its probabilities over
both orders together, with 95 % intervals over the questions; how often both orders have the same answer, and how often
it says the first letter; with --adapter all of it again, and what changes. QUESTIONS is a .json, .jsonl, .csv or
.parquet file, or the Hub id of a dataset.

Of two answers the orders are the given one and its reverse. Of more the first order is drawn by --seed, since
TruthfulQA's files have the best answer always in front.
"""

_CHOICES_EPILOG = """\
examples:
  lifealign choices embedded:smollm2-135m questions.jsonl
  lifealign choices HuggingFaceTB/SmolLM2-135M-Instruct truthfulqa/truthful_qa --config multiple_choice
  lifealign choices embedded:smollm2-135m hhh/task.json --adapter runs/self/engrave
  lifealign choices me/base questions.jsonl --adapter me/aligned@v2 --output choices.json

rows are any of:
  {"question": "Is ice cold?", "choices": ["Yes.", "No."], "best": 0}
  {"question": "...", "mc1_targets": {"choices": ["...", "..."], "labels": [1, 0]}}
  {"input": "...", "target_scores": {"...": 1, "...": 0}}
"""


def add_parser(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command; `add(name, short, text, epilog)` makes a parser."""
    parser = add("choices", "ask a model questions with given answers", _CHOICES, _CHOICES_EPILOG)
    parser.add_argument("model", metavar="MODEL", help="Hub id (with @REV for a revision), folder, or embedded:NAME")
    parser.add_argument("questions", metavar="QUESTIONS", help="file, or Hub id of a dataset (with @REV)")
    parser.add_argument("--adapter", metavar="FOLDER_OR_ID", help="PEFT adapter: folder, or Hub id (with @REV)")
    parser.add_argument("--config", metavar="NAME", help="configuration of the dataset")
    parser.add_argument("--split", metavar="S", help="split of the dataset (default: the only one)")
    parser.add_argument("--limit", type=int, metavar="N", help="only N of the questions, drawn by the seed")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of orders and of that drawing (default: 0)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="questions read together (default: 8)")
    parser.add_argument("--dtype", default="auto", metavar="T", help="of the weights (default: the model's own)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--output", metavar="FILE.json", help="also write the result there as JSON")


def choices(args: argparse.Namespace) -> int:
    """`lifealign choices`."""
    import contextlib
    import json
    import sys

    for name, least in (("limit", 1), ("seed", 0), ("batch_size", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"You set --{name.replace('_', '-')} {value}. Set at least {least}.")
    if args.output is not None and Path(args.output).is_dir():
        raise ValueError(f"You set --output {args.output}, which is a folder. Name a file in it.")

    from hf_lifealign._files import write_text
    from hf_lifealign.lifelong.recipe import quiet_libraries
    from hf_lifealign.self_align.choice_evaluation import evaluate_choices
    from hf_lifealign.self_align.question_files import load_questions

    source, data_revision = _named(args.questions)
    model, revision = _named(args.model)
    adapter, adapter_revision = (None, None) if args.adapter is None else _named(args.adapter)
    quiet_libraries()
    # loading a model may tell something, which is none of the result
    with contextlib.redirect_stdout(sys.stderr):
        questions = load_questions(source, args.config, args.split, data_revision, args.limit, args.seed)
        report = evaluate_choices(
            model, questions, adapter, revision=revision, adapter_revision=adapter_revision, dtype=args.dtype,
            device=args.device, batch_size=args.batch_size, seed=args.seed,
        )  # fmt: skip
    asked = {"questions": args.questions, "config": args.config, "split": args.split, "limit": args.limit}
    content = json.dumps({"asked": asked} | report.to_json(), indent=2)
    if args.output is not None:
        write_text(Path(args.output), content + "\n")
    told = report.text() if args.output is None else f"{report.text()}\n\n{args.output}"
    encoding = sys.stdout.encoding or "utf-8"
    print(content if args.json else told.encode(encoding, "backslashreplace").decode(encoding))
    return 0


def _named(text: str) -> tuple[str, str | None]:
    """A name and its revision, of `owner/name@revision`; the name of a path may hold an @ of its own."""
    found = re.fullmatch(r"((?:[\w.-]+/)?[\w.-]+)@([\w./-]+)", text)
    return (text, None) if found is None or Path(text).expanduser().exists() else (found[1], found[2])


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {"choices": choices}
