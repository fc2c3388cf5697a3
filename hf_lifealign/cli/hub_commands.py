"""What the sub-commands of `lifealign` for the Hub do, and their arguments."""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_lifealign.stream import Task

_PUSH = """\
Publish the finished tasks of a run: one commit and one tag each in one repository, main at the newest. What is there
already is not sent again, so the command can be repeated at any time. Without REPO it goes where it went before.
"""

_PUSH_EPILOG = """\
examples:
  lifealign push runs/assistant me/assistant-lifelong
  lifealign push runs/assistant                 # what is still missing
  lifealign push runs/assistant me/open --push-replay rows --public --license apache-2.0
"""

_LOG = "Show what was published in a repository: tasks, dates, measures, sizes, and from where each went on."

_DIFF = """\
Compare two revisions of a repository: the norm of each module's update, how much both updates have in common, and the
measures before and after.
"""

_ROLLBACK = """\
Restore an earlier revision: a new commit on main. Nothing that was published is lost, and every tag stays where it is.
"""

_VERIFY = """\
Fetch revisions and compare the hash of every file with the lineage: all of them, or the one that is named. The exit
code is 1 if one is damaged.
"""

_METRIC = """\
Publish a metric as a Space, so that evaluate.load("owner/name") finds it, also where hf_lifealign is not installed.
"""

_DATASET = """\
Publish the rows of a task of a recipe as a preference dataset with a card; or the pairs in the folder of a run of
`lifealign self-align`. The card of what SELF-ALIGN made tells its principles, settings and counts. Look at the rows
first: they become readable for others.
"""

_DATASET_EPILOG = """\
examples:
  lifealign push-dataset my.yaml harmless me/harmless-pairs --license cc-by-4.0
  lifealign push-dataset runs/self-align me/by-principles --private
"""


