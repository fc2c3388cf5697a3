"""The consolidation benchmark runs end to end on tiny sizes."""

import importlib.util
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "consolidation.py"


def test_benchmark_prints_both_spaces(capsys):
    spec = importlib.util.spec_from_file_location("consolidation_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    sizes = {"layers": 1, "hidden": 24, "intermediate": 40, "rank": 2, "tasks": 2, "repeats": 1, "threads": 1}
    module.main([part for name, value in sizes.items() for part in (f"--{name}", str(value))])
    out = capsys.readouterr().out
    for space in ("factors", "delta"):
        assert f"[{space}] 7 modules in" in out
        assert f"[{space}] extrapolated" in out
    assert "peak extra" in out
