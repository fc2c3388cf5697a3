"""The report of a run of SELF-ALIGN: report.md, and pictures of what was dropped, named and covered."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_lifealign._files import write_text
from hf_lifealign.report.drawing import COLOURS, GREY, drawing_style, new_figure, save_png, shorten
from hf_lifealign.report.table import cell_text, markdown_table

DOCUMENT = "report.md"
_SCALE = (
    "The published results of this method are those of models of 65 and 70 billion parameters. With a small model this "
    "page shows how the pipeline ran, not that the method aligns it."
)


def write_self_align_report(root: Path, manifests: Mapping[str, Mapping[str, Any]]) -> Path:
    """Writes report.md and its pictures into the folder of a run.

    Args:
        root (`Path`): folder of the run.
        manifests (`dict`): of its finished stages, by name.

    Returns:
        `Path`: report.md.
    """
    pictures = []
    for name, title, counts in _bars(manifests):
        _draw(root / f"{name}.png", title, counts)
        pictures.append(name)
    logs = _reinforced(manifests).get("logs")
    if logs:
        _draw_reinforcement(root / "reinforcement.png", logs)
        pictures.append("reinforcement")
    parts = [
        "# Aligned by principles",
        _SCALE,
        *_prompts(manifests),
        *_responses(manifests),
        *_trained(manifests, "engrave", "Engraving"),
    ]
    if _reinforced(manifests):
        parts += [*_judged(manifests), *_rewarded(manifests), *_reinforcement(manifests)]
    else:
        parts += [*_cloned(manifests), *_judged(manifests), *_rewarded(manifests)]
        parts += _trained(manifests, "refine", "Refinement")
    parts += [f"![{name.replace('-', ' ')}]({name}.png)" for name in pictures]
    write_text(root / DOCUMENT, "\n\n".join(parts) + "\n")
    return root / DOCUMENT


def _bars(manifests: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, Mapping[str, int]]]:
    """Name, title and counts of each picture."""
    found: list[tuple[str, str, Mapping[str, int]]] = []
    for stage, manifest in manifests.items():
        if manifest.get("reasons"):
            found.append((f"dropped-{stage}", f"Dropped by the stage {stage}", manifest["reasons"]))
    told = manifests.get("responses", {}).get("told", {})
    if told.get("principles"):
        found.append(("principles", "Answers whose note names a principle", told["principles"]))
    kinds = manifests.get("prompts", {}).get("told", {}).get("red_team", {}).get("kinds")
    if kinds:
        found.append(("kinds", "Questions of each kind of topic", kinds))
    return found


def _draw(path: Path, title: str, counts: Mapping[str, int]) -> None:
    from matplotlib.ticker import MaxNLocator

    with drawing_style():
        # inches: the title, a bar for each name, the numbers under them
        head, foot = 0.4, 0.35
        height = head + 0.28 * len(counts) + foot
        figure = new_figure(7.0, height)
        ax = figure.add_subplot()
        names = list(counts)[::-1]
        ax.barh(range(len(names)), [counts[name] for name in names], color=COLOURS[0], height=0.7)
        ax.set_yticks(range(len(names)), [shorten(name.replace("_", " "), 34) for name in names])
        for place, name in enumerate(names):
            ax.annotate(f" {counts[name]}", (counts[name], place), va="center", fontsize=8, color=GREY)
        ax.set_title(title, loc="left", fontsize=10)
        ax.margins(x=0.1)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_ylim(-0.6, len(names) - 0.4)
        figure.subplots_adjust(left=0.34, right=0.97, top=1 - head / height, bottom=foot / height)
        save_png(figure, path)


def _draw_reinforcement(path: Path, logs: Sequence[Mapping[str, Any]]) -> None:
    """Reward, KL, and length and end of the answers, over the steps: what a policy that cheats its reward model shows
    first is an answer that grows, or never ends."""
    panels = (
        ("reward", "reward", lambda entry: entry["reward"]),
        ("KL to the engraved model, nats", "kl", lambda entry: entry["kl"]),
        ("tokens of an answer", "tokens", lambda entry: entry["tokens"]),
        ("share that comes to an end", "clipped", lambda entry: 1 - entry["clipped"]),
    )
    with drawing_style():
        figure = new_figure(7.0, 4.6)
        for number, (title, key, value) in enumerate(panels):
            ax = figure.add_subplot(2, 2, number + 1)
            told = [(entry["step"], value(entry)) for entry in logs if entry.get(key) is not None]
            ax.plot([x for x, _ in told], [y for _, y in told], color=COLOURS[number], marker="o", markersize=2.5)
            ax.set_title(title, loc="left", fontsize=9)
            if number >= 2:
                ax.set_xlabel("optimizer step")
        figure.subplots_adjust(left=0.09, right=0.98, top=0.93, bottom=0.11, hspace=0.38, wspace=0.22)
        save_png(figure, path)


def _counts(counts: Mapping[str, Any], head: Sequence[str]) -> str:
    return markdown_table(head, [[cell_text(name), str(count)] for name, count in counts.items()])


def _prompts(manifests: Mapping[str, Mapping[str, Any]]) -> list[str]:
    manifest = manifests.get("prompts")
    if manifest is None:
        return []
    told = manifest["told"]
    rows = [
        [name, str(part["accepted"]), str(part["generations"]), str(part["rounds"])]
        for name in ("self_instruct", "red_team")
        if (part := told.get(name))
    ]
    found = ["## Tasks", markdown_table(("made by", "accepted", "generations", "rounds"), rows)]
    found.append(f"{manifest['dropped']} texts were dropped.")
    if manifest["reasons"]:
        found.append(_counts(manifest["reasons"], ("reason", "texts")))
    if "red_team" in told:
        part = told["red_team"]
        rows = [[kind, str(count), str(part["topics"].get(kind, 0))] for kind, count in part["kinds"].items()]
        found += ["### Topics", markdown_table(("kind", "questions", "topics"), rows)]
    return found


def _responses(manifests: Mapping[str, Mapping[str, Any]]) -> list[str]:
    manifest = manifests.get("responses")
    if manifest is None:
        return []
    told = manifest["told"]
    words = sorted(told["words"])
    rows = [
        ["tasks that were answered", str(told["asked"])],
        ["answers that were kept", str(told["kept"])],
        ["keep rate", f"{100 * told['keep_rate']:.1f} % (published: 71.6 % and 67.8 %)"],
        ["answers whose note names no principle", str(told["without_a_principle"])],
        ["words of an answer (median)", str(words[len(words) // 2]) if words else "-"],
    ]
    if "pairs" in told:
        rows.append(["pairs with an answer without principles", str(told["pairs"])])
    found = ["## Answers", markdown_table(("figure", "value"), rows, left=2)]
    for key, title in (("reasons", "with principles"), ("reasons_without", "without principles")):
        if told.get(key):
            found.append(_counts(told[key], (f"dropped, {title}", "answers")))
    if told["changes"]:
        found.append(_counts(told["changes"], ("changed", "answers")))
    found += ["### Principles", _counts(told["principles"], ("principle", "answers whose note names it"))]
    return found


def _cloned(manifests: Mapping[str, Mapping[str, Any]]) -> list[str]:
    manifest = manifests.get("cloning")
    if manifest is None:
        return []
    told = manifest["told"]
    words, before = (sorted(m["told"]["words"]) for m in (manifest, manifests["responses"]))
    rows = [
        ["tasks that were answered", str(told["asked"])],
        ["answers that were kept", f"{told['kept']} ({100 * told['keep_rate']:.1f} %)"],
        ["words of an answer by principles (median)", str(before[len(before) // 2])],
        ["words of an answer at length (median)", str(words[len(words) // 2])],
    ]
    found = ["## Answers at length", markdown_table(("figure", "value"), rows, left=2)]
    if manifest["reasons"]:
        found.append(_counts(manifest["reasons"], ("dropped", "answers")))
    return found


def _trained(manifests: Mapping[str, Mapping[str, Any]], stage: str, title: str) -> list[str]:
    manifest = manifests.get(stage)
    if manifest is None:
        return []
    told = manifest["told"]
    rows = []
    for name, what, digits in (
        ("loss", "loss on held-out answers, nats a token", 3),
        ("ended", "share of its own answers that come to an end", 2),
        ("words", "words of its own answers, mean", 1),
    ):
        if name in told["before"] and name in told["after"]:
            rows.append([what, *(f"{told[when][name]:.{digits}f}" for when in ("before", "after"))])
    found = [f"## {title}", f"{told['train_rows']} rows, {told['steps']} steps; {told['held_out_rows']} rows held out."]
    if told["cut_away"]:
        found.append(f"**{told['cut_away']} rows have a prompt that fills max_length; nothing was learnt from them.**")
    found.append(markdown_table(("measure", "base", "trained"), rows))
    answers = zip(told["before"].get("answers", [])[:3], told["after"].get("answers", [])[:3], strict=True)
    for before, after in answers:
        lines = [("Asked", before["prompt"]), ("Base", before["text"]), ("Trained", after["text"])]
        found.append("\n".join(f"> **{who}:** {' '.join(text.split())}\n>" for who, text in lines).rstrip(">\n"))
    return found


def _judged(manifests: Mapping[str, Mapping[str, Any]]) -> list[str]:
    manifest = manifests.get("judgements")
    if manifest is None:
        return []
    told = manifest["told"]
    rows = [
        ["tasks that were answered twice", str(told["asked"])],
        ["pairs that were compared", str(told["pairs"])],
        ["order consistency: judgements that both orders agree on (by chance 0.5)", f"{told['order_consistency']:.3f}"],
        ["judgements that prefer the answer shown first (by chance 0.5)", f"{told['first_preferred']:.3f}"],
    ]
    found = ["## Judgements", markdown_table(("figure", "value"), rows, left=2)]
    if manifest["reasons"]:
        found.append(_counts(manifest["reasons"], ("dropped", "answers")))
    shares = {name: f"{value:.3f}" for name, value in told["of_each_principle"].items()}
    return [*found, _counts(shares, ("principle", "order consistency"))]


def _rewarded(manifests: Mapping[str, Mapping[str, Any]]) -> list[str]:
    manifest = manifests.get("reward")
    if manifest is None:
        return []
    told = manifest["told"]
    rows = []
    for name, what in (
        ("accuracy", "accuracy on held-out pairs (by chance 0.5)"),
        ("negated", "of pairs whose label comes from a negated principle"),
        ("not_negated", "of the others"),
    ):
        shares = [told[when][name] for when in ("before", "after")]
        cells = ["-" if share is None else f"{share:.3f}" for share in shares]
        rows.append([what, str(told["after"][f"{name}_rows"]), *cells])
    found = [
        "## Reward model",
        f"The judge's order consistency is {told['order_consistency']:.3f}, and at least "
        f"{told['least_order_consistency']} was asked for. Of {told['pairs']} pairs {told['labelled']} have a label, "
        f"{told['negated']} of them from a negated principle. {told['train_rows']} rows, {told['steps']} steps; "
        f"{told['held_out_rows']} rows held out.",
    ]
    if told["cut_away"]:
        found.append(f"**{told['cut_away']} pairs are longer than max_length; nothing was learnt from them.**")
    found.append(markdown_table(("measure", "pairs", "before", "after"), rows))
    if manifest["reasons"]:
        found.append(_counts(manifest["reasons"], ("no label", "pairs")))
    return found


def _reinforced(manifests: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """What the stage `refine` told, if its method is reinforcement."""
    told: Mapping[str, Any] = manifests.get("refine", {}).get("told", {})
    return told if "beta" in told else {}


def _reinforcement(manifests: Mapping[str, Mapping[str, Any]]) -> list[str]:
    told = _reinforced(manifests)
    rows = []
    for name, what, digits in (
        ("reward", "reward of answers to held-out requests, mean", 3),
        ("tokens", "tokens of an answer, mean", 1),
        ("ended", "share that comes to an end", 2),
        ("loss", "loss on held-out engraved answers, nats a token", 3),
    ):
        if name in told["before"] and name in told["after"]:
            rows.append([what, *(f"{told[when][name]:.{digits}f}" for when in ("before", "after"))])
    found = [
        "## Reinforcement",
        f"{told['train_rows']} requests, {told['steps']} steps, KL weighted by {told['beta']}; "
        f"{told['held_out_rows']} requests held out. An answer has up to {told['most_tokens']} tokens. A reward that "
        "rises while answers grow, or no longer end, is a sign that the reward model is cheated.",
        markdown_table(("measure", "engraved", "reinforced"), rows),
    ]
    if told["logs"]:
        first, last = told["logs"][0], told["logs"][-1]
        found.append(
            f"KL to the engraved model: {first['kl']:.4f} at step {first['step']}, {last['kl']:.4f} at step "
            f"{last['step']}."
        )
    answers = zip(told["before"].get("answers", [])[:3], told["after"].get("answers", [])[:3], strict=True)
    for before, after in answers:
        lines = [
            ("Asked", before["prompt"]), ("Principles", " ".join(before["principles"])),
            (f"Engraved ({before['reward']:.2f})", before["text"]),
            (f"Reinforced ({after['reward']:.2f})", after["text"]),
        ]  # fmt: skip
        found.append("\n".join(f"> **{who}:** {' '.join(text.split())}\n>" for who, text in lines).rstrip(">\n"))
    return found
