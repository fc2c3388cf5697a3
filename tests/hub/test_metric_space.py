"""Metrics as Spaces: what is published stands alone, is published once, and never over somebody else's work."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from support.hub_server import Fault, HubServer, client_environment

import hf_lifealign
from hf_lifealign.hub import patience
from hf_lifealign.hub.errors import DamagedRevisionError, HubError
from hf_lifealign.hub.metric_space import metric_space_files, push_metric, stand_alone_script
from hf_lifealign.hub.whole_commit import commit_files
from hf_lifealign.metrics import METRICS

TOKEN = "hf_test_write_me"


@pytest.fixture
def hub(monkeypatch):
    """A Hub, and a huggingface_hub in this process that may speak to it."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with HubServer() as server:
        yield server


@pytest.fixture
def api(hub):
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.url, token=TOKEN)


@pytest.fixture
def waits(monkeypatch):
    """The waits between attempts, which take no time."""
    slept = []
    monkeypatch.setattr(patience, "time", SimpleNamespace(sleep=slept.append))
    return slept


# The file of mathematics of a metric, and the library that it needs beside evaluate and numpy.
MATHS = {name: ("performance_matrix", []) for name in METRICS} | {
    "hypervolume": ("pareto_front", ["moocore"]),
    "pareto_inner_product": ("pareto_front", []),
    "controllability": ("pareto_front", ["scipy"]),
    "alignment_score": ("alignment_dynamics", []),
    "priming_ratio": ("alignment_dynamics", []),
}


def shipped(name):
    return (Path(hf_lifealign.metric_path(name)) / f"{name}.py").read_text(encoding="utf-8")


# What is published


@pytest.mark.parametrize("name", METRICS)
class TestFiles:
    def test_the_script_is_named_after_the_repository_and_imports_what_lies_beside_it(self, name, tmp_path):
        from evaluate.loading import get_imports

        files = metric_space_files(name, "me/my-score")
        maths, libraries = MATHS[name]
        assert set(files) == {"my-score.py", f"{maths}.py", "README.md", "app.py", "requirements.txt"}
        (tmp_path / "script.py").write_bytes(files["my-score.py"])
        assert get_imports(str(tmp_path / "script.py")) == [
            ("library", "typing", "typing", None),
            ("library", "datasets", "datasets", None),
            ("library", "evaluate", "evaluate", None),
            *(("library", library, library, None) for library in libraries),
            ("internal", maths, maths, None),
        ]

    def test_nothing_but_the_import_and_the_examples_is_changed(self, name):
        files = metric_space_files(name, f"me/{name}")
        folder = Path(hf_lifealign.metric_path(name)).parent
        maths = f"{MATHS[name][0]}.py"
        assert files[maths] == (folder / maths).read_bytes()
        before, after = shipped(name).splitlines(), files[f"{name}.py"].decode().splitlines()
        changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
        assert [new.split()[0] for _, new in changed] == ["from", ">>>", ">>>"]
        assert all("hf_lifealign" in old and "hf_lifealign" not in new for old, new in changed)

    def test_no_file_that_runs_needs_this_package(self, name):
        files = metric_space_files(name, "me/score")
        maths, libraries = MATHS[name]
        for path in ("score.py", f"{maths}.py", "app.py"):
            assert b"hf_lifealign" not in files[path]
            ast.parse(files[path])
        wanted = files["requirements.txt"].decode().splitlines()
        assert [line.split(">=")[0] for line in wanted] == sorted(["evaluate", "numpy", *libraries])
        project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert set(wanted) <= set(project["dependencies"])

    def test_the_card_is_the_metrics_and_names_the_space(self, name):
        files = metric_space_files(name, "me/score")
        own = (Path(hf_lifealign.metric_path(name)) / "README.md").read_text(encoding="utf-8")
        (front, body), (own_front, own_body) = (
            re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, flags=re.DOTALL).groups()
            for text in (files["README.md"].decode(), own)
        )
        fields, own_fields = yaml.safe_load(front), yaml.safe_load(own_front)
        assert fields.pop("tags") == [*own_fields.pop("tags"), "hf-lifealign"]
        assert own_fields.items() < fields.items()
        assert fields["hf_lifealign_metric"] == name
        assert (fields["license"], fields["python_version"]) == ("apache-2.0", "3.11")
        assert re.fullmatch(r"\d+\.\d+\.\d+", fields["sdk_version"])
        assert re.findall("^#+ .*$", body, flags=re.MULTILINE) == [
            *re.findall("^#+ .*$", own_body, flags=re.MULTILINE),
            "## About This Space",
        ]
        assert "<namespace>" not in body
        assert "import hf_lifealign" not in body
        assert body.count('evaluate.load("me/score"') == own_body.count("hf_lifealign.load_metric(") + 2
        maths, libraries = MATHS[name]
        assert f"`score.py`, the metric, and\n`{maths}.py`, the mathematics." in body
        needs = ", ".join(["evaluate", "numpy", *libraries])
        assert f"They need {' and '.join(needs.rsplit(', ', 1))}, nothing else." in body


