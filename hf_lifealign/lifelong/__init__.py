"""The lifelong run: a stream of tasks through one adapter, resumable at any instant, measured after every task."""

from hf_lifealign.lifelong.config import LifelongConfig
from hf_lifealign.lifelong.trainer import LifelongTrainer

__all__ = ["LifelongConfig", "LifelongTrainer"]
