"""Before a new task is trained: which way its data would move the score of every earlier task, and for how long that
can be borne."""

import dataclasses
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lifealign._files import read_json
from hf_lifealign.dynamics.rehearsal import horizon, logit, rehearsal_fraction, tolerated_drift

if TYPE_CHECKING:
    from hf_lifealign.dynamics.force_batch import ForceBatch, Gradients
    from hf_lifealign.stream import Task

_REPLAYS = ("dynamic_replay", "replay")
# Of each row of the trainer: 0 where it is new, else the number of its task from 1 on.
_MARK = "task_number"


@dataclass(frozen=True)
class Forecast:
    """What training on a new task is predicted to do to an earlier one.

    Args:
        task (`str`): the earlier task.
        score, low, high (`float`): its alignment score now, with its interval.
        floor (`float`): below which it shall not fall.
        steps (`int`): optimizer steps that the new task would take.
        force (`float`, *optional*): change of logit S in one step on the new rows, at the full learning rate.
        rehearsal (`float`, *optional*): the same of one step on the task rows that are kept for replay.
        predicted (`float`, *optional*): score after all steps, if the force lasted.
        horizon (`float`, *optional*): steps until the floor; infinite if the force does not lead there.
        share (`float`, *optional*): least share of rehearsal that keeps the score above its floor.
        feasible (`bool`, *optional*): whether rehearsal can.
        reason (`str`, *optional*): why something is missing.
    """

    task: str
    score: float | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    steps: int = 0
    force: float | None = None
    rehearsal: float | None = None
    predicted: float | None = None
    horizon: float | None = None
    share: float | None = None
    feasible: bool | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; an infinite horizon is `"never"`."""
        found = dataclasses.asdict(self)
        if self.horizon is not None and math.isinf(self.horizon):
            found["horizon"] = "never"
        return found


@dataclass(frozen=True)
class Finished:
    """What a lifelong run has left for the next task.

    Args:
        root (`Path`): its folder.
        settings (`dict`): of its `state.json`.
        tasks (`dict[str, str]`): labels of the finished tasks by name, in order.
    """

    root: Path
    settings: dict[str, Any]
    tasks: dict[str, str]

    @classmethod
    def read(cls, root: Path) -> "Finished":
        """Reads a run's folder.

        Raises:
            FileNotFoundError: if it holds no run.
            ValueError: if no task of it is finished.
        """
        file = root / "state.json"
        if not file.is_file():
            raise FileNotFoundError(f"There is no {file}. Give the folder of a lifelong run (`lifealign run`).")
        content = read_json(file)
        done = {task["name"]: task["label"] for task in content["tasks"] if task["status"] == "done"}
        if not done:
            raise ValueError(f"No task of the run in {root} is finished, so that there is nothing to lose yet.")
        return cls(root, content["settings"], done)

    @property
    def adapter(self) -> Path:
        """The adapter after the last finished task."""
        return self.root / "adapters" / list(self.tasks.values())[-1]

    def judges(self) -> dict[str, str]:
        """Judges that the run itself names."""
        for strategy in self.settings.get("strategies", ()):
            if isinstance(strategy, dict) and strategy.get("name") == "dynamic_replay":
                return dict(strategy["judges"])
        return {}

    def kept(self, task: str) -> list[dict[str, Any]]:
        """Rows of a task that are kept for replay; empty if there are none."""
        for name in _REPLAYS:
            file = self.root / name / f"{self.tasks[task]}.json"
            if file.is_file():
                rows: list[dict[str, Any]] = read_json(file).get("rows", [])
                return rows
        return []

    def floor(self, task: str) -> float | None:
        """The floor that the run has set itself for a task."""
        file = self.root / "dynamic_replay" / f"{self.tasks[task]}-score.json"
        return read_json(file)["floor"] if file.is_file() else None


def preflight(
    run: str | Path,
    task: "Task",
    judges: Mapping[str, Any] | None = None,
    base: str | None = None,
    trainer: str | None = None,
    tolerance: float = 0.05,
    probes: int = 32,
    samples: int = 8,
    max_new_tokens: int = 32,
    force_rows: int = 32,
    seed: int = 0,
) -> list[Forecast]:
    r"""
    Predicts what training on a new task would do to the earlier tasks of a run, without training.

    For each earlier task the gradient of its alignment score is estimated from answers of the present model to prompts
    that are kept for replay, and multiplied with one step on the new data (alignment dynamics, arXiv 2605.18309; the
    forecast is ours). It is a first-order prediction of the first steps, at the full learning rate and with the second
    moments that Adam would come to: it tells a direction and an order of magnitude. While training,
    [`AlignmentDynamicsCallback`] and dynamic rehearsal measure how far it holds.

    Args:
        run (`str` or `Path`): folder of a lifelong run.
        task ([`~hf_lifealign.Task`]): the new task.
        judges (`dict`, *optional*): a judge for each earlier task; those of the run by default. A task without one has
            no score.
        base (`str`, *optional*): the base model, where it is not found under the name that the run keeps.
        trainer (`str`, *optional*): `"fpo"`, `"dpo"` or `"module:Class"`; that of the run by default.
        tolerance (`float`): how far below its present score the floor of a task lies, where the run has set none.
        probes, samples, max_new_tokens, force_rows, seed: as of [`AlignmentDynamicsCallback`]; `force_rows` of the new
            task, and of each earlier one.

    Returns:
        `list[Forecast]`: one for each finished task of the run.

    Raises:
        FileNotFoundError, ValueError: if the run, the base or the new data cannot be used.
    """
    finished = Finished.read(Path(run))
    own = {name: spec for name, spec in finished.judges().items() if name in finished.tasks}
    named = {**own, **dict(judges or {})}
    unknown = sorted(set(named) - set(finished.tasks))
    if unknown:
        raise ValueError(f"You gave judges for {unknown}. The run has finished the tasks {list(finished.tasks)}.")
    if not named:
        raise ValueError(
            f"The run in {finished.root} names no judges (it has no dynamic rehearsal). Give one for each task that is "
            "to be forecast, e.g. --judge harmless=refusal."
        )
    rows = task.load().train
    with tempfile.TemporaryDirectory() as scratch:
        kept = [finished.kept(name)[:force_rows] for name in finished.tasks]
        built = _build(finished, _marked(rows, kept), base, trainer, scratch)
        probing = _Probing(probes, samples, max_new_tokens, force_rows, tolerance, seed)
        return _forecast(finished, named, set(judges or {}), built, probing)


def _build(finished: Finished, rows: Any, base: str | None, trainer: str | None, scratch: str) -> Any:
    """A trainer of the new rows, as the run would make it, with the run's adapter."""
    from peft import PeftConfig
    from transformers import AutoTokenizer
    from trl import DPOConfig

    import hf_lifealign.slmc  # noqa: F401  registers the type SLMC
    from hf_lifealign.fpo import FPOConfig, FPOTrainer
    from hf_lifealign.lifelong.adapters import load_base, restore_adapter
    from hf_lifealign.lifelong.recipe import trainer_class
    from hf_lifealign.lifelong.trainer import TRAINERS
    from hf_lifealign.models import find_base, resolve_model

    settings = finished.settings
    own = {cls.__name__: name for name, cls in TRAINERS.items()}
    name = trainer or own.get(settings["trainer"])
    if name is None:
        raise ValueError(
            f"The run was trained by {settings['trainer']}, which is no trainer of this package. Name it with "
            "--trainer module:Class."
        )
    cls = trainer_class(name)
    args_class = FPOConfig if issubclass(cls, FPOTrainer) else getattr(cls, "args_class", DPOConfig)
    known = {field.name for field in dataclasses.fields(args_class) if field.init}
    given = {key: value for key, value in settings["training"].items() if key in known}
    args = args_class(**{**given, "output_dir": scratch, "report_to": [], "save_strategy": "no"})
    source = resolve_model(find_base(base, settings["base_model"], str(finished.root)))
    loaded = load_base(source, dict(settings["model_init_kwargs"]), args)
    config = PeftConfig.from_pretrained(str(finished.adapter))
    model = restore_adapter(loaded, finished.adapter, config)
    tokenizer = AutoTokenizer.from_pretrained(source)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return cls(model=model, args=args, train_dataset=rows, processing_class=tokenizer)


