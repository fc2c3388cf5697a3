"""Peak memory of the process or the accelerator."""

import resource
import sys

import torch


def reset_peak_memory() -> None:
    """Starts a new measurement where the platform can (CUDA; a process's own peak cannot be reset)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_mb() -> float:
    """Peak memory in MiB: of the CUDA device since the last reset, else of the process since it started."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
