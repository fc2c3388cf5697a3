"""A tiny life: three tasks that contradict each other, through the real LifelongTrainer."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftConfig
from transformers import TrainerCallback
from trl import DPOConfig, SFTConfig

from hf_lifealign import FPOConfig, FPOTrainer, LifelongConfig, LifelongTrainer, SLMCConfig, Task, TaskStream
from support.tiny import preference_dataset, tiny_model, tiny_tokenizer

COMMON: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "logging_steps": 1,
    "disable_tqdm": True,
}


def swapped(rows: Dataset) -> Dataset:
    """The opposite preference."""
    return rows.rename_columns({"chosen": "rejected", "rejected": "chosen"})


def tiny_stream() -> TaskStream:
    """Tasks "one", "two" (its opposite) and "three"."""
    return TaskStream(
        [
            Task("one", preference_dataset(12), preference_dataset(6, start=20)),
            Task("two", swapped(preference_dataset(12, start=40)), swapped(preference_dataset(6, start=60))),
            Task(
                "three",
                preference_dataset(12, chosen="up", rejected="down", start=80),
                preference_dataset(6, chosen="up", rejected="down", start=100),
            ),
        ]
    )


def slmc(**options: Any) -> SLMCConfig:
    """A small SLMC adapter."""
    return SLMCConfig(**({"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | options))


class Stop(TrainerCallback):
    """Ends the process's work in the middle of the second task, as Ctrl-C does."""

    def __init__(self) -> None:
        self.phases = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.phases += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.phases == 2 and state.global_step == 5:
            raise KeyboardInterrupt


def tiny_life(
    output_dir: Path | str,
    stream: TaskStream | None = None,
    peft_config: PeftConfig | None = None,
    trainer_class: Any = FPOTrainer,
    training: dict[str, Any] | None = None,
    warm_start: bool = True,
    model: Any = None,
    callbacks: Any = (),
    judges: Any = None,
    **config: Any,
) -> LifelongTrainer:
    """A LifelongTrainer that lives its whole life in seconds."""
    args_class = FPOConfig if issubclass(trainer_class, FPOTrainer) else DPOConfig
    arguments = {"learning_rate": 1e-2, "num_train_epochs": 2} | COMMON | (training or {})
    settings = {"checkpoint_steps": 2, "disable_tqdm": True, "general_text": "none"} | config
    return LifelongTrainer(
        model=model if model is not None else tiny_model(),
        args=LifelongConfig(str(output_dir), **settings),
        stream=stream or tiny_stream(),
        processing_class=tiny_tokenizer(),
        trainer_class=trainer_class,
        training_args=args_class("unused", **arguments),
        warm_start_args=SFTConfig("unused", learning_rate=5e-3, num_train_epochs=1, **COMMON) if warm_start else None,
        peft_config=peft_config or slmc(),
        callbacks=callbacks,
        judges=judges,
    )


def life_files(root: Path) -> dict[str, bytes]:
    """Every result file of a run but pictures, logs of time, and tracking, by relative path."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix in (".json", ".safetensors") and "work" not in path.parts
    }
