"""Strategies: what a lifelong run does around training (replay, consolidation, and what third parties add)."""

from hf_lifealign.strategies.base import PREFERENCE, WARM_START, Phase, PhaseTrainer, Run, Strategy, brings_extra_loss
from hf_lifealign.strategies.registry import JUDGES, STRATEGIES, available, load, resolve_strategies

__all__ = [
    "JUDGES",
    "PREFERENCE",
    "STRATEGIES",
    "WARM_START",
    "Phase",
    "PhaseTrainer",
    "Run",
    "Strategy",
    "available",
    "brings_extra_loss",
    "load",
    "resolve_strategies",
]