def add_parsers(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the commands; `add(name, short, text, epilog)` makes a parser."""
    push = add("push", "publish the tasks of a run", _PUSH, _PUSH_EPILOG)
    push.add_argument("run", metavar="RUN", help="folder of a run, finished or in progress")
    push.add_argument("repo", metavar="REPO", nargs="?", help="repository owner/name (default: that of the last push)")
    push.add_argument(
        "--push-replay",
        choices=("none", "ids", "rows"),
        help="what is published of the rows kept for replay (default: none, or as in the last push)",
    )
    _add_visibility(push)
    push.add_argument("--license", metavar="ID", help="licence of the adapter, for its card")
    push.add_argument("--attempts", type=int, default=5, metavar="N", help="tries of what may succeed later")
    push.add_argument("--background", action="store_true", help=argparse.SUPPRESS)
    log = add("log", "show what was published in a repository", _LOG)
    log.add_argument("repo", metavar="REPO", help="repository owner/name")
    log.add_argument("--json", action="store_true", help="print JSON")
    diff = add("diff", "compare two revisions", _DIFF)
    diff.add_argument("repo", metavar="REPO", help="repository owner/name")
    diff.add_argument("first", metavar="REV1", help="tag, branch or commit")
    diff.add_argument("second", metavar="REV2", help="tag, branch or commit")
    diff.add_argument("--json", action="store_true", help="print JSON")
    back = add("rollback", "restore an earlier revision", _ROLLBACK)
    back.add_argument("repo", metavar="REPO", help="repository owner/name")
    back.add_argument("revision", metavar="REV", help="tag or commit to restore")
    back.add_argument("--license", metavar="ID", help="licence of the adapter, for its card")
    check = add("verify", "hash everything that was published again", _VERIFY)
    check.add_argument("repo", metavar="REPO[@REV]", help="repository, or one revision of it")
    check.add_argument("--json", action="store_true", help="print JSON")
    metric = add("push-metric", "publish a metric as a Space", _METRIC)
    metric.add_argument("name", metavar="NAME", help="one of `lifealign metrics`")
    metric.add_argument("repo", metavar="REPO", help="Space owner/name")
    _add_visibility(metric)
    data = add("push-dataset", "publish the rows of a task", _DATASET, _DATASET_EPILOG)
    data.add_argument("recipe", metavar="RECIPE.yaml|RUN", help="the recipe, or the folder of a run of self-align")
    data.add_argument(
        "task", metavar="TASK", nargs="?", help="name of the task in the recipe (of a run default: that of REPO)"
    )
    data.add_argument("repo", metavar="REPO", help="dataset repository owner/name")
    data.add_argument("--license", metavar="ID", help="licence of the rows (default: that of the task)")
    _add_visibility(data)


def _add_visibility(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    group.add_argument("--public", action="store_false", dest="private", help="make a new repository public")


def _remote(repo: str) -> Any:
    """The repository."""
    from hf_lifealign.hub.remote import Remote

    return Remote(repo)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def push(args: argparse.Namespace) -> int:
    """`lifealign push`."""
    from pathlib import Path

    from hf_lifealign.hub.outbox import Outbox

    outbox = Outbox(Path(args.run))
    try:
        return _push(args, Path(args.run), outbox)
    except Exception as error:
        if args.background:
            # whoever started this process reads the outbox
            outbox.excuse(str(error) or type(error).__name__)
        raise


def _push(args: argparse.Namespace, root: Any, outbox: Any) -> int:
    from hf_lifealign.hub.bundle import finished_tasks
    from hf_lifealign.hub.publish import PushOptions, push_run

    if args.background and hasattr(os, "nice"):
        os.nice(10)  # training goes first
    tasks = finished_tasks(root)
    target = outbox.target
    repo = args.repo or target.get("repo_id")
    if not repo:
        raise ValueError(f"The run in {root} was not pushed before. Name the repository: lifealign push {root} me/name")
    if not tasks:
        raise ValueError(f"The run in {root} has not finished a task yet, so there is nothing to publish.")

    def chosen(name: str, default: Any) -> Any:
        given = getattr(args, name)
        return given if given is not None else target.get(name, default)

    options = PushOptions(
        private=chosen("private", None),
        push_replay=chosen("push_replay", "none"),
        license=chosen("license", None),
        attempts=max(args.attempts, 1),
        tell=_tell,
    )
    remote = _remote(repo)
    for item in push_run(root, remote, options):
        print(f"{item.label}  {item.tag}  {item.commit[:12]}  {'sent' if item.fresh else 'there already'}")
    print(f"{remote.api.endpoint}/{remote.repo_id}")
    return 0


def log(args: argparse.Namespace) -> int:
    """`lifealign log`."""
    from hf_lifealign.hub.history import log_text, read_log

    remote = _remote(args.repo)
    print(json.dumps(read_log(remote), indent=2) if args.json else log_text(remote))
    return 0


def diff(args: argparse.Namespace) -> int:
    """`lifealign diff`."""
    from hf_lifealign.hub.diff import compare_revisions, diff_text
    from hf_lifealign.hub.fetch import fetch_revision

    remote = _remote(args.repo)
    folders = [fetch_revision(remote.repo_id, rev, api=remote.api).folder for rev in (args.first, args.second)]
    found = compare_revisions(*folders)
    print(json.dumps(_finite(found), indent=2) if args.json else diff_text(args.first, args.second, found))
    return 0


def rollback(args: argparse.Namespace) -> int:
    """`lifealign rollback`."""
    from hf_lifealign.hub.history import rollback as roll
    from hf_lifealign.hub.publish import PushOptions

    remote = _remote(args.repo)
    done = roll(remote, args.revision, PushOptions(license=args.license, tell=_tell))
    state = f"is now at {done.tag}" if done.fresh else f"was at {done.tag} already"
    print(f"main of {remote.repo_id} {state} ({done.commit[:12]}).")
    return 0


def verify(args: argparse.Namespace) -> int:
    """`lifealign verify`."""
    from hf_lifealign.hub.fetch import split_revision
    from hf_lifealign.hub.history import verify as check
    from hf_lifealign.hub.history import verify_text

    repo, revision = split_revision(args.repo)
    remote = _remote(repo)
    found = check(remote, revision)
    print(json.dumps([item.__dict__ for item in found], indent=2) if args.json else verify_text(remote.repo_id, found))
    return int(any(item.fault for item in found))


def push_metric(args: argparse.Namespace) -> int:
    """`lifealign push-metric`."""
    from hf_lifealign.hub.metric_space import push_metric as publish

    remote = _remote(args.repo)
    print(publish(args.name, remote.repo_id, private=bool(args.private), api=remote.api))
    print(f'\nLoad it with evaluate.load("{remote.repo_id}").')
    return 0


def push_dataset(args: argparse.Namespace) -> int:
    """`lifealign push-dataset`."""
    from hf_lifealign.hub.dataset_repo import push_task_dataset

    remote = _remote(args.repo)
    task = _task_of_run(args, remote.repo_id) if os.path.isdir(args.recipe) else _task_of_recipe(args)
    licence = args.license or task.license
    print(push_task_dataset(task, remote.repo_id, license=licence, private=bool(args.private), api=remote.api))
    return 0


def _task_of_recipe(args: argparse.Namespace) -> "Task":
    from hf_lifealign.lifelong.recipe import find_recipe, read_recipe
    from hf_lifealign.stream import TaskStream

    stream = TaskStream.from_config(read_recipe(args.recipe)["tasks"], find_recipe(args.recipe).resolve().parent)
    if args.task not in stream.names:
        given = "no task" if args.task is None else f"the task {args.task!r}"
        raise ValueError(f"You gave {given}. The recipe has {', '.join(stream.names)}.")
    return stream[args.task]


def _task_of_run(args: argparse.Namespace, repo_id: str) -> "Task":
    """The pairs of a run of SELF-ALIGN as a task, which is called as the dataset is: a folder's name is private."""
    from hf_lifealign.stream import TaskStream

    name = args.task or repo_id.split("/")[-1]
    return TaskStream.from_config([{"name": name, "self_align": os.path.abspath(args.recipe)}])[0]


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "push": push,
    "log": log,
    "diff": diff,
    "rollback": rollback,
    "verify": verify,
    "push-metric": push_metric,
    "push-dataset": push_dataset,
}
