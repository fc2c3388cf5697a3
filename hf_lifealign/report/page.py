"""A report as a list of parts, which becomes Markdown, as report.md is, or one HTML page of the same look."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from hf_lifealign.report.drawing import BAND, COLOURS, FAINT, GREY, INK
from hf_lifealign.report.table import markdown_table

FORMATS = {"md": "report.md", "html": "report.html"}

_CSS = f"""\
body {{ max-width: 54rem; margin: 2.5rem auto; padding: 0 1rem; color: {INK}; line-height: 1.5;
       font-family: "DejaVu Sans", system-ui, -apple-system, "Segoe UI", sans-serif; font-size: 15px; }}
h1 {{ font-size: 1.6rem; }}
h2 {{ font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid {FAINT}; padding-bottom: .2rem; }}
a {{ color: {COLOURS[0]}; }}
img {{ max-width: 100%; height: auto; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .87rem; margin: 1rem 0; }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid {FAINT}; text-align: right; vertical-align: top; }}
th {{ color: {GREY}; font-weight: 600; }}
th.left, td.left {{ text-align: left; }}
code {{ background: {BAND}; padding: 0 .2rem; }}
"""


@dataclass(frozen=True)
class Heading:
    """A title; level 1 is the report's own."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """A paragraph. `code`, **bold** and links to neighbours, [text](./file), are marked as in Markdown."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list, each item marked as a paragraph is."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table; see [`~hf_lifealign.report.table.markdown_table`]."""

    head: Sequence[Any]
    rows: Sequence[Sequence[Any]]
    left: int = 1


@dataclass(frozen=True)
class Picture:
    """A picture beside the report, with the text that stands for it."""

    file: str
    text: str


Part = Heading | Paragraph | Items | Table | Picture


def render(parts: Sequence[Part], form: str) -> str:
    """The report.

    Args:
        parts (`list`): in their order; the first is the heading of level 1.
        form (`str`): `"md"` or `"html"`.

    Raises:
        ValueError: for another form.
    """
    if form not in FORMATS:
        raise ValueError(f"You set the format {form!r}. It has to be one of {list(FORMATS)}.")
    if form == "md":
        return "\n\n".join(map(_markdown, parts)) + "\n"
    title = next((part.text for part in parts if isinstance(part, Heading)), "Report").replace("`", "")
    body = "\n".join(map(_html, parts))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{_CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def quoted(text: str) -> str:
    """A text from outside, as code where it holds what Markdown or HTML would obey."""
    line = " ".join(text.split())
    return f"`{line.replace('`', chr(39))}`" if re.search(r"[*_<>\[\]\\|~`]", line) else line


def link(text: str, *folders: str) -> str:
    """A link to a neighbour of the report, by the names of its folders."""
    safe = re.sub(r"([\[\]\\`*_<>])", "", text)
    return f"[{safe}](./{'/'.join(quote(name) for name in folders)})"


def _markdown(part: Part) -> str:
    if isinstance(part, Heading):
        return f"{'#' * part.level} {part.text}"
    if isinstance(part, Table):
        return markdown_table(part.head, part.rows, part.left)
    if isinstance(part, Picture):
        return f"![{part.text}]({part.file})"
    if isinstance(part, Items):
        return "\n".join(f"- {text}" for text in part.texts)
    return part.text


def _html(part: Part) -> str:
    if isinstance(part, Heading):
        return f"<h{part.level}>{_inline(part.text)}</h{part.level}>"
    if isinstance(part, Table):
        head = "".join(_cell("th", cell, i < part.left) for i, cell in enumerate(part.head))
        rows = ["".join(_cell("td", cell, i < part.left) for i, cell in enumerate(row)) for row in part.rows]
        lines = "\n".join(f"<tr>{row}</tr>" for row in rows)
        return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table></div>'
    if isinstance(part, Picture):
        return f'<p><img src="{html.escape(part.file)}" alt="{html.escape(part.text)}"></p>'
    if isinstance(part, Items):
        lines = "\n".join(f"<li>{_inline(text)}</li>" for text in part.texts)
        return f"<ul>\n{lines}\n</ul>"
    return f"<p>{_inline(part.text)}</p>"


def _cell(tag: str, value: Any, left: bool) -> str:
    opening = f'<{tag} class="left">' if left else f"<{tag}>"
    return f"{opening}{_inline(str(value))}</{tag}>"


def _inline(text: str) -> str:
    """Text with its marks as HTML; whatever else it holds is shown, not obeyed."""
    shown = []
    # what stands between backticks is taken as it is
    for number, piece in enumerate(html.escape(text).split("`")):
        if number % 2:
            shown.append(f"<code>{piece}</code>")
        else:
            bold = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", piece)
            shown.append(re.sub(r"\[([^\[\]]+)\]\((\./[^()\s]+)\)", r'<a href="\2">\1</a>', bold))
    return "".join(shown)
