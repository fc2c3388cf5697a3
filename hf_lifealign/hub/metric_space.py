"""Publishes a shipped metric as a Space: `evaluate.load("me/bwt")` then works where this package is not installed."""

import ast
import doctest
import json
import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lifealign import __version__
from hf_lifealign._resources import resource_path
from hf_lifealign.hub.whole_commit import check_owner_and_name, commit_files, only_over
from hf_lifealign.metrics import metric_path

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# The files of mathematics, and what a metric may need for each beside evaluate and numpy: the library and its range. A
# script imports those that it does need, so that evaluate says what to install; only these go to requirements.txt.
_MATHS: dict[str, dict[str, str]] = {
    "performance_matrix": {},
    "pareto_front": {"moocore": ">=0.3.2,<0.4", "scipy": ">=1.14,<2"},
    "alignment_dynamics": {},
}
_EVERY_METRIC = {"evaluate": ">=0.4.6,<0.5", "numpy": ">=2,<3"}
_ROOM = "hf_lifealign.metrics"
_MARKER = "hf_lifealign_metric"
_LIBRARIES = {"datasets", "gradio", *_EVERY_METRIC, *(library for needs in _MATHS.values() for library in needs)}
# evaluate imports the script as a module of the repository's name, and the page of the Space lies beside it.
_TAKEN = {"app", *_MATHS, *_LIBRARIES, "huggingface_hub", "pandas", "pyarrow"} | {
    name.lower() for name in sys.stdlib_module_names
}
# evaluate's own launch_gradio_widget calls gr.inputs, which gradio took out in its version 4, and gradio 3 wants a
# numpy that today's pyarrow refuses. So the page is ours; the numbers are those it was tried with.
_GRADIO = "6.31.0"
_PYTHON = "3.11"

_APP = '''"""The page of this Space: the metric, computed from arguments that a visitor writes."""

import json
from pathlib import Path

import evaluate
import gradio as gr

HERE = Path(__file__).parent
metric = evaluate.load(str(HERE / {script}), keep_in_memory=True)


def compute(text):
    try:
        arguments = json.loads(text)
        if not isinstance(arguments, dict):
            raise ValueError("Write one JSON object, with an argument of the metric under each key.")
        return metric.compute(**arguments)
    except (TypeError, ValueError) as error:
        raise gr.Error(str(error)) from error


page = gr.Interface(
    fn=compute,
    inputs=gr.Textbox(
        value={example},
        label="Arguments, as JSON",
        lines=8,
    ),
    outputs=gr.JSON(label="Result"),
    title={title},
    description=metric.description,
    article=(HERE / "README.md").read_text(encoding="utf-8").split("---\\n", 2)[2],
    flagging_mode="never",
)

if __name__ == "__main__":
    page.launch()
'''


def push_metric(
    name: str, repo_id: str, *, token: str | None = None, private: bool = False, api: "HfApi | None" = None
) -> str:
    """Publishes a shipped metric as a Space: one commit, and none where the Space holds the same already.

    Anyone can then write `evaluate.load(repo_id)`, with nothing installed but what the Space's requirements.txt names.

    Args:
        name (`str`): one of [`METRICS`].
        repo_id (`str`): `owner/name` of the Space; made if it is not there. `evaluate` imports the metric under that
            name, so it may hold no dot, and be no module's.
        token (`str`, *optional*): access token; that of `hf auth login` or `HF_TOKEN` by default.
        private (`bool`, *optional*, defaults to `False`): make the Space private.
        api (`HfApi`, *optional*): client to use.

    Returns:
        `str`: address of the Space.

    Raises:
        ValueError: if no metric of that name is shipped, or `repo_id` cannot be a metric's.
        HubError: if the Space holds something else, or the Hub refuses or does not answer.
    """
    files = metric_space_files(name, repo_id)
    done = commit_files(
        api,
        repo_id,
        files,
        "space",
        f"Publish the metric {name}",
        token=token,
        private=private,
        space_sdk="gradio",
        check=only_over(_MARKER, name, "metric"),
    )
    return done.url


def metric_space_files(name: str, repo_id: str) -> dict[str, bytes]:
    """The files of a metric's Space by their path in it: the script, its mathematics, the card, the page.

    Args:
        name (`str`): one of [`METRICS`].
        repo_id (`str`): `owner/name` of the Space, which its files name.

    Raises:
        ValueError: if no metric of that name is shipped, or `repo_id` cannot be a metric's.
        RuntimeError: if the shipped script or card is not as it has to be to stand alone.
    """
    folder = Path(metric_path(name))
    script_name = f"{_check_module_name(repo_id)}.py"
    shipped = (folder / f"{name}.py").read_text(encoding="utf-8")
    maths_name = _import_of_maths(shipped, name)[0]
    script = stand_alone_script(shipped, name, repo_id)
    maths = (folder.parent / f"{maths_name}.py").read_text(encoding="utf-8")
    _check_imports(maths, ("numpy", *_MATHS[maths_name]), f"{maths_name}.py")
    needs = _EVERY_METRIC | {each: bound for each, bound in _MATHS[maths_name].items() if _imports(script, each)}
    card = (folder / "README.md").read_text(encoding="utf-8")
    names = {"name": name, "repo_id": repo_id, "script": script_name, "maths": f"{maths_name}.py", "needs": list(needs)}
    title, text = _space_card(card, names)
    app = _APP.format(script=json.dumps(script_name), example=repr(_example_arguments(script)), title=json.dumps(title))
    texts = {
        script_name: script,
        f"{maths_name}.py": maths,
        "README.md": text,
        "app.py": app,
        "requirements.txt": "".join(f"{library}{needs[library]}\n" for library in sorted(needs)),
    }
    return {path: content.encode() for path, content in texts.items()}


