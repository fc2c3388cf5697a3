"""A gate that tells by its prompt to which task a question belongs, and that learns a task without the earlier rows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_lifealign._files import replacing

Array = NDArray[np.float64]
# name of the strategy and of its folder, and what a gate's file tells beside the gate
FOLDER, LEAN, DTYPE = "routed_memory", "lean", "dtype"
_FORMAT, _KEY = "lifealign-gate-1", "gate"


@dataclass(frozen=True)
class Gate:
    r"""Ridge regression of tasks on prompt features, from sums alone.

    With ``m_t`` the mean feature of a task's prompts and ``S_t`` the mean of ``x x^T`` over them, the weights are
    ``W = (C + ridge I)^{-1} D`` in standardised features: ``C`` their covariance with each task counted the same, ``D``
    the covariance of features and tasks. Both follow from the ``m_t`` and from the sum of the ``S_t``, to which a task
    adds its own: the gate after a task is exactly the one that all prompts together would give, and no prompt is kept
    (as in analytic class-incremental learning, arXiv 2205.14922).

    Args:
        tasks (`tuple[str, ...]`): names, in the order in which they were added.
        means (`numpy.ndarray` of shape `(tasks, features)`).
        second (`numpy.ndarray` of shape `(features, features)`): sum over tasks of the mean of ``x x^T``.
        ridge (`float`): in units of the features' variance, above 0.
    """

    tasks: tuple[str, ...]
    means: Array
    second: Array
    ridge: float = 1.0

    @classmethod
    def empty(cls, features: int, ridge: float = 1.0) -> "Gate":
        """A gate without tasks."""
        return cls((), np.zeros((0, features)), np.zeros((features, features)), ridge)

    def added(self, task: str, features: Array) -> "Gate":
        """The gate with one more task.

        Args:
            task (`str`): its name.
            features (`numpy.ndarray` of shape `(prompts, features)`): of its prompts, at least one.

        Raises:
            ValueError: if the gate has the task already, or the features are others than it knows.
        """
        x = np.asarray(features, dtype=np.float64)
        if task in self.tasks:
            raise ValueError(f"The gate knows the task {task!r} already.")
        if x.ndim != 2 or not len(x) or x.shape[1] != self.means.shape[1]:
            raise ValueError(
                f"The gate takes features of shape (prompts, {self.means.shape[1]}), of at least one prompt, and was "
                f"given {x.shape}. They are of another base."
            )
        return replace(
            self,
            tasks=(*self.tasks, task),
            means=np.vstack([self.means, x.mean(axis=0)]),
            second=self.second + x.T @ x / len(x),
        )

    def scores(self, features: Array) -> Array:
        """How much a prompt looks like one of each task; the largest is where it belongs.

        Args:
            features (`numpy.ndarray` of shape `(prompts, features)`).

        Returns:
            `numpy.ndarray` of shape `(prompts, tasks)`; each row sums to 1.
        """
        count = len(self.tasks)
        if not count:
            raise ValueError("The gate knows no task yet.")
        centre = self.means.mean(axis=0)
        covariance = self.second / count - np.outer(centre, centre)
        scale = np.sqrt(np.maximum(np.diagonal(covariance), 0))
        # what never varies tells nothing
        scale = np.where(scale > 1e-6 * max(float(scale.max()), 1e-300), scale, np.inf)
        standard = covariance / np.outer(scale, scale)
        shared = (self.means - centre).T / scale[:, None] / count
        weights = np.linalg.solve(standard + self.ridge * np.eye(len(standard)), shared)
        return np.asarray((np.asarray(features, dtype=np.float64) - centre) / scale @ weights + 1 / count)

    def route(self, features: Array) -> list[str]:
        """The task to which each prompt belongs; the earlier one where scores are the same."""
        return [self.tasks[i] for i in self.scores(features).argmax(axis=1)]

    def save(self, path: Path, **told: str) -> None:
        """Writes the gate wholly or not at all, as safetensors.

        Args:
            path (`Path`): the file.
            told (`str`): kept beside it.
        """
        tensors = {"means": torch.from_numpy(self.means.copy()), "second": torch.from_numpy(self.second.copy())}
        # one entry: the order of several is not the same each time
        content = {"format": _FORMAT, "tasks": self.tasks, "ridge": self.ridge, "told": told}
        with replacing(path) as partial:
            save_file(tensors, partial, {_KEY: json.dumps(content, sort_keys=True)})

    @classmethod
    def load(cls, path: Path) -> tuple["Gate", Mapping[str, str]]:
        """What [`Gate.save`] wrote, and what was told beside it.

        Raises:
            ValueError: if the file is not a gate, or is damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                content: dict[str, Any] = json.loads((file.metadata() or {})[_KEY])
                found: dict[str, Any] = {name: file.get_tensor(name).double().numpy() for name in file.keys()}  # noqa: SIM118
            if content.get("format") != _FORMAT:
                raise ValueError("it has another format")
            gate = cls(tuple(content["tasks"]), found["means"], found["second"], float(content["ridge"]))
            if gate.means.shape[0] != len(gate.tasks) or gate.second.shape != (gate.means.shape[1],) * 2:
                raise ValueError("its tensors do not fit each other")
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise ValueError(f"{path} is not a gate that can be read: {error}. Take another revision.") from error
        return gate, content["told"]


def view_weights(tasks: Sequence[str], own: str, lean: float) -> dict[str, float]:
    """Weights of the tasks' updates in the view that answers one task's prompts: ``(1 - lean)`` of its own update, and
    ``lean`` of the mean of all. They sum to 1.

    Args:
        tasks (`Sequence[str]`): all of them.
        own (`str`): the one whose view it is.
        lean (`float`): in [0, 1]; 0 is the task's own update alone, 1 the same mean for every task.
    """
    return {task: lean / len(tasks) + (1 - lean) * (task == own) for task in tasks}
