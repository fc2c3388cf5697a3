"""A made-up run's folder, as the lifelong trainer writes it, for tests of what reads it."""

import json
import math
import random
from pathlib import Path
from typing import Any

TASKS = ["truthful", "harmless", "helpful", "safe"]
_ACCURACY = [
    [0.879, 0.512, 0.487, 0.521],
    [0.862, 0.714, 0.422, 0.577],
    [0.845, 0.429, 0.661, 0.503],
    [0.871, 0.607, 0.524, 0.744],
]


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def matrix_content(trained: int, full: bool, tasks: list[str], judges: bool) -> dict[str, Any]:
    """Content of matrix.json after `trained` tasks; `full` rows hold all tasks, others those trained so far."""
    n = len(tasks)

    def rows(scale: float, shift: float) -> list[list[float]]:
        return [
            [round(_ACCURACY[i][j] * scale + shift, 4) for j in range(n if full else i + 1)] for i in range(trained)
        ]

    matrices = {"preference_accuracy": rows(1, 0), "margin": rows(16, -8)}
    if judges:
        matrices["rouge_l"] = rows(0.4, 0)
    baseline = {name: [{"preference_accuracy": 0.5, "margin": 0.0}.get(name, 0.17)] * n for name in matrices}
    return {
        "format": 1,
        "metric": "preference_accuracy",
        "tasks": tasks,
        "counts": [58, 680, 647, 234][:n],
        "matrices": matrices,
        "baseline": baseline if full else None,
        "perplexity": {"base": 21.4, "after": [21.9, 22.6, 22.4, 23.1][:trained]},
        "summary": {},
    }


def consolidation(task: str, phase: str, index: int, share: float = 0.0021) -> dict[str, Any]:
    """A ConsolidationReport as JSON, with two modules."""
    totals = {
        "update_norm": 2.31 + index * 0.1,
        "denoised_norm": 2.2,
        "refined_norm": 2.19 + index * 0.1,
        "energy_kept": 0.912,
        "history_share": 0.0 if index == 0 else share,
        "mean_rank_kept": 5.5,
        "history_energy_kept": 1.0,
    }
    modules = [{"name": f"layers.{i}.q_proj.lora_A.default.weight"} for i in range(2)]
    report = {"task": task, "phase": phase, "index": index, "modules": modules, "unconsolidated": [], "seconds": 0.8}
    return {**report, "totals": totals}


def phase_log(phase: str, steps: int, seed: int) -> list[dict[str, float]]:
    """What a trainer logs, every second step, with the closing entry that has no loss."""
    noise, entries = random.Random(seed), []
    for step in range(2, steps + 1, 2):
        learnt = 1 - math.exp(-4 * step / steps)
        entry: dict[str, float] = {"step": step, "epoch": step / steps, "learning_rate": 1e-4}
        if phase == "warm_start":
            entry["loss"] = 2.6 - 0.8 * learnt + noise.gauss(0, 0.12)
        else:
            wobble = noise.gauss(0, 0.05)
            weight = max(0.25 - 0.15 * learnt + wobble, 0.02)
            entry |= {
                "loss": max(0.173 - 0.09 * learnt + noise.gauss(0, 0.015), 0.02),
                "rewards/accuracies": min(max(0.5 + 0.35 * learnt + noise.gauss(0, 0.09), 0), 1),
                "rewards/margins": 0.9 * learnt + noise.gauss(0, 0.15),
                "focal/weight": weight,
                "focal/mastered": min(max(0.3 * learnt + wobble, 0), 1),
                "focal/review": min(max(0.45 - 0.3 * learnt + wobble, 0), 1),
            }
        entries.append(entry)
    return [*entries, {"step": steps, "train_runtime": 311.0, "train_loss": 0.1}]


def fake_run(
    root: Path,
    trained: int = 4,
    tasks: list[str] | None = None,
    full: bool = True,
    judges: bool = False,
    warm_start: bool = True,
    history_share: float = 0.0021,
) -> Path:
    """Writes a run of which `trained` tasks are finished, and returns its folder."""
    tasks = tasks or TASKS
    if trained:
        write_json(root / "matrix.json", matrix_content(trained, full, tasks, judges))
    state: dict[str, Any] = {
        "format": 1,
        "status": "done" if trained == len(tasks) else "running",
        "settings": {
            "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "run": {"seed": 42, "metric": "preference_accuracy", "judges": []},
            "trainer": "FPOTrainer",
            "training": {"class": "FPOConfig", "learning_rate": 1e-4, "focal_gamma": 2.0},
            "adapter": {"peft_type": "SLMC", "r": 16, "target_modules": ["q_proj", "v_proj"]},
            "strategies": [{"name": "replay", "share": 0.2}, {"name": "consolidation"}],
            "tasks": [{"name": task, "rows": "3f1c"} for task in tasks],
        },
        "tasks": [],
        "versions": {"python": "3.11.2", "trl": "1.16.0", "peft": "0.21.2"},
    }
    phases = ["warm_start", "preference"] if warm_start else ["preference"]
    index = 0
    for i, task in enumerate(tasks):
        record: dict[str, Any] = {"phases": []}
        for phase in phases if i < trained else []:
            steps = (12 if phase == "warm_start" else 50) + 8 * (i % 2)
            write_json(root / "logs" / f"{i + 1:02d}-{task}-{phase}.json", phase_log(phase, steps, 7 * i + len(phase)))
            record["phases"].append({
                "phase": phase, "steps": steps, "train_rows": 200, "replay_rows": 40 * i, "seconds": 211.4 + 60 * i,
                "peak_memory_mb": 2413.7, "consolidation": consolidation(task, phase, index, history_share),
            })  # fmt: skip
            index += 1
        if i < trained:
            record["evaluation_seconds"] = 47.2
        state["tasks"].append({"name": task, "status": "done" if i < trained else "pending", "record": record})
    write_json(root / "state.json", state)
    if trained == len(tasks):
        write_json(root / "samples.json", {
            "prompts": ["What happens if you swallow chewing gum?", [{"role": "user", "content": "Say | no."}]],
            "base": ["It stays in your stomach for seven years.", "```\nfence\n```"],
            "after": ["It passes through your digestive system.", ""],
        })  # fmt: skip
    return root
