"""Settings of a lifelong run that are not a trainer's own."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class LifelongConfig:
    """
    Configuration of a [`LifelongTrainer`].

    Args:
        output_dir (`str`):
            Folder of the run. A run that was interrupted goes on when it is started again with the same folder.
        seed (`int`, *optional*, defaults to `42`):
            Seeds the adapter, every phase of every task, the replay buffer and the data subsets.
        strategies (`list`, *optional*):
            What is done around training: names, `{"name": ..., option: value}`, or [`Strategy`] objects. By default
            `["replay", "consolidation"]` with an SLMC adapter, and nothing with any other.
        evaluate_all_tasks (`bool`, *optional*, defaults to `False`):
            Whether to evaluate on all tasks after each one, and on the untouched base, as forward transfer needs.
        eval_batch_size (`int`, *optional*, defaults to `8`):
            Pairs per forward pass when scoring.
        metric (`str`, *optional*, defaults to `"preference_accuracy"`):
            The matrix that the report puts first: `"preference_accuracy"`, `"margin"`, or a judge's name.
        judges (`list[str]`, *optional*):
            Judges of generated answers, by the name of their entry point (`"rouge_l"`, `"bleu_4"`).
        judge_prompts (`int`, *optional*, defaults to `16`):
            Test prompts per task that are answered for the judges (the first ones).
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Length of generated answers in tokens.
        general_text (`str`, *optional*, defaults to `"default"`):
            Plain-text file whose perplexity is watched; `"default"` is a small text of the project's own, `"none"`
            watches nothing.
        checkpoint_steps (`int`, *optional*, defaults to `50`):
            Optimizer steps between the checkpoints from which an interrupted phase goes on.
        report_to (`list[str]`, *optional*):
            Integrations (`"tensorboard"`, `"trackio"`, `"wandb"`) that receive the whole life as one run.
        sample_prompts (`list[str]`, *optional*):
            Prompts that the base and the final policy answer, for the report.
        disable_tqdm (`bool`, *optional*, defaults to `False`):
            Whether to leave out the progress bar over tasks and phases.
    """

    output_dir: str
    seed: int = 42
    strategies: list[Any] | None = None
    evaluate_all_tasks: bool = False
    eval_batch_size: int = 8
    metric: str = "preference_accuracy"
    judges: list[str] = field(default_factory=list)
    judge_prompts: int = 16
    max_new_tokens: int = 64
    general_text: str = "default"
    checkpoint_steps: int = 50
    report_to: list[str] = field(default_factory=list)
    sample_prompts: list[str] = field(default_factory=list)
    disable_tqdm: bool = False

    def __post_init__(self) -> None:
        for name in ("eval_batch_size", "judge_prompts", "max_new_tokens", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"You set {name}={getattr(self, name)}. It has to be at least 1.")
        for name in ("judges", "sample_prompts"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, [getattr(self, name)])
        if isinstance(self.report_to, str):
            self.report_to = [] if self.report_to == "none" else [self.report_to]
        if not self.output_dir:
            raise ValueError("You set an empty output_dir. Name the folder in which the run is to be kept.")
        if self.general_text not in ("default", "none") and not Path(self.general_text).expanduser().is_file():
            raise ValueError(
                f"You set general_text={self.general_text!r}. There is no such file. Name a plain-text file, 'default' "
                "for the text that comes with the package, or 'none'."
            )

    def settings(self) -> dict[str, Any]:
        """What decides the result of a run, as JSON: everything but where it lies and how it is shown."""
        content = {key: value for key, value in self.__dict__.items() if key != "strategies"}
        # the general text counts by its content, which the run adds
        for name in ("output_dir", "report_to", "disable_tqdm", "general_text"):
            content.pop(name)
        return content

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)
