"""SLMC, Short-to-Long Memory Consolidation: a PEFT adapter type that keeps what earlier tasks taught.

Importing this package registers the type with PEFT. Source: LifeAlign, arXiv 2509.17183.
"""

from hf_lifealign._peft_types import register

from .callback import ConsolidationCallback
from .config import SLMCConfig
from .consolidation import ConsolidationError
from .hooks import ConsolidationVetoed
from .loading import load_folder
from .memory import Memory, SLMCMemoryError
from .model import SLMCModel
from .report import ConsolidationReport, ModuleReport

# It trains LoRA's own parameters, so that PEFT finds them by LoRA's prefix.
register("SLMC", SLMCConfig, SLMCModel)

__all__ = [
    "ConsolidationCallback",
    "ConsolidationError",
    "ConsolidationReport",
    "ConsolidationVetoed",
    "Memory",
    "ModuleReport",
    "SLMCConfig",
    "SLMCMemoryError",
    "SLMCModel",
    "load_folder",
]
