"""Where the recipes and card templates lie: inside the wheel, or at the root of a checkout."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource_path(*parts: str) -> Path:
    """Path of a shipped file or folder, e.g. ``resource_path("recipes", "quickstart.yaml")``.

    Raises:
        FileNotFoundError: if the installation lacks it.
    """
    for root in (_PACKAGE / "_data", _PACKAGE.parent):
        path = root.joinpath(*parts)
        if path.exists():
            return path
    raise FileNotFoundError(
        f"The shipped resource {'/'.join(parts)!r} is not in this installation of hf_lifealign. "
        "Install the wheel again, or run from a full checkout."
    )
