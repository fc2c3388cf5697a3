"""The folder of a run: where everything lies."""

from pathlib import Path


class RunDirectory:
    """Names of everything in a run's folder.

    ```
    state.json  matrix.json  matrix.png  curves.png  report.md  samples.json
    adapters/01-<task>/        the state after each task, as it can be published
    origin/                    the revision from which the run went on, if it did not begin with the base
    outbox/                    what is still to be published, and what was
    logs/01-<task>-<phase>.json
    evaluation/after-01-<task>/<task>.json
    reference/<digest>.jsonl   replay/01-<task>.json   (and a folder for any other strategy)
    work/                      checkpoints and phase snapshots of the task in progress
    ```

    Args:
        root (`str` or `Path`): the folder.
        tasks (`list[str]`): all tasks of the life in order, those before the run included.
    """

    def __init__(self, root: str | Path, tasks: list[str]) -> None:
        self.root = Path(root)
        self.tasks = tasks

    def label(self, task: str) -> str:
        """`01-<task>`: position and name of a task."""
        return f"{self.tasks.index(task) + 1:02d}-{task}"

    @property
    def state(self) -> Path:
        return self.root / "state.json"

    @property
    def matrix(self) -> Path:
        return self.root / "matrix.json"

    @property
    def origin(self) -> Path:
        return self.root / "origin"

    def adapter(self, task: str) -> Path:
        """Folder of the adapter as it stands after `task`."""
        return self.root / "adapters" / self.label(task)

    def work(self, task: str, phase: str) -> Path:
        """Output folder of the trainer of a phase."""
        return self.root / "work" / self.label(task) / phase

    def snapshot(self, task: str, phase: str) -> Path:
        """Folder of the adapter as it stands after a phase; it is there only when the phase is over."""
        return self.root / "work" / self.label(task) / f"after-{phase}"

    def logs(self, task: str, phase: str) -> Path:
        return self.root / "logs" / f"{self.label(task)}-{phase}.json"

    def evaluation(self, after: str | None, task: str) -> Path:
        """Result on `task` after training through `after` (`None`: the untouched base)."""
        stage = "base" if after is None else f"after-{self.label(after)}"
        return self.root / "evaluation" / stage / f"{task}.json"

    @property
    def references(self) -> Path:
        """Folder of reference log-probabilities, by content."""
        return self.root / "reference"
