"""What the stages that train have in common: arguments, checkpoints that are gone on from, what is saved."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_lifealign._files import read_json, remove_folder, write_json
from hf_lifealign._recipes import build

_BEFORE = "before.json"


class TrainingStage:
    """Trains with a trainer of TRL, and goes on where it was killed.

    Args:
        model (`str`): the base, as it is loaded by transformers.
        work (`Path`): folder for checkpoints; what lies there is gone on from.
        seed (`int`): of all that is drawn.
        tokenizer (*optional*): the base's own by default.
        callbacks (`list`, *optional*): of the trainer.
    """

    def __init__(
        self, model: str, work: Path, seed: int = 0, tokenizer: Any = None, callbacks: Sequence[Any] = ()
    ) -> None:
        self.model, self.work, self.seed = model, work, seed
        self.tokenizer, self.callbacks = tokenizer, list(callbacks)
        self.trainer: Any = None

    def arguments(
        self, cls: Any, defaults: Mapping[str, Any], given: Mapping[str, Any], where: str, checkpoint_steps: int
    ) -> Any:
        """Arguments of a trainer: what the user set, and what the stage decides itself.

        Args:
            cls (`type`): a config of TRL.
            defaults, given (`dict`): fields of it; those that are given count.
            where (`str`): under which key they are set, for errors.
            checkpoint_steps (`int`): optimizer steps between checkpoints.

        Raises:
            ValueError: for fields that there are not, that the stage decides, or with values TRL refuses.
        """
        import torch

        plain = {} if torch.cuda.is_available() else {"bf16": False, "gradient_checkpointing": False}
        fixed = {
            "output_dir": str(self.work), "save_strategy": "steps", "save_steps": checkpoint_steps,
            "save_total_limit": 2, "seed": self.seed, "report_to": [], "eval_strategy": "no", "push_to_hub": False,
        }  # fmt: skip
        return build(cls, {**defaults, **plain, **given}, where, **fixed)

    def train(self, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Trains, from the newest checkpoint on if there is one.

        Args:
            measure (`Callable`): tells what is measured before the first step; it is kept, so that a stage that was
                killed does not measure a model that has been trained.

        Returns:
            `dict`: what was measured before.
        """
        from transformers import set_seed

        from hf_lifealign.lifelong.phases import resumable_checkpoint

        before = self.work / _BEFORE
        if not before.is_file():
            write_json(before, measure())
        checkpoint = resumable_checkpoint(self.work, self.trainer.is_world_process_zero())
        # measuring may draw, and is not done anew by a stage that goes on
        set_seed(self.seed)
        self.trainer.train(resume_from_checkpoint=checkpoint)
        told: dict[str, Any] = read_json(before)
        return told

    def save(self, folder: Path) -> None:
        """Writes adapter (or model) and tokenizer into a folder; a frozen copy of the adapter is left out."""
        model = self.trainer.model
        own = {"selected_adapters": ["default"]} if hasattr(model, "peft_config") else {}
        model.save_pretrained(str(folder), safe_serialization=True, **own)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's, with nothing filled in
        self.trainer.processing_class.save_pretrained(str(folder))

    def clear(self) -> None:
        """Removes the checkpoints of what is finished."""
        remove_folder(self.work)
