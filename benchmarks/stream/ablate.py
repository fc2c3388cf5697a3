"""Which part of a routed memory does the work: its gate, its views, or that they lean on the mean.

    python benchmarks/stream/ablate.py RUN ROWS [--part validation] [--pairs 100] [--leans 0 0.333]

RUN is the folder of a finished life with the strategy "routed_memory", ROWS the folder that prepare.py wrote. Nothing
is trained: the life's own updates are summed under other weights, and its gate is asked or passed by. Told are the
preference accuracies of tasks and their mean:

- one adapter: the mean of all updates answers every prompt;
- task known: each prompt is answered by the view of its own task;
- gate: by the view to which the gate leads it.

A lean of 0 is the task's own update alone. Prints the table, how often the gate leads where, and writes ablation.json
into the folder that holds RUN.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from prepare import PARTS
from transformers import AutoTokenizer

from hf_lifealign import FPOConfig
from hf_lifealign._files import read_json, write_json
from hf_lifealign.compare.figures import wins
from hf_lifealign.lifelong.evaluation import pair_margins, prompt_ids
from hf_lifealign.lifelong.scoring import encode_pairs, score_pairs
from hf_lifealign.models import resolve_model
from hf_lifealign.routing import load_routed, prompt_features, view_weights
from hf_lifealign.strategies.merging import summed_updates
from hf_lifealign.strategies.tensors import put_back, read_tensors

Array = NDArray[np.float64]


class Memory:
    """A life's updates and gate, on rows of its tasks.

    Args:
        run (`Path`): folder of the life.
        rows (`Path`): folder of the rows.
        part (`str`): which of them, pairs (`int`): at most so many of each task.
        model (`str`): the base.
    """

    def __init__(self, run: Path, rows: Path, part: str, pairs: int, model: str) -> None:
        settings = read_json(run / "state.json")["settings"]
        folder = resolve_model(model)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        last = max(folder.name for folder in (run / "adapters").iterdir())
        policy = load_routed(folder, run / "adapters" / last, self.tokenizer)
        self.model, self.gate, self.tasks = policy.model, policy.gate, policy.gate.tasks
        memory = run / "routed_memory"
        self.updates = {
            task: read_tensors(memory / f"{i:02d}-{task}.safetensors") for i, task in enumerate(self.tasks, start=1)
        }
        self.pairs, self.prompts, self.reference = {}, {}, {}
        args = settings["training"]
        for task in self.tasks:
            lines = (rows / task / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()[:pairs]
            read = [json.loads(line) for line in lines]
            found = encode_pairs(
                Dataset.from_list(read), self.tokenizer, args.get("max_length", FPOConfig.max_length),
                args.get("truncation_mode", FPOConfig.truncation_mode),
            )  # fmt: skip
            whole = [i for i, pair in enumerate(found) if not pair.is_empty]
            self.pairs[task] = [found[i] for i in whole]
            self.prompts[task] = prompt_ids(self.tokenizer, [read[i] for i in whole])
            with self.model.disable_adapter():
                self.reference[task] = score_pairs(self.model, self.pairs[task], 0, 16)

    def routes(self, task: str) -> list[str]:
        """Where the gate leads the prompts of a task."""
        return self.gate.route(prompt_features(self.model, self.prompts[task], 0))

    def put(self, weights: Mapping[str, float]) -> None:
        """Makes a weighed sum of the updates the model's adapter."""
        put_back(self.model, summed_updates(self.model, self.updates, weights)[0])

    def margins(self, task: str, indices: Sequence[int]) -> list[float]:
        """Margins of some of a task's pairs under the model as it stands, in nats."""
        scored = score_pairs(self.model, [self.pairs[task][i] for i in indices], 0, 16)
        return pair_margins(scored, [self.reference[task][i] for i in indices])


def by_views(memory: Memory, lean: float, routes: Mapping[str, Sequence[str]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Margins of each task's pairs with the task known, and where the gate leads them."""
    known = {task: np.zeros(len(memory.pairs[task])) for task in memory.tasks}
    gated = {task: np.zeros(len(memory.pairs[task])) for task in memory.tasks}
    for view in memory.tasks:
        memory.put(view_weights(memory.tasks, view, lean))
        for task in memory.tasks:
            led = [i for i, name in enumerate(routes[task]) if name == view]
            asked = list(range(len(routes[task]))) if task == view else led
            found = dict(zip(asked, memory.margins(task, asked), strict=True)) if asked else {}
            for i in led:
                gated[task][i] = found[i]
            if task == view:
                known[task][:] = [found[i] for i in asked]
    return known, gated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--part", default="validation", choices=PARTS)
    parser.add_argument("--pairs", type=int, default=100, help="of each task, at most")
    parser.add_argument("--model", default="embedded:smollm2-135m", help="the base of the life")
    parser.add_argument("--leans", type=float, nargs="+", default=[0.0, 1 / 3])
    options = parser.parse_args()
    memory = Memory(options.run, options.rows, options.part, options.pairs, options.model)
    routes = {task: memory.routes(task) for task in memory.tasks}
    led = {task: {view: routes[task].count(view) for view in memory.tasks} for task in memory.tasks}
    lines: dict[str, dict[str, float]] = {}

    def tell(name: str, margins: Mapping[str, Sequence[float] | Array]) -> None:
        lines[name] = {task: float(wins(np.asarray(found)).mean()) for task, found in margins.items()}
        told = "  ".join(f"{task} {value:.3f}" for task, value in lines[name].items())
        print(f"{name:32s} {told}  mean {np.mean(list(lines[name].values())):.4f}", flush=True)

    memory.put(view_weights(memory.tasks, memory.tasks[0], 1.0))
    tell("one adapter, the mean", {task: memory.margins(task, range(len(routes[task]))) for task in memory.tasks})
    for lean in options.leans:
        known, gated = by_views(memory, lean, routes)
        tell(f"task known, lean {lean:.2f}", known)
        tell(f"gate, lean {lean:.2f}", gated)
    for task, counts in led.items():
        print(f"prompts of {task} are led to {counts}")
    write_json(options.run.parent / "ablation.json", {"part": options.part, "accuracy": lines, "routes": led})


if __name__ == "__main__":
    main()
