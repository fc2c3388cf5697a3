"""`lifealign diversity`: how diverse the answers of a data set are, before anything is trained on them."""

import argparse
from collections.abc import Callable
from pathlib import Path

_DIVERSITY = """\
Measure how diverse the answers of a data set are: how often two are the same or begin alike, how alike their n-grams
are, how many different ones they are worth (Vendi score), and what is repeated most. DATASET is a JSON, JSON Lines or
Parquet file, a folder with a file for each split, or the Hub id of a dataset. The thresholds of its warnings are
provisional.
"""

_DIVERSITY_EPILOG = """\
examples:
  lifealign diversity data/helpful/train.jsonl
  lifealign diversity data/helpful --split test --column rejected
  lifealign diversity trl-lib/ultrafeedback_binarized --limit 5000 --tokenizer Qwen/Qwen2.5-0.5B-Instruct
  lifealign diversity train.jsonl --embedding embedded:minilm-l6-v2 --json --output diversity.json
"""


def add_parser(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command; `add(name, short, text, epilog)` makes a parser."""
    parser = add("diversity", "measure how diverse the answers of a data set are", _DIVERSITY, _DIVERSITY_EPILOG)
    parser.add_argument("dataset", metavar="DATASET", help="file, folder with a file for each split, or Hub id")
    parser.add_argument(
        "--column",
        metavar="C",
        help="column of the answers (default: the first of chosen, completion, text, response, answer)",
    )
    parser.add_argument("--split", default="train", metavar="S", help="split of folders and Hub ids (default: train)")
    parser.add_argument("--tokenizer", metavar="ID", help="Hub id or folder of a tokenizer (default: words)")
    parser.add_argument("--embedding", metavar="ID", help="also by embeddings: embedded:minilm-l6-v2, Hub id or folder")
    parser.add_argument(
        "--max-rows", type=int, default=2000, metavar="N", help="most rows of the Vendi score (default: 2000)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the sample above that (default: 0)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--output", metavar="FILE.json", help="also write the report there as JSON")


def diversity(args: argparse.Namespace) -> int:
    """`lifealign diversity`."""
    import contextlib
    import json
    import sys

    for name, least in (("max_rows", 2), ("seed", 0), ("limit", 2)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"You set --{name.replace('_', '-')} {value}. Set at least {least}.")
    output = None if args.output is None else _output(args.output, args.dataset, args.split)

    from hf_lifealign._files import write_text
    from hf_lifealign.diversity.report import diversity_report

    # loading a model may tell something, which is none of the report
    with contextlib.redirect_stdout(sys.stderr):
        report = diversity_report(
            args.dataset,
            column=args.column,
            tokenizer=args.tokenizer,
            split=args.split,
            embedding=args.embedding,
            max_rows=args.max_rows,
            seed=args.seed,
            limit=args.limit,
        )
    # in ASCII: every control character of the data is escaped, in a file that is shown with `cat` too
    content = json.dumps(report.to_json(), indent=2)
    if output is not None:
        write_text(output, content + "\n")
    told = report.text() if output is None else f"{report.text()}\n\n{output}"
    encoding = sys.stdout.encoding or "utf-8"
    # the data may hold what this terminal's encoding does not
    print(content if args.json else told.encode(encoding, "backslashreplace").decode(encoding))
    return 0


def _output(output: str, dataset: str, split: str) -> Path:
    """Where the report goes, if that is no folder and not the data itself.

    Raises:
        ValueError: if it is.
    """
    from hf_lifealign.stream.tables import file_of_split

    path = Path(output)
    if path.is_dir():
        raise ValueError(f"You set --output {output}, which is a folder. Name a file in it.")
    data = file_of_split(dataset, split) or Path(dataset).expanduser()
    if path.exists() and data.exists() and path.samefile(data):
        raise ValueError(f"You set --output {output}, which is the data itself. Name another file.")
    return path


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {"diversity": diversity}
