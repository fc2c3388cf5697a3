"""SLMC, Short-to-Long Memory Consolidation: a PEFT adapter type that keeps what earlier tasks taught.

Importing this package registers the type with PEFT. Source: LifeAlign, arXiv 2509.17183.
"""

from .callback import ConsolidationCallback
from .config import SLMCConfig
from .consolidation import ConsolidationError
from .hooks import ConsolidationVetoed
from .loading import load_folder
from .memory import Memory, SLMCMemoryError
from .model import SLMCModel
from .register import register
from .report import ConsolidationReport, ModuleReport

register(SLMCConfig, SLMCModel)

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