@dataclass(frozen=True)
class _Probing:
    """How the earlier scores are measured."""

    probes: int
    samples: int
    max_new_tokens: int
    force_rows: int
    tolerance: float
    seed: int


def _forecast(
    finished: Finished, judges: Mapping[str, Any], given: set[str], trainer: Any, probing: _Probing
) -> list[Forecast]:
    from hf_lifealign.dynamics.likelihood import undisturbed

    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    per_update = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    updates = math.ceil(trainer.train_dataset[_MARK].count(0) / per_update * args.num_train_epochs)
    steps = args.max_steps if args.max_steps > 0 else updates
    trainer.create_optimizer()
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = []
    with undisturbed(model):
        new = _gradients(trainer, model, parameters, _batch(trainer, 0, probing.force_rows, probing.seed))
        for number, task in enumerate(finished.tasks, start=1):
            judge, reason = _judge(task, judges, given)
            kept = finished.kept(task)
            if reason is None and not kept:
                reason = "none of its rows are kept for replay"
            if reason is not None:
                found.append(Forecast(task, steps=steps, reason=reason))
                continue
            told, drawn, meter = _score(finished, task, judge, kept, trainer, model, probing)
            told["steps"] = steps
            if drawn is None:
                found.append(Forecast(task, **told))
                continue
            gradient = meter.score_gradient(model, parameters, drawn, drawn.logps)
            old = _gradients(trainer, model, parameters, _batch(trainer, number, probing.force_rows, probing.seed))
            forces = [_force(trainer.optimizer, parameters, gradient, part, told["score"]) for part in (new, old)]
            found.append(_conclude(task, told, forces))
    return found