@pytest.mark.parametrize("name", ["BWT", "accuracy", "", None])
def test_an_unknown_metric_is_refused_before_anything_is_asked(name):
    with pytest.raises(ValueError, match="Use one of bwt, forgetting"):
        push_metric(name, "me/bwt", api=SimpleNamespace())


@pytest.mark.parametrize(
    ("repo_id", "wrong"),
    [
        ("bwt", "takes owner/name"),
        ("", "takes owner/name"),
        (None, "takes owner/name"),
        ("me/", "takes owner/name"),
        ("/bwt", "takes owner/name"),
        ("spaces/me/bwt", "takes owner/name"),
        ("me/b wt", "takes owner/name"),
        ("me/-bwt", "takes owner/name"),
        ("me/a--b", "takes owner/name"),
        ("me/bwt.git", "takes owner/name"),
        ("../bwt", "takes owner/name"),
        ("me/" + "b" * 96, "takes owner/name"),
        ("me/bwt.v2", "takes a dot in it for a package"),
        ("me/app", "hide or replace"),
        ("me/Performance_Matrix", "hide or replace"),
        ("me/pareto_front", "hide or replace"),
        ("me/evaluate", "hide or replace"),
        ("me/moocore", "hide or replace"),
        ("me/SciPy", "hide or replace"),
        ("me/statistics", "hide or replace"),
    ],
)
def test_an_id_under_which_the_metric_could_not_be_loaded_is_refused(repo_id, wrong):
    with pytest.raises(ValueError, match=rf"You set repo_id with .*{wrong}.*Set, say, repo_id="):
        push_metric("bwt", repo_id, api=SimpleNamespace())


class TestRewriting:
    IMPORT = "from hf_lifealign.metrics.performance_matrix import "

    @pytest.mark.parametrize(
        ("old", "new", "text"),
        [
            (IMPORT, "from hf_lifealign.metrics.matrix import ", "import its mathematics in one line"),
            (IMPORT, IMPORT + "(\n    MatrixInput as M, ", "import its mathematics in one line"),
            ("import datasets\n", "import datasets\n" + IMPORT + "forgetting\n", "import its mathematics in one line"),
            ("import datasets\n", "import datasets\nfrom hf_lifealign import Task\n", "would still name this package"),
            ("import datasets\n", "import datasets\nimport hf_lifealign.metrics\n", "would still name this package"),
            ("import datasets\n", "import datasets\nimport torch\n", "imports torch, which is not there"),
            ("import datasets\n", "import datasets\nimport moocore\n", "imports moocore, which is not there"),
            ("import datasets\n", "import datasets\nfrom .other import x\n", "imports .other, which is not there"),
            (
                "import datasets\n",
                "import datasets\nfrom .pareto_front import x\n",
                "imports .pareto_front, which is not",
            ),
            ("return {", "import scipy.stats\n        return {", "imports scipy.stats, which is not there"),
            (">>> import hf_lifealign\n", "", "lacks the example"),
            ('load_metric("bwt")', 'load_metric("BWT")', "lacks the example"),
        ],
    )
    def test_a_script_that_would_not_stand_alone_is_refused(self, old, new, text):
        source = shipped("bwt")
        assert source.count(old) == 1
        source = source.replace(old, new)
        if "(\n" in new:
            source = source.replace("backward_transfer_per_task\n\n", "backward_transfer_per_task\n)\n\n", 1)
        with pytest.raises(RuntimeError, match=text):
            stand_alone_script(source, "bwt", "me/bwt")


