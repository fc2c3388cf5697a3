"""L2P, Learning to Prompt: a PEFT adapter type that keeps a pool of prompts and chooses among them for each row.

Importing this package registers the type with PEFT. Source: arXiv 2112.08654.
"""

from hf_lifealign._peft_types import register
from hf_lifealign.prompt_pool.config import L2P_NAME, L2PConfig
from hf_lifealign.prompt_pool.model import L2PModel, pools_of, told_prompts

register(L2P_NAME, L2PConfig, L2PModel)

__all__ = ["L2PConfig", "L2PModel", "pools_of", "told_prompts"]