def stand_alone_script(source: str, name: str, repo_id: str) -> str:
    """A metric's script that imports its mathematics from beside it, and whose examples load it from the Hub.

    Args:
        source (`str`): the shipped script.
        name (`str`): the metric.
        repo_id (`str`): where the script will lie.

    Raises:
        RuntimeError: if the one import of the mathematics is not found, or the script would need this package or any
            other but evaluate, datasets and the libraries of that mathematics.
    """
    maths, line = _import_of_maths(source, name)
    lines = source.splitlines(keepends=True)
    lines[line] = lines[line].replace(f"from {_ROOM}.{maths} import ", f"from .{maths} import ", 1)
    script = _with_hub_examples("".join(lines), name, repo_id, f"script of the metric {name}")
    _check_imports(script, ("datasets", "evaluate", *_MATHS[maths], f".{maths}"), f"{name}.py")
    return script


def _import_of_maths(source: str, name: str) -> tuple[str, int]:
    """Which file of mathematics a metric's script imports, and the index of the line where it does."""
    modules = {f"{_ROOM}.{maths}": maths for maths in _MATHS}
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom) and node.module in modules]
    lines = source.splitlines()
    # One line, since evaluate finds what a script imports line by line.
    if len(nodes) == 1 and nodes[0].lineno == nodes[0].end_lineno:
        module, line = str(nodes[0].module), nodes[0].lineno - 1
        if lines[line].startswith(f"from {module} import "):
            return modules[module], line
    raise RuntimeError(
        f"To be published, the script of the metric {name} has to import its mathematics in one line, "
        f"{' or '.join(f'`from {module} import ...`' for module in modules)}. Write that line, or install hf_lifealign "
        "again."
    )


def _imports(source: str, library: str) -> bool:
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.Import)]
    return any(alias.name.split(".")[0] == library for node in nodes for alias in node.names)


def _with_hub_examples(text: str, name: str, repo_id: str, where: str) -> str:
    """The text with its examples loading the metric from the Hub in the place of this package."""
    for shipped, published in (
        (">>> import hf_lifealign\n", ">>> import evaluate\n"),
        (f'hf_lifealign.load_metric("{name}")', f'evaluate.load("{repo_id}")'),
    ):
        if shipped not in text:
            raise RuntimeError(f"The {where} lacks the example {shipped.strip()!r}. Install hf_lifealign again.")
        text = text.replace(shipped, published)
    if "hf_lifealign" in text:
        line = next(line for line in text.splitlines() if "hf_lifealign" in line)
        raise RuntimeError(
            f"The {where} would still name this package where it may not be installed: {line.strip()!r}. Take that out."
        )
    return text


def _check_imports(source: str, allowed: Collection[str], where: str) -> None:
    """Refuses a script that imports something beside the standard library and what is allowed (`.name`: beside it)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""] if not node.level else [f"{'.' * node.level}{node.module}"]
        else:
            continue
        for module in modules:
            if module.split(".")[0] in {*sys.stdlib_module_names, *allowed} or module in allowed:
                continue
            raise RuntimeError(
                f"{where} imports {module}, which is not there for those who load it from the Hub. It may import the "
                f"standard library and {', '.join(allowed)}."
            )


def _check_module_name(repo_id: str) -> str:
    """The repository's name, if `evaluate` can import a script of that name."""
    owner, name = check_owner_and_name(repo_id)
    if "." in repo_id:
        wrong = "evaluate imports the script by the repository's id, and takes a dot in it for a package."
    elif name.lower() in _TAKEN:
        wrong = f"The script would be {name}.py, and hide or replace a module that it needs."
    else:
        return name
    raise ValueError(f"You set repo_id with {repo_id!r} for a metric. {wrong} Set, say, repo_id='{owner}/my_metric'.")


def _space_card(card: str, names: dict[str, Any]) -> tuple[str, str]:
    """Title and text of the Space's card, from the metric's own and what the Space's parts are called."""
    import yaml
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    name, repo_id = names["name"], names["repo_id"]
    where = f"card of the metric {name}"
    match = re.fullmatch(r"---\n(.*?)^---\n(.*)", card, flags=re.DOTALL | re.MULTILINE)
    local_hint = f'From the Hub it is `evaluate.load("<namespace>/{name}")`. '
    if match is None or match[2].count(local_hint) != 1:
        raise RuntimeError(f"The {where} lacks its front matter, or {local_hint!r}. Install hf_lifealign again.")
    fields: dict[str, Any] = yaml.safe_load(match[1])
    body = match[2].replace(local_hint, "")
    fields |= {"sdk_version": _GRADIO, "python_version": _PYTHON, "license": "apache-2.0"}
    fields |= {"tags": [*fields["tags"], "hf-lifealign"], _MARKER: name}
    environment = SandboxedEnvironment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    template = environment.from_string(resource_path("hub_cards", "metric_card.md.jinja").read_text(encoding="utf-8"))
    text = template.render(
        front_matter=yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=110).rstrip(),
        body=_with_hub_examples(body, name, repo_id, where).strip(),
        version=__version__,
        **names,
    )
    return str(fields["title"]), text


def _example_arguments(script: str) -> str:
    """The arguments of the first example in a script's docstrings, as JSON, to fill the page with."""
    texts = [node.value for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Constant)]
    examples = [text for text in texts if isinstance(text, str) and ">>> " in text]
    for example in [part for text in examples for part in doctest.DocTestParser().get_examples(text)]:
        for node in ast.walk(ast.parse(example.source)):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "compute":
                return json.dumps({str(word.arg): ast.literal_eval(word.value) for word in node.keywords})
    raise RuntimeError("The script shows no example of `compute`. Install hf_lifealign again.")
