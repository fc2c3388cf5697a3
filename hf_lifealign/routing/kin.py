"""What earlier tasks are worth to a later one: where it starts, and which updates a view leans on."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# By task, what it took over of each earlier one when it began: weights in [0, 1], which sum to 1, or are all 0.
Starts = Mapping[str, Mapping[str, float]]


def start_weights(margins: Array) -> Array:
    r"""Of which earlier updates' mean a new task begins, judged by its own pairs before any of them is learnt.

    Minimises ``mean_p log(1 + exp(-(M c)_p / s)) + sum_k n_k c_k`` over ``c >= 0``: a logistic regression of
    preferences on the margins that the updates give without having seen the pairs, with ``s`` the root mean square of
    all margins. ``n_k``, one standard error of the slope at ``c = 0``, is the price of an update: one whose mean margin
    is within a standard error of 0 is left out, and where none is worth it the task begins with the untouched base.
    Convex. Only the direction of ``c`` is used: where anything is of use, the weights sum to 1.

    Args:
        margins (`numpy.ndarray` of shape `(pairs, updates)`): ``M``, of the new task's pairs under each earlier update
            alone, in nats.

    Returns:
        `numpy.ndarray` of shape `(updates,)`: in [0, 1], with sum 1 or 0.
    """
    from scipy.optimize import minimize

    values = np.asarray(margins, dtype=np.float64)
    pairs, updates = values.shape
    size = float(np.sqrt(np.mean(values**2))) if values.size else 0.0
    nothing = np.zeros(updates)
    if not size > 0:
        return nothing
    z = values / size
    price = np.sqrt(np.mean(z**2, axis=0) / pairs) / 2

    def loss(c: Array) -> tuple[float, Array]:
        told = z @ c
        slope = -(z / (1 + np.exp(np.clip(told, -500, 500)))[:, None]).mean(axis=0)
        return float(np.logaddexp(0, -told).mean() + price @ c), slope + price

    if not (loss(nothing)[1] < 0).any():
        return nothing  # convex: no direction leads down
    # updates that prefer every pair would be followed for ever
    found = minimize(loss, nothing, jac=True, bounds=[(0, 100)] * updates, method="L-BFGS-B").x
    found = np.where(found > 1e-3 * found.max(), found, 0.0)
    return np.asarray(found / found.sum())


def kinship(tasks: Sequence[str], own: str, starts: Starts) -> dict[str, float]:
    """How near each task is to one of them: 1 for itself, and for another what the later of the two took over of the
    earlier one when it began, which is known both ways without asking the earlier task's pairs again.

    Args:
        tasks (`Sequence[str]`): all of them, in the order in which they were learnt.
        own (`str`): the one whose kin is asked for.
        starts (`Mapping`): see [`Starts`].
    """
    position = {task: i for i, task in enumerate(tasks)}
    found = {}
    for task in tasks:
        first, second = sorted((task, own), key=position.__getitem__)
        found[task] = 1.0 if task == own else float(starts.get(second, {}).get(first, 0.0))
    return found


def view_weights(tasks: Sequence[str], own: str, lean: float, starts: Starts | None = None) -> dict[str, float]:
    """Weights of the tasks' updates in the view that answers one task's prompts: ``(1 - lean)`` of its own update, and
    ``lean`` of the mean of its kin, itself among them, by [`kinship`]. They sum to 1; those of 0 are left out.

    Args:
        tasks (`Sequence[str]`): all of them, in the order in which they were learnt.
        own (`str`): the one whose view it is.
        lean (`float`): in [0, 1]; 0 is the task's own update alone.
        starts (`Mapping`, *optional*): see [`Starts`]; without it all tasks are kin.
    """
    near = dict.fromkeys(tasks, 1.0) if starts is None else kinship(tasks, own, starts)
    total = sum(near.values())
    weights = {task: lean * near[task] / total + (1 - lean) * (task == own) for task in tasks}
    return {task: weight for task, weight in weights.items() if weight > 0}