def _judge(task: str, judges: Mapping[str, Any], given: set[str]) -> tuple[Any, str | None]:
    """The judge of a task, or why it has none."""
    from hf_lifealign.judges import resolve_judge

    if task not in judges:
        return None, "no judge was named for it"
    try:
        return resolve_judge(judges[task]), None
    except (ValueError, ImportError) as error:
        if task in given:
            raise
        # a function that the run was given, of which it keeps the name alone
        return None, f"{error} Give --judge {task}=SPEC."


def _score(
    finished: Finished,
    task: str,
    judge: Any,
    kept: list[dict[str, Any]],
    trainer: Any,
    model: Any,
    probing: _Probing,
) -> tuple[dict[str, Any], Any, Any]:
    """What a forecast says of a task's score; the samples, `None` where they tell no force; and the meter."""
    from hf_lifealign.dynamics.measuring import AlignmentMeter
    from hf_lifealign.dynamics.samples import read_probes
    from hf_lifealign.judges import JudgeError

    meter = AlignmentMeter(
        read_probes(kept, limit=probing.probes), judge, trainer.processing_class, probing.samples,
        probing.max_new_tokens, seed=probing.seed,
    )  # fmt: skip
    try:
        drawn = meter.draw(model, 0)
    except JudgeError as error:
        return {"reason": str(error)}, None, meter
    score, floor = meter.anchored(drawn), finished.floor(task)
    told: dict[str, Any] = {
        "score": score.score,
        "low": score.low,
        "high": score.high,
        "floor": max(score.score - probing.tolerance, 0.0) if floor is None else floor,
    }
    reason = drawn.one_sided()
    return (told, drawn, meter) if reason is None else ({**told, "reason": reason}, None, meter)


def _conclude(task: str, told: dict[str, Any], forces: list[float]) -> Forecast:
    score, floor, steps = told["score"], told["floor"], told["steps"]
    fraction = rehearsal_fraction(forces[0], forces[1], tolerated_drift(score, floor, steps)) if floor > 0 else None
    after = logit(score) + forces[0] * steps
    return Forecast(
        task,
        **told,
        force=forces[0],
        rehearsal=forces[1],
        predicted=1 / (1 + math.exp(-max(min(after, 700.0), -700.0))),
        horizon=horizon(score, floor, forces[0]) if floor > 0 else math.inf,
        share=fraction.value if fraction else 0.0,
        feasible=fraction.feasible if fraction else True,
        reason=fraction.reason if fraction else "its floor is 0",
    )


def _force(optimizer: Any, parameters: list[Any], gradient: Any, found: "Gradients", score: float) -> float:
    from hf_lifealign.dynamics.updates import inner_product, scales_of, step_of

    scales = scales_of(optimizer, parameters, found.second)
    if scales is None:
        raise ValueError("The run's optimizer is neither SGD nor Adam nor AdamW, so that its steps cannot be foretold.")
    return inner_product(gradient, step_of(found.parts["total"], scales)) / (score * (1 - score))


def _batch(trainer: Any, mark: int, count: int, seed: int) -> "ForceBatch":
    """Some of the rows with a mark, in updates as the trainer makes them."""
    from hf_lifealign.dynamics.force_batch import ForceBatch
    from hf_lifealign.strategies.sampling import seeded_generator

    args, data = trainer.args, trainer.train_dataset
    marked = [i for i, found in enumerate(data[_MARK]) if found == mark]
    order = seeded_generator(seed, "preflight", str(mark)).permutation(marked)[:count]
    accumulate = args.gradient_accumulation_steps * args.world_size
    rows = [data[int(i)] for i in order]
    return ForceBatch(rows, trainer.data_collator, args.train_batch_size, accumulate, args.max_grad_norm)


def _marked(rows: Any, kept: list[list[dict[str, Any]]]) -> Any:
    """The new rows, marked 0, and what is kept of each earlier task, marked from 1 on."""
    from hf_lifealign.strategies.sampling import mix

    names = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs")
    marks, extra = [0] * len(rows), []
    for number, part in enumerate(kept, start=1):
        extra += [{name: row[name] for name in names if name in row} for row in part]
        marks += [number] * len(part)
    return mix(rows, extra, "the replay buffer").add_column(_MARK, marks)


def _gradients(trainer: Any, model: Any, parameters: list[Any], batch: "ForceBatch") -> "Gradients":
    from hf_lifealign.dynamics.force_batch import loss_gradients, trainer_loss

    return loss_gradients(model, parameters, batch, trainer_loss(trainer))
