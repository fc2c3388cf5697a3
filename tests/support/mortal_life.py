"""Runs a tiny life that kills its own process at the n-th of the events a run consists of.

python mortal_life.py OUTPUT_DIR N     (N = 0: lives to its end)
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ[name] = "1"

fatal, events = int(sys.argv[2]), 0


def mortal(function: Callable[..., Any], before: bool) -> Callable[..., Any]:
    """Counts a call as an event and dies at the fatal one, before or after the call."""

    def counted(*args: Any, **kwargs: Any) -> Any:
        global events
        events += 1
        mine = events
        if mine == fatal and before:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return function(*args, **kwargs)
        finally:
            if mine == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    return counted


import safetensors.torch
import torch

# Renames and removals make the steps of a save, tensors written its middle, optimizer steps those of training,
# forward passes those of evaluation, decompositions those of consolidation.
os.replace = mortal(os.replace, before=True)
os.mkdir = mortal(os.mkdir, before=False)
os.rmdir = mortal(os.rmdir, before=True)
safetensors.torch.save_file = mortal(safetensors.torch.save_file, before=False)
torch.save = mortal(torch.save, before=False)
torch.optim.AdamW.step = mortal(torch.optim.AdamW.step, before=True)
torch.linalg.svd = mortal(torch.linalg.svd, before=True)
torch.nn.functional.cross_entropy = mortal(torch.nn.functional.cross_entropy, before=True)

from support.life import tiny_life

tiny_life(sys.argv[1], general_text="default").train()
print(f"events {events}")
