"""What a MetaAlignerTrainer leaves on disk: policy, card, and checkpoints from which it goes on."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import is_peft_model
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.trainer.utils import get_config_model_id

from hf_lifealign.fpo.card import AdapterCardMixin
from hf_lifealign.meta_aligner.config import MetaAlignerConfig
from hf_lifealign.meta_aligner.policy import MetaAlignedPolicy
from hf_lifealign.meta_aligner.storage import FOLDER, check_finite, read_policy
from hf_lifealign.models import public_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What decides the policy, of the hundred arguments of a trainer.
_TOLD = (
    "learning_rate", "weight_learning_rate", "pretrain_learning_rate", "pretrain_weight_learning_rate",
    "pretrain_epochs", "num_rounds", "num_train_epochs", "num_generations", "rho", "tau", "supervision",
    "selection", "scope", "weight_source", "per_device_train_batch_size", "gradient_accumulation_steps",
    "max_completion_length", "temperature", "top_p", "seed",
)  # fmt: skip


class SavingMixin(AdapterCardMixin):
    """Mixin for a TRL trainer with a `policy`: saves the adapter as other trainers do, and `meta_aligner/` beside it.

    A base without an adapter is not saved: it is as it was.
    """

    model: Any
    policy: MetaAlignedPolicy
    args: MetaAlignerConfig
    _tokenizer: "PreTrainedTokenizerBase"
    _tag_names: list[str]

    def _save_rounds(self, folder: Path) -> None:
        raise NotImplementedError

    def _load_rounds(self, folder: Path) -> None:
        raise NotImplementedError

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir if output_dir is not None else str(self.args.output_dir))
        is_checkpoint = folder.name.startswith(PREFIX_CHECKPOINT_DIR)
        self._refuse_diverged(folder)
        if is_peft_model(self.accelerator.unwrap_model(self.model)):
            super()._save(output_dir, state_dict)
        else:
            # the base is as it was; what there is to save lies outside it
            folder.mkdir(parents=True, exist_ok=True)
            self._tokenizer.save_pretrained(folder)
            if not is_checkpoint:
                self._write_card(folder)
        self.policy.save_weights(folder)
        if is_checkpoint:
            self._save_rounds(folder)

    def _refuse_diverged(self, folder: Path) -> None:
        """Raises before anything is written; Trainer has made the folder, which would pass for a checkpoint."""
        try:
            check_finite(self.policy.tensors())
        except ValueError:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
            raise

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Trainer copies the files it knows out of the checkpoint and uploads the folder around it
        if self.is_world_process_zero():
            self.policy.save_weights(str(self.args.output_dir))
        super()._push_from_checkpoint(checkpoint_folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if is_peft_model(self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.policy.load_weights(read_policy(Path(resume_from_checkpoint) / FOLDER))
        self._load_rounds(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if is_peft_model(self.model):
            super()._load_best_model()
        if best is not None:
            self.policy.load_weights(read_policy(Path(best) / FOLDER))

    @property
    def _has_own_card(self) -> bool:
        return True  # a policy without an adapter is no full model either

    def _write_card(self, folder: Path, dataset_name: str | None = None, tags: list[str] | None = None) -> None:
        from hf_lifealign.report import write_policy_card

        context: dict[str, Any] = {
            "policy": self.policy.settings(),
            "base_model": public_name(get_config_model_id(self.model.config) or ""),
            "training": {name: getattr(self.args, name) for name in _TOLD},
            "tags": [*self._tag_names, *(tags or [])],
            "repo_id": self.hub_model_id,
            "datasets": [dataset_name] if dataset_name else [],
        }
        write_policy_card(folder, context)
