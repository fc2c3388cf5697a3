"""A diversity report as text for a terminal, in which no text of the data can do anything but be read."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_lifealign.diversity.kernels import ORDERS
from hf_lifealign.report.table import markdown_table

if TYPE_CHECKING:
    from hf_lifealign.diversity.report import DiversityReport, Repeated

_LONGEST = 64


def visible(text: str, longest: int = _LONGEST) -> str:
    """One line of a text from outside, cut to a length, with every character that does not print as its escape.

    A terminal obeys control characters, and characters of format reorder or hide what stands beside them. Both come out
    as `repr` writes them, "\\\\x1b" for an escape.

    Args:
        text (`str`): the text; white space becomes single spaces.
        longest (`int`, *optional*, defaults to 64): characters of the result.
    """
    # cut first: of a long text no more is looked at than can be shown
    line = " ".join(text[: 4 * longest].split())
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    return shown if len(shown) <= longest and len(text) <= 4 * longest else shown[: longest - 1] + "…"


def report_text(report: "DiversityReport") -> str:
    """The report as text for a terminal: what was measured, tables, warnings and notes.

    Args:
        report ([`DiversityReport`]): the report.
    """
    parts = [_title(report), markdown_table(("measure", "value", "meaning"), _measures(report), left=3)]
    for head, found in (("most frequent openings", report.openings), ("most frequent answers", report.repeated)):
        if found:
            parts.append(markdown_table((head, "answers", "share"), _repeated_rows(found)))
    parts += [f"warning: {warning.message}" for warning in report.warnings]
    parts += [f"note: {note}" for note in report.notes]
    return "\n\n".join(parts)


def _title(report: "DiversityReport") -> str:
    what = "words" if report.tokens == "words" else f"tokens of {visible(report.tokens)}"
    origin = [visible(report.data) if report.data else "the answers"]
    origin += [f"split {visible(report.split)}"] if report.split else []
    origin += [f"column {visible(report.column)}"] if report.column else []
    return f"Diversity of {', '.join(origin)}: {report.answers:,} answers, on average {report.mean_length:.1f} {what}"


def _measures(report: "DiversityReport") -> list[tuple[str, str, str]]:
    token = "word" if report.tokens == "words" else "token"
    rows = [("exact collision", f"{report.exact_collision:.3f}", "chance that two answers are the same")]
    for k, value in report.prefix_collision.items():
        what = f"same first {token}" if k == 1 else f"same first {k} {token}s"
        rows.append((f"collision c_{k}", f"{value:.3f}", f"chance that two begin with the {what}"))
    orders = " and ".join(map(str, ORDERS))
    rows += [
        ("n-gram similarity", f"{report.similarity:.3f}", f"mean cosine of two answers' n-grams, n = {orders}"),
        ("Vendi score", f"{report.vendi:.1f}", f"different answers that {report.vendi_rows:,} are worth, by n-grams"),
        ("distinct-1", f"{report.distinct_1:.3f}", f"different {token}s / all {token}s"),
        ("distinct-2", f"{report.distinct_2:.3f}", f"different pairs of {token}s / all pairs"),
        ("duplicates", f"{report.duplicate_share:.1%}", "answers that are the same as an earlier one"),
    ]
    if report.embedding is not None:
        name = visible(report.embedding.model)
        rows += [
            ("embedding similarity", f"{report.embedding.similarity:.3f}", f"mean cosine of two answers by {name}"),
            (
                "embedding Vendi score",
                f"{report.embedding.vendi:.1f}",
                f"different answers that {report.embedding.rows:,} are worth, by {name}",
            ),
        ]
    return rows


def _repeated_rows(found: "Sequence[Repeated]") -> list[tuple[str, str, str]]:
    return [(visible(one.text), f"{one.count:,}", f"{one.share:.1%}") for one in found]
