"""Reward functions that run offline and follow TRL's protocol, and how a recipe names one."""

from hf_lifealign.rewards.bradley_terry import bradley_terry_fit
from hf_lifealign.rewards.brevity import BrevityReward
from hf_lifealign.rewards.encoder import SharedEncoder, shared_encoder
from hf_lifealign.rewards.head import MiniLMBradleyTerryReward
from hf_lifealign.rewards.record import RewardRecord
from hf_lifealign.rewards.resolve import resolve_reward

__all__ = [
    "BrevityReward",
    "MiniLMBradleyTerryReward",
    "RewardRecord",
    "SharedEncoder",
    "bradley_terry_fit",
    "resolve_reward",
    "shared_encoder",
]