# How it is published


def test_one_commit_and_none_for_the_same_again(hub, api):
    assert push_metric("bwt", "me/bwt", api=api) == f"{hub.url}/spaces/me/bwt"
    space = hub.repo("me/bwt", repo_type="space")
    assert (space.sdk, space.private) == ("gradio", False)
    files = metric_space_files("bwt", "me/bwt")
    assert files.items() <= space.files().items()
    made = len(space.history())
    assert space.history()[-1].title == "Publish the metric bwt"
    push_metric("bwt", "me/bwt", api=api)
    assert len(space.history()) == made
    assert hub.steps.count("commit") == 1


def test_a_private_space_and_a_token_of_its_own(hub, monkeypatch):
    from huggingface_hub import HfApi

    push_metric("bwt", "me/bwt", private=True, token=TOKEN, api=HfApi(endpoint=hub.url, token=False))
    assert hub.repo("me/bwt", repo_type="space").private
    push_metric("bwt", "me/bwt", private=True, token=TOKEN, api=HfApi(endpoint=hub.url, token=False))


def test_private_over_a_public_space_sends_nothing(hub, api):
    api.create_repo("me/bwt", repo_type="space", space_sdk="gradio")
    with pytest.raises(HubError, match=r"You set private=True for me/bwt. It is there already and public"):
        push_metric("bwt", "me/bwt", private=True, api=api)
    assert "commit" not in hub.steps


def test_a_changed_metric_is_one_commit_that_keeps_what_others_added(hub, api):
    push_metric("bwt", "me/bwt", api=api)
    space = hub.repo("me/bwt", repo_type="space")
    commit_elsewhere(api, "me/bwt", {"tests.py": b"assert True\n", "requirements.txt": b"old\n"})
    made = len(space.history())
    push_metric("bwt", "me/bwt", api=api)
    assert len(space.history()) == made + 1
    assert space.files()["tests.py"] == b"assert True\n"
    assert metric_space_files("bwt", "me/bwt").items() <= space.files().items()


def commit_elsewhere(api, repo_id, files):
    from huggingface_hub import CommitOperationAdd

    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    api.create_commit(repo_id, operations, commit_message="another", repo_type="space")


@pytest.mark.parametrize("files", [{"app.py": b"print()\n"}, {"bwt.py": b"", "README.md": b"---\ntitle: BWT\n---\n"}])
def test_somebody_elses_space_is_left_alone(hub, api, files):
    api.create_repo("me/bwt", repo_type="space", space_sdk="gradio")
    commit_elsewhere(api, "me/bwt", files)
    before = hub.repo("me/bwt", repo_type="space").snapshot()
    with pytest.raises(HubError, match=r"You set repo_id with 'me/bwt'.*did not write \(.*\.py\).*Set another repo_id"):
        push_metric("bwt", "me/bwt", api=api)
    assert hub.repo("me/bwt", repo_type="space").snapshot() == before


def test_another_metric_is_not_put_in_its_place(hub, api):
    push_metric("bwt", "me/score", api=api)
    before = hub.repo("me/score", repo_type="space").snapshot()
    with pytest.raises(HubError, match=r"for the metric 'forgetting'\. It holds the metric 'bwt'"):
        push_metric("forgetting", "me/score", api=api)
    assert hub.repo("me/score", repo_type="space").snapshot() == before


def test_a_space_with_a_card_alone_is_new(hub, api):
    api.create_repo("me/bwt", repo_type="space", space_sdk="gradio")
    commit_elsewhere(api, "me/bwt", {"README.md": b"# Mine\n"})
    push_metric("bwt", "me/bwt", api=api)
    assert "bwt.py" in hub.repo("me/bwt", repo_type="space").files()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(step="commit", kind="status", status=412),
        Fault(step="commit", kind="status", status=503),
        Fault(step="commit", kind="status_after", status=500),
        Fault(step="commit", kind="drop_after"),
        Fault(step="refs", kind="refuse", after=1),
        Fault(step="refs", kind="status", status=429, retry_after=7),
    ],
    ids=lambda fault: f"{fault.step}-{fault.kind}-{fault.status}",
)
def test_what_passes_is_tried_again_and_committed_once(hub, api, waits, fault):
    hub.fail(fault)
    assert push_metric("bwt", "me/bwt", api=api) == f"{hub.url}/spaces/me/bwt"
    space = hub.repo("me/bwt", repo_type="space")
    assert fault.fired == 1
    assert len(waits) == 1
    assert fault.retry_after in (None, waits[0])
    assert [commit.title for commit in space.history()].count("Publish the metric bwt") == 1
    assert metric_space_files("bwt", "me/bwt").items() <= space.files().items()


