"""hf_lifealign keeps a language model aligned through a whole life of preference tasks.

The public API is what ``__all__`` names. Names are loaded when they are first touched (PEP 562), so that
``import hf_lifealign`` itself costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> the module that holds it
_EXPORTS = {
    "FPOConfig": "hf_lifealign.fpo.config",
    "FPOTrainer": "hf_lifealign.fpo.trainer",
    "focal_preference_loss": "hf_lifealign.fpo.loss",
    "focal_weight": "hf_lifealign.fpo.loss",
    "L2PConfig": "hf_lifealign.prompt_pool",
    "SLMCConfig": "hf_lifealign.slmc",
    "SLMCModel": "hf_lifealign.slmc",
    "ConsolidationCallback": "hf_lifealign.slmc",
    "ConsolidationReport": "hf_lifealign.slmc",
    "ConsolidationVetoed": "hf_lifealign.slmc",
    "load_adapter": "hf_lifealign.hub.loading",
    "PushOptions": "hf_lifealign.hub.publish",
    "push_run": "hf_lifealign.hub.publish",
    "push_metric": "hf_lifealign.hub.metric_space",
    "push_task_dataset": "hf_lifealign.hub.dataset_repo",
    "MetaAlignerConfig": "hf_lifealign.meta_aligner.config",
    "MetaAlignerTrainer": "hf_lifealign.meta_aligner.trainer",
    "MetaAlignedPolicy": "hf_lifealign.meta_aligner.policy",
    "load_meta_aligned": "hf_lifealign.meta_aligner.policy",
    "load_routed": "hf_lifealign.routing",
    "RoutedPolicy": "hf_lifealign.routing",
    "Task": "hf_lifealign.stream",
    "TaskStream": "hf_lifealign.stream",
    "LifelongConfig": "hf_lifealign.lifelong",
    "LifelongTrainer": "hf_lifealign.lifelong",
    "Strategy": "hf_lifealign.strategies",
    "MetaAlignerStrategy": "hf_lifealign.strategies.meta_aligner",
    "load_metric": "hf_lifealign.metrics",
    "metric_path": "hf_lifealign.metrics",
    "BrevityReward": "hf_lifealign.rewards",
    "MiniLMBradleyTerryReward": "hf_lifealign.rewards",
    "resolve_reward": "hf_lifealign.rewards",
    "ClassifierJudge": "hf_lifealign.judges",
    "KeywordJudge": "hf_lifealign.judges",
    "LLMJudge": "hf_lifealign.judges",
    "RewardJudge": "hf_lifealign.judges",
    "resolve_judge": "hf_lifealign.judges",
    "AlignmentDynamicsCallback": "hf_lifealign.dynamics.callback",
    "diversity_report": "hf_lifealign.diversity",
    "SelfAlign": "hf_lifealign.self_align.pipeline",
    "SelfAlignConfig": "hf_lifealign.self_align.config",
    "evaluate_choices": "hf_lifealign.self_align.choice_evaluation",
    "load_questions": "hf_lifealign.self_align.question_files",
}

__all__ = ["__version__", *_EXPORTS]

if TYPE_CHECKING:
    from hf_lifealign.diversity import diversity_report as diversity_report
    from hf_lifealign.dynamics.callback import AlignmentDynamicsCallback as AlignmentDynamicsCallback
    from hf_lifealign.fpo.config import FPOConfig as FPOConfig
    from hf_lifealign.fpo.loss import focal_preference_loss as focal_preference_loss
    from hf_lifealign.fpo.loss import focal_weight as focal_weight
    from hf_lifealign.fpo.trainer import FPOTrainer as FPOTrainer
    from hf_lifealign.hub.dataset_repo import push_task_dataset as push_task_dataset
    from hf_lifealign.hub.loading import load_adapter as load_adapter
    from hf_lifealign.hub.metric_space import push_metric as push_metric
    from hf_lifealign.hub.publish import PushOptions as PushOptions
    from hf_lifealign.hub.publish import push_run as push_run
    from hf_lifealign.judges import ClassifierJudge as ClassifierJudge
    from hf_lifealign.judges import KeywordJudge as KeywordJudge
    from hf_lifealign.judges import LLMJudge as LLMJudge
    from hf_lifealign.judges import RewardJudge as RewardJudge
    from hf_lifealign.judges import resolve_judge as resolve_judge
    from hf_lifealign.lifelong import LifelongConfig as LifelongConfig
    from hf_lifealign.lifelong import LifelongTrainer as LifelongTrainer
    from hf_lifealign.meta_aligner.config import MetaAlignerConfig as MetaAlignerConfig
    from hf_lifealign.meta_aligner.policy import MetaAlignedPolicy as MetaAlignedPolicy
    from hf_lifealign.meta_aligner.policy import load_meta_aligned as load_meta_aligned
    from hf_lifealign.meta_aligner.trainer import MetaAlignerTrainer as MetaAlignerTrainer
    from hf_lifealign.metrics import load_metric as load_metric
    from hf_lifealign.metrics import metric_path as metric_path
    from hf_lifealign.prompt_pool import L2PConfig as L2PConfig
    from hf_lifealign.rewards import BrevityReward as BrevityReward
    from hf_lifealign.rewards import MiniLMBradleyTerryReward as MiniLMBradleyTerryReward
    from hf_lifealign.rewards import resolve_reward as resolve_reward
    from hf_lifealign.routing import RoutedPolicy as RoutedPolicy
    from hf_lifealign.routing import load_routed as load_routed
    from hf_lifealign.self_align.choice_evaluation import evaluate_choices as evaluate_choices
    from hf_lifealign.self_align.config import SelfAlignConfig as SelfAlignConfig
    from hf_lifealign.self_align.pipeline import SelfAlign as SelfAlign
    from hf_lifealign.self_align.question_files import load_questions as load_questions
    from hf_lifealign.slmc import ConsolidationCallback as ConsolidationCallback
    from hf_lifealign.slmc import ConsolidationReport as ConsolidationReport
    from hf_lifealign.slmc import ConsolidationVetoed as ConsolidationVetoed
    from hf_lifealign.slmc import SLMCConfig as SLMCConfig
    from hf_lifealign.slmc import SLMCModel as SLMCModel
    from hf_lifealign.strategies import Strategy as Strategy
    from hf_lifealign.strategies.meta_aligner import MetaAlignerStrategy as MetaAlignerStrategy
    from hf_lifealign.stream import Task as Task
    from hf_lifealign.stream import TaskStream as TaskStream


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
