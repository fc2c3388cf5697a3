"""FPOTrainer: DPOTrainer whose sigmoid loss is gated by how well each pair is already mastered."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from transformers import (
    DataCollator,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
)
from trl import DPOTrainer
from trl.trainer.utils import get_config_model_id

from hf_lifealign._modes import require_differentiable
from hf_lifealign._osf import keep_projections
from hf_lifealign.fpo.card import AdapterCardMixin
from hf_lifealign.fpo.config import FPOConfig
from hf_lifealign.fpo.extra_loss import ExtraLossMixin
from hf_lifealign.fpo.loss import focal_preference_loss, focal_weight
from hf_lifealign.fpo.pair_packing import PairPackingMixin
from hf_lifealign.fpo.reference import base_fingerprint, drop_reference_adapter, resolve_reference_model
from hf_lifealign.prompt_pool.training import PromptPoolMixin

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig


class _MarginProbe(float):
    """DPO's `beta` that remembers what was multiplied with it.

    DPOTrainer forms the reward margin ``beta * delta_score`` inside one long method, after truncation, `ld_alpha`
    and the f-divergence were applied. Recording that product gives FPO the very margin, graph included, of which
    DPOTrainer takes its sigmoid loss, for every combination of its options and without repeating its code.
    """

    products: list[torch.Tensor]

    def __mul__(self, other: Any) -> Any:
        product = float(self) * other
        self.products.append(product)
        return product


def with_consolidation(
    callbacks: list[TrainerCallback] | None, model: Any, peft_config: "PeftConfig | None", args: FPOConfig
) -> list[TrainerCallback] | None:
    """The callbacks, and a ConsolidationCallback if the adapter is SLMC and they bring none.

    It has to be there when the trainer is built: it learns from where a resumed run is loaded by watching that.
    """
    config = peft_config
    if config is None and not isinstance(model, str) and is_peft_model(model):
        config = model.peft_config.get("default")
    if config is None or config.peft_type != "SLMC":
        return callbacks
    from hf_lifealign.slmc import ConsolidationCallback

    if any(isinstance(callback, ConsolidationCallback) for callback in callbacks or ()):
        return callbacks
    return [*(callbacks or ()), ConsolidationCallback(task_name=Path(str(args.output_dir)).name)]


class FPOTrainer(AdapterCardMixin, PromptPoolMixin, ExtraLossMixin, PairPackingMixin, DPOTrainer):
    r"""
    Trainer for Focalized Preference Optimization (FPO), the learning half of LifeAlign (arXiv 2509.17183).

    It is a [`~trl.DPOTrainer`] and takes what that takes. The difference is the `"sigmoid"` loss, which becomes
    ``-(1 - p)^gamma * log p`` with ``p`` the sigmoid of the reward margin, and the explicit choice of the reference
    (see [`FPOConfig`]). Beside DPOTrainer's it logs `focal/weight` (mean weight of a pair), `focal/mastered` (share
    of pairs with a weight under 0.05) and `focal/review` (share with p < 0.5).

    With an adapter of type SLMC ([`SLMCConfig`]) it consolidates the adapter when training ends, by adding a
    [`ConsolidationCallback`] (whose task is named after `output_dir`) unless one is among `callbacks`.
    Rows that already carry `ref_chosen_logps` and `ref_rejected_logps` are used as they are with
    `precompute_ref_log_probs=True`.

    Pairs are laid in packed rows where that is known to give the same log-probabilities (`pair_packing` of
    [`FPOConfig`]; `is_packed` says whether it does). Batches, the pairs of a step and what is logged stay
    DPOTrainer's. 4-bit weights (QLoRA) are kept in the layout in which they can be trained, also on CPUs on which
    bitsandbytes has another one for inference.

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from hf_lifealign import FPOConfig, FPOTrainer, SLMCConfig

    >>> trainer = FPOTrainer(
    ...     model="Qwen/Qwen2.5-0.5B-Instruct",
    ...     args=FPOConfig("Qwen2.5-0.5B-FPO"),
    ...     train_dataset=load_dataset("trl-lib/ultrafeedback_binarized", split="train"),
    ...     peft_config=SLMCConfig(r=16, target_modules="all-linear"),
    ... )
    >>> trainer.train()
    ```

    The arguments are those of [`~trl.DPOTrainer`]. `args` has to be an [`FPOConfig`]. With `reference="base"` a
    given `ref_model` is the base; with `reference="previous"` none may be given.

    Raises:
        TypeError: if `args` is not an [`FPOConfig`].
        ValueError: if the reference that was asked for cannot be had with this model, adapter or `ref_model`; or if
            4-bit weights of the model have been laid out for inference.
        PackedPathError: on the first batch, if the model does not keep to the mask or the positions of packed rows.
    """

    # Reward margins of the batch whose loss was computed last, of shape `(pairs,)`, with their graph: extra losses may
    # look at them.
    reward_margins: torch.Tensor | None = None

    _tag_names = ["trl", "fpo", "hf-lifealign"]
    _name = "FPO"
    _paper = {
        "title": "LifeAlign: Lifelong Alignment for Large Language Models with Memory-Augmented Focalized Preference "
        "Optimization",
        "id": "2509.17183",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @inproceedings{li2026lifealign,
                title        = {{LifeAlign: Lifelong Alignment for Large Language Models with Memory-Augmented Focalized Preference Optimization}},
                author       = {Junsong Li and Jie Zhou and Bihao Zhan and Yutao Yang and Qianjun Pan and Shilian Chen and Tianyu Huai and Xin Li and Qin Chen and Liang He},
                year         = 2026,
                booktitle    = {Proceedings of the AAAI Conference on Artificial Intelligence},
                doi          = {10.1609/aaai.v40i37.40428},
                eprint       = {arXiv:2509.17183}
            }"""),  # noqa: E501
    }

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        ref_model: PreTrainedModel | None = None,
        args: FPOConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset
        | IterableDataset
        | DatasetDict
        | IterableDatasetDict
        | dict[str, Dataset | IterableDataset]
        | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: "BitsAndBytesConfig | None" = None,
        peft_config: "PeftConfig | None" = None,
    ):
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = FPOConfig(f"{model_name.split('/')[-1]}-FPO")
        elif not isinstance(args, FPOConfig):
            raise TypeError(
                f"You passed args of type {type(args).__name__}. FPOTrainer needs to know focal_gamma and reference. "
                "Pass an hf_lifealign.FPOConfig, which takes every argument of DPOConfig."
            )
        ref_model = resolve_reference_model(model, ref_model, args, peft_config)
        # A copy that an earlier trainer left would be taken for this one's reference.
        drop_reference_adapter(model)
        self._own_reference = ref_model is None
        self._base_fingerprint: str | None = None
        self.focal_gamma = args.focal_gamma
        self.reference = args.reference
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=with_consolidation(callbacks, model, peft_config, args),
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        self._use_base_reference()
        require_differentiable(self.model)
        keep_projections(self.model)
        self._add_packing()
        # "sigmoid" goes first, so that the first product with beta is the margin. Its own term is DPO's, which the
        # focal term replaces; gamma = 0 leaves DPO as it is.
        index = self.loss_types.index("sigmoid")
        self.loss_types = ["sigmoid", *self.loss_types[:index], *self.loss_types[index + 1 :]]
        self.focal_loss_weight = self.loss_weights[index]
        others = [*self.loss_weights[:index], *self.loss_weights[index + 1 :]]
        self.loss_weights = [0.0 if self.focal_gamma > 0 else self.focal_loss_weight, *others]

    def _use_base_reference(self) -> None:
        """Makes "adapters off" the reference where DPOTrainer has put a copy of the current adapter."""
        if self.reference == "base" and self._own_reference:
            drop_reference_adapter(self.accelerator.unwrap_model(self.model))

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        if {"ref_chosen_logps", "ref_rejected_logps"} <= set(dataset.column_names or ()):
            return dataset
        require_differentiable(self.model)
        self._add_packing()
        if self.reference == "base" and self._own_reference and is_peft_model(self.model):
            # DPOTrainer's constructor calls this while its copy of the adapter is there.
            self._use_base_reference()
            self._base_fingerprint = self._base_fingerprint or base_fingerprint(self.model)
            self._precompute_model_hash = self._base_fingerprint
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        probe = _MarginProbe(self.beta)
        probe.products = []
        self.beta = probe
        try:
            result = super()._compute_loss(model, inputs, return_outputs)
        finally:
            self.beta = float(probe)
        self.reward_margins = margin = probe.products[0]
        self._log_gate(margin.detach())
        if self.focal_gamma == 0:
            return result
        focal = self.focal_loss_weight * focal_preference_loss(margin, self.focal_gamma).mean()
        return (result[0] + focal, result[1]) if return_outputs else result + focal

    def _log_gate(self, margin: torch.Tensor) -> None:
        """Records the gate's figures for a batch of margins, `torch.Tensor` of shape `(pairs,)`."""
        margin = self.accelerator.gather(margin)
        weight = focal_weight(margin, self.focal_gamma)
        metrics = self._metrics["train" if self.model.training else "eval"]  # type: ignore[union-attr]
        metrics["focal/weight"].append(weight.mean().item())
        metrics["focal/mastered"].append((weight < 0.05).float().mean().item())
        metrics["focal/review"].append((margin < 0).float().mean().item())
