"""What about a data set's diversity deserves a warning, by thresholds that are provisional and said to be.

They come from small models (a fixed template: collision 1, Vendi score 1; ten templates: about .10 and at most 10;
diverse answers: near 0 and above 20). Narrowness makes the force greater with which training on something else takes
back what was aligned (arXiv 2605.18309), but in measurements it did not by itself order how fast that happens. So a
warning asks for a look at the data; it is no verdict.
"""

from dataclasses import asdict, dataclass
from typing import Any

FIRST_TOKEN_COLLISION = 0.4
VENDI = 10.0
DUPLICATES = 0.05
# With fewer rows a Vendi score, which is at most their number, says more about the number than about the rows.
ROWS_TO_JUDGE_VENDI = 20

_REWRITE = (
    "Rewrite a part of the answers in other styles (style-diversified rewrites: other openings, lengths and forms, "
    "the same content), or mix in answers of other origin."
)


@dataclass(frozen=True)
class DiversityWarning:
    """Something about the data that deserves a look.

    Args:
        kind (`str`): `"first_token_collision"`, `"vendi"` or `"duplicates"`.
        value (`float`): what was measured.
        threshold (`float`): where the warning begins.
        message (`str`): what is wrong, and what to do.
    """

    kind: str
    value: float
    threshold: float
    message: str

    def to_json(self) -> dict[str, Any]:
        """The warning for a file; it says that the threshold is provisional."""
        return {**asdict(self), "provisional": True}


def judge(
    first_token_collision: float, vendi: float, vendi_rows: int, duplicates: int, rows: int
) -> list[DiversityWarning]:
    """The warnings that measures of a data set call for, none where all is well.

    Args:
        first_token_collision (`float`): probability that two answers begin with the same token.
        vendi (`float`): Vendi score by n-grams. It is judged only from [`ROWS_TO_JUDGE_VENDI`] rows on.
        vendi_rows (`int`): rows that it was computed over.
        duplicates (`int`): answers that say what an earlier one says.
        rows (`int`): answers in all.
    """
    found = []
    if first_token_collision > FIRST_TOKEN_COLLISION:
        message = (
            f"Two answers begin with the same token in {first_token_collision:.0%} of all pairs (provisional threshold "
            f"{FIRST_TOKEN_COLLISION:.0%}): what is trained on them learns one way to begin. {_REWRITE}"
        )
        found.append(DiversityWarning("first_token_collision", first_token_collision, FIRST_TOKEN_COLLISION, message))
    # rounded, so that ten templates of exactly 10 do not fall below it by the last bit
    if vendi_rows >= ROWS_TO_JUDGE_VENDI and round(vendi, 9) < VENDI:
        message = (
            f"By their n-grams the answers are worth {vendi:.1f} different ones (provisional threshold {VENDI:g}): "
            f"they vary a few patterns. {_REWRITE}"
        )
        found.append(DiversityWarning("vendi", vendi, VENDI, message))
    share = duplicates / rows
    if share > DUPLICATES:
        message = (
            f"{duplicates:,} of {rows:,} answers ({share:.1%}) say word for word what an earlier one says (provisional "
            f"threshold {DUPLICATES:.0%}): they train the same again. Remove them, or rewrite each in words of its own."
        )
        found.append(DiversityWarning("duplicates", share, DUPLICATES, message))
    return found
