"""`lifealign pareto`: the front that a meta-aligned policy reaches under user weights, beside those of others."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_lifealign.meta_aligner.front_figures import Front, Scale

_PARETO = """\
Answer held-out prompts under user weights from one objective to the other, rate the answers, and draw the front that
the policy reaches, with hypervolume, inner product and controllability. RUN is the folder that MetaAlignerTrainer has
saved, or its repository. What recipes/meta_aligner.py has saved says itself which base, rewards and prompts to take.
A sweep that was interrupted goes on when the same command is given again.
"""

_PARETO_EPILOG = """\
examples:
  lifealign pareto runs/meta-aligner
  lifealign pareto runs/meal --compare runs/random runs/uniform --include-base --limit 100
  lifealign pareto me/meal --base Qwen/Qwen2.5-0.5B-Instruct --prompts test.jsonl --rewards me/helpful brevity

The hypervolume is in z-scores of the rewards, by RUN's statistics of its offline set, and measured from 3 standard
deviations below their means unless --reference-point says otherwise: a point fixed before any arm is looked at.
"""

FRONT, PICTURE, STORE = "front.json", "front.png", "points"
# They may hold prompts' answers: trainers upload nothing whose name begins with an underscore.
OWN_STORE = "_pareto_points"


def add_parser(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command; `add(name, short, text, epilog)` makes a parser."""
    parser = add("pareto", "draw the front of a meta-aligned policy", _PARETO, _PARETO_EPILOG)
    parser.add_argument("run", metavar="RUN", help="folder of a saved policy, or its repository owner/name")
    parser.add_argument("--base", metavar="MODEL", help="Hub id, folder or embedded:NAME (default: what RUN names)")
    parser.add_argument(
        "--encoder", metavar="MODEL", help="encoder of prompts, where it lies elsewhere than in training"
    )
    parser.add_argument("--prompts", metavar="DATA", nargs="+", help="files, folders or Hub ids of datasets")
    parser.add_argument("--split", metavar="NAME", help="split of folders and Hub ids (default: RUN's, or test)")
    parser.add_argument("--rewards", metavar="SPEC", nargs="+", help="one reward for each objective, in their order")
    parser.add_argument(
        "--weights",
        type=int,
        metavar="N",
        help="values of each weight from 0 to 1 (default: 11 for two objectives, 5 for more)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N prompts")
    parser.add_argument("--compare", metavar="RUN", nargs="+", default=[], help="other policies on the same objectives")
    parser.add_argument("--include-base", action="store_true", help="measure the base without adapter and preference")
    parser.add_argument(
        "--reference-point",
        metavar="R",
        nargs="+",
        help="worst value of each objective, in the units of the rewards; or the front.json whose scale and reference "
        "point are taken over",
    )
    parser.add_argument(
        "--output-dir",
        metavar="DIR",
        help="folder for front.json, front.png and points/ (default: "
        "RUN/pareto, and RUN/_pareto_points, which is never uploaded)",
    )
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer (default: as in training)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="prompts answered together")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the sampling")
    parser.add_argument("--keep-answers", action="store_true", help="keep the answers in the files of the points")
    parser.add_argument("--json", action="store_true", help="print JSON")


@dataclass(frozen=True)
class _Plan:
    """What all arms of a sweep share."""

    rows: list[dict[str, Any]]
    rewards: list[Any]
    objectives: list[str]
    weights: list[list[float]]
    output: Path
    store: Path


