"""Focalized Preference Optimization (FPO): DPO gated by how well each pair is already mastered."""

from hf_lifealign.fpo.config import FPOConfig
from hf_lifealign.fpo.loss import focal_preference_loss, focal_weight
from hf_lifealign.fpo.trainer import FPOTrainer

__all__ = ["FPOConfig", "FPOTrainer", "focal_preference_loss", "focal_weight"]
