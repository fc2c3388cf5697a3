"""What the tests of the metrics share: the published matrix, and an `evaluate` that writes to a tmp folder only."""

import copy
import sys

import pytest

# LifeAlign, LLM judge, task order 1: row k holds the performance on tasks 0..k after training through task k.
PUBLISHED = [
    [52.52],
    [54.17, 55.62],
    [49.89, 54.26, 40.69],
    [51.61, 56.39, 54.62, 50.74],
    [47.54, 59.55, 58.43, 49.85, 69.71],
    [50.63, 54.84, 54.38, 46.54, 64.74, 73.37],
]


@pytest.fixture
def published():
    return copy.deepcopy(PUBLISHED)


def _forget_dynamic_modules():
    for name in [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def evaluate_cache(tmp_path_factory):
    """Folder that `evaluate` copies scripts and stores rows in, in place of the user's cache."""
    import evaluate

    cache = tmp_path_factory.mktemp("evaluate")
    search_path = list(sys.path)
    # The package of copied scripts is bound to the folder it was first imported from.
    _forget_dynamic_modules()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", cache / "modules")
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", cache / "metrics")
        yield cache
    _forget_dynamic_modules()
    sys.path[:] = search_path
