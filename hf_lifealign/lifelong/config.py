"""Settings of a lifelong run that are not a trainer's own."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_lifealign.hub.bundle import PUSH_REPLAY
from hf_lifealign.hub.remote import check_repo_id

# The strategies and the general text count by what they hold, which the run adds.
_WITHOUT_EFFECT = {
    "strategies", "rehearsal", "rehearsal_judges", "rehearsal_priming",
    "general_text", "reference_dir", "output_dir", "report_to", "disable_tqdm", "continue_from", "push_to_hub",
    "hub_model_id", "hub_token", "hub_private_repo", "push_replay", "push_in_background", "push_timeout", "license",
}  # fmt: skip

REHEARSAL = ("fixed", "dynamic")


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
        rehearsal (`str`, *optional*, defaults to `"fixed"`):
            How much is replayed: `"fixed"`, what the strategy `"replay"` keeps, or `"dynamic"`, as much as the measured
            forces on the earlier tasks' scores ask for (the strategy `"dynamic_replay"` in its place).
        rehearsal_judges (`dict[str, str]`, *optional*):
            For `"dynamic"`: the judge of each task that later ones shall not undo, or `"preference"`, which asks the
            task's own pairs; by default all tasks are watched by their pairs. For `rehearsal_priming`: the judge of
            each task that is taken up again. See [`~hf_lifealign.judges.resolve_judge`].
        rehearsal_priming (`dict[str, str]`, *optional*):
            The earlier task that a later one takes up again, by the later one's name: the steps that it takes to align
            the model again are measured over those that it took first (the strategy `"rehearsal_priming"`, which may
            stand among `strategies` for its other options).
        evaluate_all_tasks (`bool`, *optional*, defaults to `False`):
            Whether to evaluate on all tasks after each one, and on the untouched base, as forward transfer needs.
        eval_batch_size (`int`, *optional*, defaults to `8`):
            Pairs per forward pass when scoring.
        metric (`str`, *optional*, defaults to `"preference_accuracy"`):
            The matrix that the report puts first: `"preference_accuracy"`, `"margin"`, or a judge's name.
        judges (`list[str]`, *optional*):
            Judges of generated answers, by the name of their entry point (`"rouge_l"`, `"bleu_4"`, `"refusal"`), or as
            `"package.module:function"`; such a one is measured under the function's name.
        judge_prompts (`int`, *optional*, defaults to `16`):
            Test prompts per task that are answered for the judges (the first ones).
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Length of generated answers in tokens.
        general_text (`str`, *optional*, defaults to `"default"`):
            Plain-text file whose perplexity is watched; `"default"` is a small text of the project's own, `"none"`
            watches nothing.
        reference_dir (`str`, *optional*):
            Folder for log-probabilities under the untouched base, which runs may share: they are found by the content
            of the pairs and of the base. By default each run keeps its own.
        checkpoint_steps (`int`, *optional*, defaults to `50`):
            Optimizer steps between the checkpoints from which an interrupted phase goes on.
        report_to (`list[str]`, *optional*):
            Integrations (`"tensorboard"`, `"trackio"`, `"wandb"`) that receive the whole life as one run.
        sample_prompts (`list[str]`, *optional*):
            Prompts that the base and the final policy answer, for the report.
        disable_tqdm (`bool`, *optional*, defaults to `False`):
            Whether to leave out the progress bar over tasks and phases.
        continue_from (`str`, *optional*):
            Revision from which the life goes on: `"owner/name"`, `"owner/name@revision"` (tag, branch or commit), or an
            `adapters/NN-<task>` folder of a run. The stream then holds all tasks from the first one on, or only new
            ones.
        push_to_hub (`bool`, *optional*, defaults to `False`):
            Whether to publish the adapter after each task, as a commit and a tag of one repository. A task that could
            not be sent stays in the run's outbox for `lifealign push`; training goes on.
        hub_model_id (`str`, *optional*):
            The repository, `owner/name` or `name`; the name of `output_dir` by default.
        hub_token (`str`, *optional*):
            Access token; that of `hf auth login` or `HF_TOKEN` by default. It is stored nowhere.
        hub_private_repo (`bool`, *optional*):
            Whether a repository that is made is private; the account's default otherwise.
        push_replay (`str`, *optional*, defaults to `"none"`):
            What is published of the rows kept for replay: `"none"`, their `"ids"`, or the `"rows"`.
        push_in_background (`bool`, *optional*, defaults to `True`):
            Whether training goes on while a task is sent. Otherwise it waits, at most `push_timeout`; with several
            processes that has to stay below the limit after which they give each other up.
        push_timeout (`float`, *optional*, defaults to `600.0`):
            Seconds that the run waits for a push: for each task, or at its end if they are sent in the background.
        license (`str`, *optional*):
            Licence of the published adapter, for its card.
    """

    output_dir: str
    seed: int = 42
    strategies: list[Any] | None = None
    rehearsal: str = "fixed"
    rehearsal_judges: dict[str, Any] = field(default_factory=dict)
    rehearsal_priming: dict[str, str] = field(default_factory=dict)
    evaluate_all_tasks: bool = False
    eval_batch_size: int = 8
    metric: str = "preference_accuracy"
    judges: list[str] = field(default_factory=list)
    judge_prompts: int = 16
    max_new_tokens: int = 64
    general_text: str = "default"
    reference_dir: str | None = None
    checkpoint_steps: int = 50
    report_to: list[str] = field(default_factory=list)
    sample_prompts: list[str] = field(default_factory=list)
    disable_tqdm: bool = False
    continue_from: str | None = None
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_token: str | None = field(default=None, repr=False)
    hub_private_repo: bool | None = None
    push_replay: str = "none"
    push_in_background: bool = True
    push_timeout: float = 600.0
    license: str | None = None

    def __post_init__(self) -> None:
        for name in ("eval_batch_size", "judge_prompts", "max_new_tokens", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"You set {name}={getattr(self, name)}. It has to be at least 1.")
        if self.rehearsal not in REHEARSAL:
            raise ValueError(f"You set rehearsal={self.rehearsal!r}. It has to be one of {list(REHEARSAL)}.")
        # as a recipe leaves them that names them and sets nothing
        self.rehearsal_judges, self.rehearsal_priming = self.rehearsal_judges or {}, self.rehearsal_priming or {}
        self._check_judges()
        if self.push_replay not in PUSH_REPLAY:
            raise ValueError(f"You set push_replay={self.push_replay!r}. It has to be one of {list(PUSH_REPLAY)}.")
        if self.push_timeout <= 0:
            raise ValueError(f"You set push_timeout={self.push_timeout}. It has to be above 0 seconds.")
        if self.push_to_hub:
            check_repo_id(self.repo_id)
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

    def _check_judges(self) -> None:
        """Refuses judges of rehearsal that nobody asks, and tasks that are taken up again and have none."""
        resumed = set(self.rehearsal_priming.values())
        idle = [] if self.rehearsal == "dynamic" else sorted(set(self.rehearsal_judges) - resumed)
        if idle:
            raise ValueError(
                f"You set rehearsal_judges for {idle}, which only rehearsal='dynamic' asks, and rehearsal_priming for "
                "the tasks that are taken up again. Set one of both, or leave these judges out."
            )
        lacking = sorted(resumed - set(self.rehearsal_judges))
        if lacking:
            raise ValueError(
                f"You set rehearsal_priming for tasks that take up {lacking}, which have no judge. Name a judge for "
                "each of them in rehearsal_judges."
            )

    @property
    def repo_id(self) -> str:
        """Repository to which the run is published."""
        return self.hub_model_id or Path(self.output_dir).expanduser().resolve().name

    def rehearsing(self, specs: list[Any]) -> list[Any]:
        """Specifications of strategies, with `"dynamic_replay"` in the place of `"replay"` and with
        `"rehearsal_priming"`, if that was asked for.

        Raises:
            ValueError: if dynamic rehearsal was asked for, and nothing is replayed.
        """
        return self._primed(specs if self.rehearsal == "fixed" else self._dynamic(specs))

    def _dynamic(self, specs: list[Any]) -> list[Any]:
        found: list[Any] = []
        for spec in specs:
            options = {"name": spec} if isinstance(spec, str) else spec
            if isinstance(options, dict) and options.get("name") == "replay":
                kept = {key: value for key, value in options.items() if key != "name"}
                spec = {"name": "dynamic_replay", "judges": self.rehearsal_judges, **kept}
            found.append(spec)
        if found == specs:
            raise ValueError(
                "You set rehearsal='dynamic', and the strategy 'replay' is not among your strategies. Name it, with "
                "its options, or leave strategies out."
            )
        return found

    def _primed(self, specs: list[Any]) -> list[Any]:
        if not self.rehearsal_priming:
            return specs
        judges = {task: self.rehearsal_judges[task] for task in self.rehearsal_priming.values()}
        own = {"name": "rehearsal_priming", "judges": judges, "resumes": self.rehearsal_priming}
        found, stands = [], False
        for spec in specs:
            options = {"name": spec} if isinstance(spec, str) else spec
            name = options.get("name") if isinstance(options, dict) else getattr(options, "name", None)
            if name == own["name"]:
                stands = True
                spec = own | options if isinstance(options, dict) else spec
            found.append(spec)
        return found if stands else [*found, own]

    def settings(self) -> dict[str, Any]:
        """What decides the result of a run, as JSON: everything but where it lies, how it is shown and published."""
        return {key: value for key, value in self.__dict__.items() if key not in _WITHOUT_EFFECT}