def pareto(args: argparse.Namespace) -> int:
    """`lifealign pareto`."""
    import json

    for name in ("limit", "max_new_tokens", "batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"You set --{name.replace('_', '-')} {getattr(args, name)}. Set at least 1.")
    plan = _plan(args)
    fronts: list[Front] = []
    for run, name in zip([args.run, *args.compare], _arm_names([args.run, *args.compare]), strict=True):
        fronts.append(_sweep(args, plan, run, name, fronts[0].scale if fronts else None))
    content = _content(fronts)
    _write(plan.output, content)
    if args.json:
        print(json.dumps(content, indent=2))
        return 0
    print(_text(content))
    for name in (FRONT, PICTURE):
        print(plan.output / name)
    return 0


def _plan(args: argparse.Namespace) -> _Plan:
    """Reads what RUN says of itself and loads prompts and rewards, before any model."""
    from hf_lifealign.meta_aligner.data import split_preferences
    from hf_lifealign.meta_aligner.front import user_weights
    from hf_lifealign.meta_aligner.sources import RECORD
    from hf_lifealign.rewards import resolve_reward
    from hf_lifealign.stream.tables import load_rows

    record, settings = _read(args.run)
    for run in args.compare:
        theirs = _read(run)[1]["objectives"]
        if theirs != settings["objectives"]:
            raise ValueError(
                f"You compare {args.run} with {run}, whose objectives are {settings['objectives']} and {theirs}. "
                "Fronts compare only on the same objectives, in the same order."
            )
    specs: list[str] = args.rewards or record.get("rewards") or []
    prompts: list[str] = args.prompts or record.get("prompts") or []
    for option, found, what in (("--rewards", specs, "rewards"), ("--prompts", prompts, "held-out prompts")):
        if not found:
            raise ValueError(
                f"{args.run} does not say which {what} it is measured by: it has no {RECORD}, as "
                f"recipes/meta_aligner.py writes one, or that names none. Give {option}."
            )
    objectives = list(settings["objectives"])
    if len(specs) != len(objectives):
        raise ValueError(
            f"You gave {len(specs)} rewards. The policy has the objectives {objectives}: give one for each, in that "
            "order."
        )
    rows, _ = split_preferences(load_rows(prompts, args.split or record.get("split") or "test"), None)
    rows = rows.select(range(min(args.limit or len(rows), len(rows))))
    home = Path(args.run) if Path(args.run).is_dir() else Path(args.run.split("/")[-1])
    output = Path(args.output_dir or home / "pareto")
    store = output / STORE if args.output_dir else home / OWN_STORE
    try:
        rewards = [resolve_reward(spec) for spec in specs]
    except ImportError as error:
        raise ValueError(str(error)) from error
    return _Plan(rows.to_list(), rewards, objectives, user_weights(len(objectives), args.weights), output, store)


def _read(run: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The recipe's record and the settings of a saved policy."""
    from hf_lifealign.meta_aligner.sources import read_record
    from hf_lifealign.meta_aligner.storage import locate_policy, policy_file, read_policy

    folder = locate_policy(run, None, None)
    # of the folder that was named, not of one that was fetched
    return read_record(Path(run)), read_policy(policy_file(folder)).settings


def _sweep(args: argparse.Namespace, plan: _Plan, run: str, name: str, scale: "Scale | None") -> "Front":
    """The front of one arm; the first one's scale is that of all."""
    import torch

    from hf_lifealign.meta_aligner.front import sweep_front
    from hf_lifealign.meta_aligner.policy import load_meta_aligned
    from hf_lifealign.models import find_base

    record, settings = _read(run)
    options = dict(record.get("model_init_kwargs") or {})
    revision = options.pop("revision", None)  # of the base that was recorded
    if torch.cuda.is_available():
        options.setdefault("device_map", "cuda")
    base = find_base(args.base or record.get("base"), settings["base_model"], run)
    policy = load_meta_aligned(
        base,
        run,
        encoder=args.encoder or record.get("encoder"),
        base_revision=None if args.base else revision,
        **options,
    )
    if scale is None:
        scale = _scale(policy, args.reference_point)
    return sweep_front(
        policy,
        plan.rows,
        plan.rewards,
        plan.weights,
        name=name,
        scale=scale,
        include_base=args.include_base,
        generation={} if args.max_new_tokens is None else {"max_new_tokens": args.max_new_tokens},
        batch_size=args.batch_size,
        seed=args.seed,
        store=plan.store / name,
        keep_answers=args.keep_answers,
    )


def _scale(policy: Any, reference: Sequence[str] | None) -> "Scale":
    """The scale of all arms, from the first one's statistics or from the front that was named."""
    from hf_lifealign._files import read_json
    from hf_lifealign.meta_aligner.front_figures import Front, Scale

    if reference is not None and len(reference) == 1 and Path(reference[0]).is_file():
        front = Front.from_json(read_json(Path(reference[0]))["fronts"][0])
        if front.objectives != policy.objective_names:
            raise ValueError(
                f"You set --reference-point {reference[0]}, a front of {front.objectives}. The policy has "
                f"{policy.objective_names}."
            )
        return front.scale
    if policy.statistics is None:
        raise ValueError("The policy has no reward statistics, so that its rewards have no scale. Train it first.")
    try:
        point = None if reference is None else [float(value) for value in reference]
    except ValueError as error:
        raise ValueError(
            f"You set --reference-point {' '.join(reference or [])}. Give one number for each objective, or a "
            "front.json that is there."
        ) from error
    return Scale.of(policy.statistics.mean.tolist(), policy.statistics.std.tolist(), point)


def _arm_names(runs: Sequence[str]) -> list[str]:
    """A name for each arm: that of its folder, with a number where two are called alike."""
    names: list[str] = []
    for run in runs:
        plain = Path(run).resolve().name if Path(run).is_dir() else run.split("/")[-1]
        number = sum(name == plain or name.startswith(f"{plain}~") for name in names)
        names.append(plain if not number else f"{plain}~{number + 1}")
    return names


def _content(fronts: Sequence["Front"]) -> dict[str, Any]:
    """What `front.json` holds: the fronts, and each other one's difference to the first."""
    from hf_lifealign.meta_aligner.compare import LEVEL, REPLICATES, compare_fronts

    comparisons = []
    for other in fronts[1:]:
        found = compare_fronts(fronts[0], other)
        differences = {name: difference.to_json() for name, difference in found.items()}
        comparisons.append({"first": fronts[0].name, "second": other.name, "differences": differences})
    bootstrap = {"replicates": REPLICATES, "level": LEVEL, "over": "prompts"}
    return {"fronts": [front.to_json() for front in fronts], "comparisons": comparisons, "bootstrap": bootstrap}


def _write(output: Path, content: dict[str, Any]) -> None:
    from hf_lifealign._files import write_json
    from hf_lifealign.meta_aligner.front_figures import FORMAT
    from hf_lifealign.report.front_picture import write_front_picture

    output.mkdir(parents=True, exist_ok=True)
    write_front_picture(content["fronts"], output / PICTURE)
    write_json(output / FRONT, {"format": FORMAT, **content})


def _text(content: dict[str, Any]) -> str:
    """The fronts as tables for a terminal."""
    from hf_lifealign.meta_aligner.front_figures import BASE, OWN
    from hf_lifealign.report.table import markdown_table

    parts = []
    for front in content["fronts"]:
        names = front["objectives"]
        rows = []
        for point in (*front["points"], front["own"], front["base"]):
            if point is not None:
                label = " / ".join(f"{w:.2f}" for w in point["weights"]) if point["weights"] else ""
                label = f"{point['label']} {label}".strip() if point["label"] in (OWN, BASE) else label
                means = [f"{m:.3f} ± {e:.3f}" for m, e in zip(point["mean"], point["standard_error"], strict=True)]
                rest = [f"{point['mean_length']:.1f}", f"{point['distinct_2']:.2f}", f"{point['perplexity']:.1f}"]
                rows.append([label, *means, *rest])
        header = (" / ".join(names), *names, "tokens", "distinct-2", "base ppl")
        parts += [f"{front['name']}: {front['settings']['prompts']} prompts", markdown_table(header, rows), ""]
    rows = [[front["name"], *_figure_cells(front["figures"])] for front in content["fronts"]]
    parts.append(markdown_table(("", "hypervolume", "inner product", "controllability"), rows))
    if content["comparisons"]:
        rows = []
        for pair in content["comparisons"]:
            cells = [
                f"{d['difference']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]" for d in pair["differences"].values()
            ]
            rows.append([f"{pair['first']} - {pair['second']}", *cells])
        parts += ["", markdown_table(("95% CI, bootstrap over prompts", "hypervolume", "inner product"), rows)]
    return "\n".join([*parts, ""])


def _figure_cells(figures: dict[str, Any]) -> list[str]:
    names = ("hypervolume", "inner_product", "controllability")
    return ["–" if figures[name] is None else f"{figures[name]:.3f}" for name in names]


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {"pareto": pareto}