def test_a_commit_that_came_first_is_looked_at_again(hub, api, waits, monkeypatch):
    """Another writer between the reading of the head and the commit: the next attempt sees what it wrote."""
    push_metric("bwt", "me/bwt", api=api)
    commit_elsewhere(api, "me/bwt", {"requirements.txt": b"old\n"})
    real, others = api.create_commit, [{"README.md": b"# Taken over\n"}]

    def create_commit(*args, **kwargs):
        if others:
            from huggingface_hub import CommitOperationAdd

            operations = [CommitOperationAdd(path, data) for path, data in others.pop().items()]
            real("me/bwt", operations, commit_message="first", repo_type="space")
        return real(*args, **kwargs)

    monkeypatch.setattr(api, "create_commit", create_commit)
    with pytest.raises(HubError, match="holds files that this project did not write"):
        push_metric("bwt", "me/bwt", api=api)
    assert hub.repo("me/bwt", repo_type="space").files()["README.md"] == b"# Taken over\n"


def test_it_gives_up_after_five_attempts(hub, api, waits):
    hub.fail(Fault(step="commit", kind="status", status=412, times=None))
    with pytest.raises(HubError, match="changed meanwhile"):
        push_metric("bwt", "me/bwt", api=api)
    assert hub.steps.count("commit") == 5
    assert len(waits) == 4


@pytest.mark.parametrize("token", ["hf_test_read_me", "hf_test_write_you", "hf_test_unknown"])
def test_a_token_that_may_not_write_is_named_at_once(hub, waits, token):
    from huggingface_hub import HfApi

    with pytest.raises(HubError, match=r"Could not .* me/bwt.*\(40[13]\).*write access"):
        push_metric("bwt", "me/bwt", api=HfApi(endpoint=hub.url, token=token))
    assert not waits


def test_no_network_is_said_without_waiting(waits):
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        push_metric("bwt", "me/bwt")
    assert not waits


def test_what_the_hub_does_not_hold_as_sent_is_an_error(hub, api, monkeypatch):
    real = api.create_commit

    def leave_one_out(repo_id, operations, **kwargs):
        return real(repo_id, [each for each in operations if each.path_in_repo != "b.txt"], **kwargs)

    monkeypatch.setattr(api, "create_commit", leave_one_out)
    with pytest.raises(DamagedRevisionError, match=r"b\.txt at me/files@\w{12} is not what was sent"):
        commit_files(api, "me/files", {"a.txt": b"a", "b.txt": b"b"}, "model", "Both")


def test_files_from_disk_and_memory_with_lfs(hub, api, tmp_path):
    (tmp_path / "big.bin").write_bytes(bytes(range(256)) * 50_000)
    files = {"big.bin": tmp_path / "big.bin", "small.txt": b"small\n"}
    first = commit_files(api, "me/files", files, "model", "Files")
    again = commit_files(api, "me/files", files, "model", "Files")
    assert first.changed
    assert not again.changed
    repo = hub.repo("me/files")
    assert first.oid == again.oid == repo.head
    assert (first.url, repo.files()["small.txt"]) == (f"{hub.url}/me/files", b"small\n")
    assert repo.commit_at("main").tree["big.bin"].lfs
    (tmp_path / "big.bin").write_bytes(bytes(range(1, 256)) * 50_000)
    assert commit_files(api, "me/files", files, "model", "Files").changed


# As others load it

