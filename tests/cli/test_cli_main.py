"""The command `lifealign` as a user starts it: help, output, exit codes, and errors of one line."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from report.fake_run import fake_run

import hf_lifealign
from hf_lifealign.cli.inspection import size_text
from hf_lifealign.cli.main import main

COMMAND = Path(sys.executable).with_name("lifealign")


def lifealign(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [str(COMMAND), *(str(arg) for arg in args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)


def assert_error(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("lifealign: error: ")
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A saved SLMC adapter that has lived through two consolidations."""
    import torch
    from peft import get_peft_model
    from support.tiny import tiny_model

    from hf_lifealign.slmc import SLMCConfig

    model = get_peft_model(tiny_model(), SLMCConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    for task in ("first", "second"):
        model.base_model.begin_task(task, phase="fpo")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.add_(torch.randn_like(parameter))
        model.base_model.consolidate()
    folder = tmp_path_factory.mktemp("adapters") / "02-second"
    model.save_pretrained(folder)
    return folder


def test_help_and_version():
    result = lifealign("--help")
    assert result.returncode == 0
    for word in ("run", "matrix", "inspect", "report", "metrics", "examples:", "recipes/quickstart.yaml"):
        assert word in result.stdout
    assert lifealign("--version").stdout == f"lifealign {hf_lifealign.__version__}\n"


@pytest.mark.parametrize("command", ["run", "matrix", "inspect", "report", "metrics"])
def test_help_of_each_command(command):
    result = lifealign(command, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: lifealign {command}")


def test_help_is_quick():
    took = []
    for _ in range(3):
        started = time.perf_counter()
        lifealign("--help")
        took.append(time.perf_counter() - started)
    assert min(took) < 0.5


def test_matrix_imports_neither_torch_nor_matplotlib(tmp_path):
    (tmp_path / "m.json").write_text("[[0.5]]")
    code = (
        "import sys; from hf_lifealign.cli.main import main; main(['matrix', 'm.json']); "
        "print([m for m in ('torch', 'transformers', 'peft', 'matplotlib', 'jinja2', 'yaml') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_no_command_shows_help():
    result = lifealign()
    assert result.returncode == 2
    assert "usage: lifealign" in result.stderr


def test_unknown_command():
    result = lifealign("train")
    assert result.returncode == 2
    assert "lifealign: error: argument COMMAND: invalid choice: 'train'" in result.stderr


def test_matrix_of_a_bare_file(tmp_path):
    (tmp_path / "m.json").write_text("[[0.75], [0.5, 1.0]]")
    result = lifealign("matrix", "m.json", cwd=tmp_path)
    assert result.returncode == 0
    assert "| 2 T2       | 0.500 | 1.000 |       0.750 |" in result.stdout
    assert "| BWT              | -0.250 |" in result.stdout
    found = json.loads(lifealign("matrix", "m.json", "--json", cwd=tmp_path).stdout)
    assert found["matrix"] == [[0.75, None], [0.5, 1.0]]
    assert found["bwt"] == -0.25
    assert found["forgetting"] == 0.25
    assert found["last_performance"] == 0.75
    assert found["average_performance"] == 0.75
    assert found["forward_transfer"] is None


def test_matrix_of_a_run(tmp_path):
    run = fake_run(tmp_path, judges=True)
    assert "ROUGE-L" in lifealign("matrix", run, "--metric", "rouge_l").stdout
    found = json.loads(lifealign("matrix", run / "matrix.json", "--json").stdout)
    assert found["metric"] == "preference_accuracy"
    assert found["baseline"] == [0.5] * 4
    assert found["forward_transfer"] == pytest.approx((0.512 + 0.422 + 0.503) / 3 - 0.5)


def test_bad_input_is_one_line(tmp_path):
    (tmp_path / "ragged.json").write_text("[[1, 2], [3]]")
    (tmp_path / "text.json").write_text("hello")
    assert_error(lifealign("matrix", "none.json", cwd=tmp_path), "no file none.json")
    assert_error(lifealign("matrix", tmp_path), "matrix.json", "first task")
    assert_error(lifealign("matrix", "ragged.json", cwd=tmp_path), "matrix[1] has length 1")
    assert_error(lifealign("matrix", "text.json", cwd=tmp_path), "not valid JSON")
    assert_error(lifealign("matrix", fake_run(tmp_path / "run"), "--metric", "bleu"), "preference_accuracy, margin")
    assert_error(lifealign("report", tmp_path), "not the folder of a run")


def test_debug_shows_the_traceback(tmp_path):
    for args in (("--debug", "report", tmp_path), ("report", tmp_path, "--debug")):
        result = lifealign(*args)
        assert result.returncode == 2
        assert "Traceback" in result.stderr
        assert "lifealign: error: " in result.stderr.splitlines()[-1]


def test_report(tmp_path):
    run = fake_run(tmp_path)
    result = lifealign("report", run)
    assert result.returncode == 0
    assert result.stdout.split() == [str(run / name) for name in ("matrix.png", "curves.png", "report.md")]
    assert (run / "matrix.png").stat().st_size > 10_000


def test_metrics():
    lines = lifealign("metrics").stdout.splitlines()
    paths = dict(line.split() for line in lines[: lines.index("")])
    steering = {"hypervolume", "pareto_inner_product", "controllability"}
    life = {"bwt", "forgetting", "average_performance", "last_performance", "forward_transfer"}
    assert set(paths) == life | steering | {"alignment_score", "priming_ratio"}
    for name, path in paths.items():
        assert (Path(path) / f"{name}.py").is_file()


def test_inspect(adapter):
    result = lifealign("inspect", adapter)
    assert result.returncode == 0, result.stderr
    for part in (
        "checksums",
        "verified",
        "| first  | fpo",
        "| second | fpo",
        "projection_weight",
        "0.5",
        "history",
        "kB",
    ):
        assert part in result.stdout
    found = json.loads(lifealign("inspect", adapter, "--json").stdout)
    assert [entry["task"] for entry in found["entries"]] == ["first", "second"]
    assert found["memory"]["vectors_per_unit"] == 2
    assert found["settings"]["r"] == 2
    assert found["running"] is None


def test_inspect_refuses_damaged_and_other_folders(adapter, tmp_path, capsys):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(adapter, copy)
    tensors = copy / "slmc" / "memory.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")
    assert_error(lifealign("inspect", copy), "sha256")
    shutil.rmtree(copy / "slmc")
    # The rest starts no process of its own: each takes seconds to load torch.
    cases = [(copy, "without a memory"), (tmp_path, "no adapter_config.json"), ("./gone", "neither a folder nor"),
             ("nobody/none-such", "There is no folder nobody/none-such")]  # fmt: skip
    for folder, words in cases:
        assert main(["inspect", str(folder)]) == 2
        assert words in capsys.readouterr().err
    assert main(["inspect", str(copy), "--revision", "v1"]) == 2
    assert "has no revisions" in capsys.readouterr().err


def test_run_hands_its_arguments_over(monkeypatch):
    from hf_lifealign.lifelong import recipe

    seen = {}
    monkeypatch.setattr(recipe, "run_recipe", lambda path, **rest: seen.update(path=path, **rest) or 0)
    line = "run r.yaml --output-dir out --set a.b=1 --set c=2 --data-dir data --no-resume --continue-from me/x@t"
    assert main(line.split()) == 0
    expected = {"path": "r.yaml", "overrides": ["a.b=1", "c=2"], "output_dir": "out", "data_dir": "data"}
    assert seen == {**expected, "resume": False, "continue_from": "me/x@t"}


def test_run_without_a_recipe():
    assert_error(lifealign("run", "none.yaml"), "none.yaml")


def test_errors_by_kind(monkeypatch, capsys):
    from hf_lifealign.cli import commands
    from hf_lifealign.stream.errors import Problem, StreamError

    def raising(error):
        def command(args):
            raise error

        return command

    problem = Problem("a", "train", "x", "It is wrong.", "Do this.")
    for error, code in ((StreamError([problem]), 2), (PermissionError("no"), 2), (KeyboardInterrupt(), 130)):
        monkeypatch.setitem(commands.COMMANDS, "metrics", raising(error))
        assert main(["metrics"]) == code
        assert capsys.readouterr().err.startswith("lifealign: ")
    monkeypatch.setitem(commands.COMMANDS, "metrics", raising(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        main(["metrics"])


def test_reader_of_a_pipe_that_leaves_early(tmp_path):
    run = fake_run(tmp_path)
    script = f"'{COMMAND}' matrix '{run}' | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


def test_sizes():
    assert [size_text(n) for n in (0, 999, 3_400_000, 7_100_000_000)] == ["0 B", "999 B", "3.4 MB", "7.1 GB"]
