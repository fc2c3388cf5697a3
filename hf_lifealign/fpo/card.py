"""The card that a trainer writes beside an adapter, in the place of TRL's and of the blank one that PEFT leaves."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import is_peft_model
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.trainer.utils import get_config_model_id

from hf_lifealign.models import public_name

if TYPE_CHECKING:
    from transformers import Trainer

    _Base = Trainer
else:
    _Base = object

# What decides an adapter, of the hundred arguments of a trainer.
_TOLD = (
    "learning_rate", "beta", "focal_gamma", "reference", "loss_type", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "seed",
)  # fmt: skip


def _remove_adapter(folder: Path) -> None:
    """Removes what PEFT has written of an adapter, and the folder if nothing else is in it."""
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        (folder / name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


class AdapterCardMixin(_Base):
    """Mixin for a TRL trainer: what it saves of an adapter is fit to be published.

    The card is that of hub_cards/, and the frozen reference adapter, which DPOTrainer saves along, stays in the
    checkpoints, where resuming needs it. A full model keeps TRL's card.
    """

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        folder = Path(output_dir if output_dir is not None else str(self.args.output_dir))
        if not self.args.should_save or not is_peft_model(self.accelerator.unwrap_model(self.model)):
            return
        if re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", folder.name):
            (folder / "README.md").unlink(missing_ok=True)
            return
        if "ref" in self.accelerator.unwrap_model(self.model).peft_config:
            _remove_adapter(folder / "ref")
        self._write_card(folder)

    def create_model_card(  # type: ignore[override]  # with TRL's arguments, not those of transformers
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Writes the card into `output_dir`.

        Args:
            model_name (`str`, *optional*): not used: the card names the base and the repository.
            dataset_name (`str`, *optional*): Hub id of the training data.
            tags (`str` or `list[str]`, *optional*): more tags.
        """
        if not self._has_own_card:
            given: dict[str, Any] = {"model_name": model_name, "dataset_name": dataset_name, "tags": tags}
            super().create_model_card(**given)
        elif self.is_world_process_zero():
            folder = Path(str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            self._write_card(folder, dataset_name, [tags] if isinstance(tags, str) else tags)

    @property
    def _has_own_card(self) -> bool:
        """Whether what is saved gets the card of hub_cards/ rather than TRL's."""
        return is_peft_model(self.accelerator.unwrap_model(self.model))

    def _write_card(self, folder: Path, dataset_name: str | None = None, tags: list[str] | None = None) -> None:
        from hf_lifealign.report import write_adapter_card

        model: Any = self.accelerator.unwrap_model(self.model)
        told = {name: getattr(self.args, name) for name in _TOLD if getattr(self.args, name, None) is not None}
        context: dict[str, Any] = {
            "base_model": public_name(get_config_model_id(model.config) or ""),
            "settings": {"trainer": type(self).__name__, "training": told},
            "tags": tags or [],
        }
        if dataset_name:
            context["datasets"] = [dataset_name]
        if self.hub_model_id:
            context["repo_id"] = self.hub_model_id
        write_adapter_card(folder, context)