LOADER = r"""
import doctest, json, os, re, runpy, sys, types

sys.modules["hf_lifealign"] = None  # importing it is an error from here on
sys.modules["gradio"] = gradio = types.ModuleType("gradio")
gradio.Error = type("Error", (Exception,), {})
gradio.Textbox = lambda **kwargs: kwargs
gradio.JSON = lambda **kwargs: kwargs
gradio.Interface = lambda **kwargs: kwargs

import evaluate
from huggingface_hub import snapshot_download

print(json.dumps(evaluate.load("me/bwt").compute(predictions=[[0.75], [0.5, 1.0]])))
for repo_id in sys.argv[1:]:
    metric = evaluate.load(repo_id)
    folder = snapshot_download(repo_id, repo_type="space", local_dir=os.path.join("pages", repo_id))
    card = open(os.path.join(folder, "README.md"), encoding="utf-8").read()
    ran = 0
    for block in [*re.findall(r"```python\n(>>>.*?)```", card, flags=re.DOTALL), metric.inputs_description]:
        test = doctest.DocTestParser().get_doctest(block, {}, repo_id, None, 0)
        ran += len(test.examples)
        assert test.examples
        assert doctest.DocTestRunner().run(test).failed == 0
    page = runpy.run_path(os.path.join(folder, "app.py"))
    shown = page["page"]
    result = page["compute"](shown["inputs"]["value"])
    for wrong in ("[1]", "not JSON", '{"predictions": [[1.0], [2.0]]}', '{"matrix": [[1.0]]}'):
        try:
            page["compute"](wrong)
        except gradio.Error as error:
            assert str(error)
        else:
            raise AssertionError(wrong)
    print(json.dumps({"name": metric.name, "title": shown["title"], "ran": ran, "result": result}))
    assert shown["article"].lstrip().startswith("# Metric Card for")
assert not [name for name in sys.modules if name.startswith("hf_lifealign.")]
"""


def test_evaluate_loads_every_metric_without_this_package(hub, api, tmp_path):
    repos = {"bwt": "me/bwt", **{name: f"me/my-{name}" for name in METRICS if name != "bwt"}}
    for name, repo_id in repos.items():
        push_metric(name, repo_id, api=api)
    (tmp_path / "elsewhere").mkdir()
    environment = client_environment(hub, tmp_path / "home", token=None)
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    # evaluate would count the load at an address outside this machine.
    environment["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"
    done = subprocess.run(
        [sys.executable, "-P", "-c", LOADER, *repos.values()],
        cwd=tmp_path / "elsewhere",
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, *each = [json.loads(line) for line in done.stdout.splitlines()]
    assert first == {"bwt": -0.25, "bwt_per_task": [-0.25]}
    assert len(each) == len(METRICS)
    for name, seen in zip(repos, each, strict=True):
        assert seen["title"]
        assert seen["ran"] >= 9
        assert set(seen["result"]) >= {name}


WITHOUT = r"""
import json, sys

for name in ("hf_lifealign", *json.loads(sys.argv[2])):
    sys.modules[name] = None  # importing it is an error from here on
import evaluate

arguments = {"predictions": [[1.0, 0.0], [0.0, 2.0]]}
if "hypervolume" in sys.argv[1]:
    arguments["reference_point"] = [-1.0, -1.0]
else:
    arguments["references"] = [[1.0, 0.0], [0.0, 1.0]]
try:
    print(json.dumps(evaluate.load(sys.argv[1]).compute(**arguments)))
except ImportError as error:
    print("ImportError:", error)
"""


@pytest.mark.parametrize(
    "name",
    [
        name if name == "hypervolume" else pytest.param(name, marks=pytest.mark.slow)
        for name, (maths, _) in MATHS.items()
        if maths == "pareto_front"
    ],
)
def test_a_metric_needs_no_library_but_its_own_and_names_it_where_it_is_missing(name, tmp_path):
    folder = tmp_path / f"my-{name}"
    folder.mkdir()
    for path, content in metric_space_files(name, f"me/my-{name}").items():
        (folder / path).write_bytes(content)
    own = MATHS[name][1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}

    def run(*missing):
        command = [sys.executable, "-P", "-c", WITHOUT, str(folder), json.dumps(missing)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout.splitlines()[-1]

    assert name in json.loads(run(*{"moocore", "scipy"}.difference(own)))
    for library in own:
        assert re.match(rf"ImportError: To be able to use .*{library}.* using 'pip install {library}'", run(library))
