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
    from hf_lifealign.dynamics.updates import Tensors
    from hf_lifealign.stream import Task

_REPLAYS = ("dynamic_replay", "replay")
# Of each row of the trainer: 0 where it is new, else the number of its task from 1 on.
_MARK = "task_number"


@dataclass(frozen=True)
class Forecast:
    """What training on a new task is predicted to do to an earlier one.

    Args:
        task (`str`): the earlier task.
        score, low, high (`float`): its score now, of judged answers or by its pairs, with its interval.
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

    def _dynamic(self) -> dict[str, Any]:
        """Settings of the run's dynamic rehearsal; empty if it had none."""
        told = self.settings.get("strategies", ())
        return next((s for s in told if isinstance(s, dict) and s.get("name") == "dynamic_replay"), {})

    def judges(self) -> dict[str, str]:
        """Judges that the run itself names."""
        return dict(self._dynamic().get("judges", {}))

    def kept(self, task: str) -> list[dict[str, Any]]:
        """Rows of a task that are kept for replay; empty if there are none."""
        rows, watched = self._sample(task)
        return rows[: len(rows) - watched]

    def watched(self, task: str) -> list[dict[str, Any]]:
        """Rows of a task that are kept and were never trained on; empty if there are none."""
        rows, watched = self._sample(task)
        return rows[len(rows) - watched :]

    def _sample(self, task: str) -> tuple[list[dict[str, Any]], int]:
        for name in _REPLAYS:
            file = self.root / name / f"{self.tasks[task]}.json"
            if file.is_file():
                content = read_json(file)
                return content.get("rows", []), content.get("watched", 0)
        return [], 0

    def score(self, task: str) -> dict[str, Any]:
        """What the run has found when the task was trained: `score`, and of pairs their `scale`; empty if nothing."""
        file = self.root / "dynamic_replay" / f"{self.tasks[task]}-score.json"
        content: dict[str, Any] = read_json(file) if file.is_file() else {}
        return content if content.get("score") else {}

    def floor(self, task: str, by_pairs: bool) -> float | None:
        """The floor that the run has set itself for a task, if it was watched in the same way."""
        from hf_lifealign.strategies.watching import floor_of

        told = self.score(task)
        if not told or ("scale" in told) != by_pairs:
            return None
        settings = self._dynamic()
        return floor_of(told, settings.get("tolerance", 0.0), settings.get("keep", 1.0))


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

    For each earlier task the gradient of its score is taken, of how surely its pairs are ranked, or of judged answers
    of the present model to prompts that are kept for replay, and multiplied with one step on the new data (alignment
    dynamics, arXiv 2605.18309; the forecast is ours). It is a first-order prediction of the first steps, at the full
    learning rate and with the second moments that Adam would come to: it tells a direction and an order of magnitude.
    While training, [`AlignmentDynamicsCallback`] and dynamic rehearsal measure how far it holds.

    Args:
        run (`str` or `Path`): folder of a lifelong run.
        task ([`~hf_lifealign.Task`]): the new task.
        judges (`dict`, *optional*): a judge for each earlier task; those of the run by default. A task without one is
            watched by its own pairs ([`PreferenceMeter`]): by those that were kept for it and never trained on, where
            the run has any, else by those kept for replay, of which a model forgets less.
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

    import hf_lifealign.prompt_pool
    import hf_lifealign.slmc  # noqa: F401  registers the type SLMC
    from hf_lifealign.fpo import FPOConfig, FPOTrainer
    from hf_lifealign.lifelong.adapters import load_base, restore_adapter
    from hf_lifealign.lifelong.phases import with_extra_loss
    from hf_lifealign.lifelong.recipe import trainer_class
    from hf_lifealign.lifelong.trainer import TRAINERS
    from hf_lifealign.models import find_base, resolve_model
    from hf_lifealign.prompt_pool import pools_of

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
    cls = with_extra_loss(cls) if pools_of(model) else cls
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
            old = _gradients(trainer, model, parameters, _batch(trainer, number, probing.force_rows, probing.seed))
            taken = [_step(trainer.optimizer, parameters, part) for part in (new, old)]
            slope = told["score"] * (1 - told["score"])
            forces = [force / slope for force, _ in meter.forces(model, parameters, drawn, taken)]
            found.append(_conclude(task, told, forces))
    return found


def _judge(task: str, judges: Mapping[str, Any], given: set[str]) -> tuple[Any, str | None]:
    """The judge of a task, `None` where its pairs take its place; or why it has none."""
    from hf_lifealign.judges import resolve_judge
    from hf_lifealign.strategies.watching import BY_PAIRS

    if judges.get(task, BY_PAIRS) == BY_PAIRS:
        return None, None
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

    meter: Any
    if judge is None:
        meter = _pair_meter(finished, task, kept, trainer, model, probing)
        if meter is None:
            return {"reason": "max_length leaves nothing of its answers"}, None, None
    else:
        meter = AlignmentMeter(
            read_probes(kept, limit=probing.probes), judge, trainer.processing_class, probing.samples,
            probing.max_new_tokens, seed=probing.seed,
        )  # fmt: skip
    try:
        drawn = meter.draw(model, 0)
    except JudgeError as error:
        return {"reason": str(error)}, None, meter
    score, floor = meter.anchored(drawn), finished.floor(task, judge is None)
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


def _pair_meter(
    finished: Finished, task: str, kept: list[dict[str, Any]], trainer: Any, model: Any, probing: _Probing
) -> Any:
    """A meter of the task's own pairs; `None` if the trainer's cut leaves nothing of them."""
    from datasets import Dataset

    from hf_lifealign.dynamics.preference import PreferenceMeter, margin_scale, whole_pairs
    from hf_lifealign.lifelong.evaluation import adapters_off
    from hf_lifealign.lifelong.scoring import encode_pairs, score_pairs

    rows = (finished.watched(task) or kept)[: probing.probes]
    names = ("prompt", "chosen", "rejected")
    plain = Dataset.from_list([{name: row[name] for name in names if name in row} for row in rows])
    args, pad = trainer.args, int(trainer.processing_class.pad_token_id or 0)
    cut = (getattr(args, "max_length", None), getattr(args, "truncation_mode", "keep_start"))
    pairs = encode_pairs(plain, trainer.processing_class, *cut)
    pairs = [pairs[i] for i in whole_pairs(pairs)]
    if not pairs:
        return None
    packing = str(getattr(args, "pair_packing", "auto"))
    with adapters_off(model):
        reference = score_pairs(model, pairs, pad, pair_packing=packing)
    scale = finished.score(task).get("scale")
    if scale is None:
        scale = margin_scale(PreferenceMeter(pairs, reference, pad, pair_packing=packing).draw(model, 0).margins)
    return PreferenceMeter(pairs, reference, pad, scale, pair_packing=packing)


def _step(optimizer: Any, parameters: list[Any], found: "Gradients") -> "Tensors":
    """One step of the optimizer on some rows."""
    from hf_lifealign.dynamics.updates import scales_of, step_of

    scales = scales_of(optimizer, parameters, found.second)
    if scales is None:
        raise ValueError("The run's optimizer is neither SGD nor Adam nor AdamW, so that its steps cannot be foretold.")
    return step_of(found.parts["total"], scales)


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
