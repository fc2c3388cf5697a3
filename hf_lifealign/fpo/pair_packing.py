"""Packed rows in DPOTrainer: where they are used, and why not elsewhere."""

import logging
from typing import Any

import torch
from accelerate.utils import is_peft_model

from hf_lifealign.packing.forward import add_pair_packing
from hf_lifealign.packing.support import why_not_packed

logger = logging.getLogger(__name__)


class PairPackingMixin:
    """Computes the sequences of a trainer's pairs in packed rows where `args.pair_packing` allows it.

    Put it before the trainer: ``class MyTrainer(PairPackingMixin, DPOTrainer): ...``. The trainer's loss, metrics and
    batches stay as they are: what is packed is inside the model's forward.
    """

    _is_packing_decided = False
    is_packed = False

    def _add_packing(self: Any) -> None:
        """Decides once, when the trainer has its models and before it uses them."""
        if self._is_packing_decided:
            return
        self._is_packing_decided = True
        if self.args.pair_packing == "off":
            return
        reason = self._why_not_packed()
        if reason is not None:
            if self.accelerator.is_main_process:
                logger.warning(f"Pairs are not packed (pair_packing='auto'), as {reason}.")
            return
        mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
        for model in (self.model, self.ref_model):
            if model is not None:
                base = model.get_base_model() if is_peft_model(model) else model
                add_pair_packing(base, self.args.max_row_length, mixed)
        self.is_packed = True

    def _why_not_packed(self: Any) -> str | None:
        if self._is_vlm:
            return "a model of images and text reads more than tokens"
        if self.aux_loss_enabled:
            return "the load-balancing loss of a mixture of experts counts each token as often as it is in the batch"
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return "it is not proven equal where the model is sharded (DeepSpeed, FSDP)"
        if self.accelerator.parallelism_config is not None:
            return "it is not proven equal where a row or a layer is spread over devices"
        if self.args.torch_compile:
            return "rows of ever new shapes would be compiled anew (torch_compile=True)"
        for model in (self.model, self.ref_model):
            reason = None if model is None else why_not_packed(model)
            if reason is not None:
                return reason
        return None
