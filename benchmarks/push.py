"""Time of publishing one task, against a plain upload of the same folder: both to a Hub on this machine.

python benchmarks/push.py [--megabytes 20] [--repeats 9]

What is measured is our own work and the requests; a real network adds the same bytes to both sides.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))


def make_run(root: Path, megabytes: float, seed: int) -> Path:
    """A finished run of one task whose adapter and memory have the size asked for, half each."""
    from hf_lifealign.hub.record import RunRecord

    folder = root / "adapters" / "01-task"
    (folder / "slmc").mkdir(parents=True)
    draw = np.random.default_rng(seed)
    rows = max(1, int(megabytes * 1e6 / 2 / 4 / 16 / 2))
    shapes = {"A": (16, rows), "B": (rows, 16)}
    factors = {
        f"base_model.model.layer.lora_{side}.weight": draw.standard_normal(shape, np.float32)
        for side, shape in shapes.items()
    }
    save_file(factors, folder / "adapter_model.safetensors")
    save_file({"history/layer/00000/rsm": next(iter(factors.values()))}, folder / "slmc" / "memory.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 16, "lora_alpha": 16}))
    matrix = {
        "format": 1, "metric": "preference_accuracy", "tasks": ["task"], "counts": [10], "baseline": None,
        "matrices": {"preference_accuracy": [[0.5]]}, "perplexity": None, "summary": {"preference_accuracy": {}},
    }  # fmt: skip
    (folder / "matrix.json").write_text(json.dumps(matrix))
    (folder / "matrix.png").write_bytes(draw.bytes(40_000))
    RunRecord(["task"], ["task"], {"base_model": "owner/base"}, {"task": {"phases": []}}, {"task": {}}).write(folder)
    state = {"tasks": [{"name": "task", "label": "01-task", "status": "done", "record": {"phases": []}}]}
    (root / "state.json").write_text(json.dumps(state))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=20.0)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import disable_progress_bars
    from support.hub_server import HubServer

    from hf_lifealign.hub.publish import push_run
    from hf_lifealign.hub.remote import Remote

    constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = False, True
    disable_progress_bars()
    ours, plain, again = [], [], []
    with HubServer() as server, tempfile.TemporaryDirectory() as scratch:
        api = HfApi(endpoint=server.url, token="hf_test_write_me")
        for repeat in range(args.repeats):
            root = Path(scratch) / str(repeat)
            folder = make_run(root, args.megabytes, repeat)
            start = time.perf_counter()
            push_run(root, Remote(f"me/ours-{repeat}", api=api))
            ours.append(time.perf_counter() - start)
            start = time.perf_counter()
            push_run(root, Remote(f"me/ours-{repeat}", api=api))
            again.append(time.perf_counter() - start)
            start = time.perf_counter()
            api.create_repo(f"me/plain-{repeat}")
            commit = api.upload_folder(repo_id=f"me/plain-{repeat}", folder_path=folder)
            api.create_tag(f"me/plain-{repeat}", tag="task-01", revision=commit.oid)
            plain.append(time.perf_counter() - start)
    medians = [statistics.median(times) for times in (ours, plain, again)]
    print(f"one task of {args.megabytes:g} MB, medians of {args.repeats} alternating pushes to a Hub on this machine")
    print(f"  published, verified and tagged  {medians[0]:.3f} s")
    print(f"  upload_folder and create_tag    {medians[1]:.3f} s")
    print(f"  difference                      {medians[0] - medians[1]:+.3f} s (ratio {medians[0] / medians[1]:.2f})")
    print(f"  pushed again, nothing to send   {medians[2]:.3f} s")


if __name__ == "__main__":
    main()
