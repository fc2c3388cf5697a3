"""What the long benchmarks share: quiet libraries, and a folder that holds the results of one choice of settings."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars

from hf_lifealign._files import read_json, write_json


def quiet(threads: int | None = None) -> None:
    """Leaves the terminal to the benchmark's own lines, and sets how many threads torch may use."""
    disable_progress_bars()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if threads:
        torch.set_num_threads(threads)


def keep_settings(root: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings into a folder of results; ends the benchmark if the folder holds results of others."""
    told, file = json.loads(json.dumps(settings)), root / "settings.json"
    if file.is_file() and (held := read_json(file)) != told:
        other = sorted(key for key in {*held, *told} if held.get(key) != told.get(key))
        raise SystemExit(
            f"{root} holds results of other settings ({', '.join(other)}), see {file}. Give another --output."
        )
    write_json(file, told)
