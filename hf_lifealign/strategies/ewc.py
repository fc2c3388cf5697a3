"""Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv 1612.00796) on the adapter's parameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_lifealign._modes import evaluating
from hf_lifealign.strategies.base import PREFERENCE, Phase, Run, Strategy
from hf_lifealign.strategies.sampling import reservoir, seeded_generator
from hf_lifealign.strategies.tensors import Tensors, read_tensors, trainable_parameters, write_tensors

if TYPE_CHECKING:
    from transformers import Trainer

_FISHER, _ANCHOR = "fisher/", "anchor/"


def preference_fisher(margin: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    r"""Diagonal of the Fisher information of one preference.

    The answer y of a pair with reward margin r is Bernoulli with ``p = sigmoid(r)``, so that ``E_y[(d log p(y))^2]`` is
    ``p (1 - p) (dr)^2``: nothing is sampled, and no label is taken for the model's own.

    Args:
        margin (`torch.Tensor`, scalar): reward margin, beta times nats.
        gradient (`torch.Tensor`): of the margin by the parameters.

    Returns:
        `torch.Tensor` of the gradient's shape, non-negative.
    """
    p = torch.sigmoid(margin)
    return p * (1 - p) * gradient**2


def merged_quadratics(
    fisher: torch.Tensor, anchor: torch.Tensor, new_fisher: torch.Tensor, new_anchor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of two diagonal quadratics ``F (x - a)^2`` as one, up to a constant.

    Args:
        fisher, anchor, new_fisher, new_anchor (`torch.Tensor` of one shape).

    Returns:
        two `torch.Tensor` of that shape: weights and centre. Where both weights are zero the centre is `new_anchor`.
    """
    total = fisher + new_fisher
    centre = torch.where(total > 0, (fisher * anchor + new_fisher * new_anchor) / total.clamp_min(1e-45), new_anchor)
    return total, centre


class EWCStrategy(Strategy):
    """Holds each parameter of the adapter near its value after earlier tasks, the more the more these depend on it.

    The penalty is ``weight / 2 * sum_t sum_i F_ti (theta_i - theta_ti)^2``, one quadratic for each finished task, with
    the Fisher information of the task's own preferences (mean over pairs). It is kept as one quadratic, which is the
    same, so that it needs twice the adapter's memory however long the life is.

    Args:
        weight (`float`, *optional*, defaults to `1e5`): of the penalty, above 0. At 1 the penalty is, to second
            order and with the diagonal alone, the divergence in nats of an earlier task's preferences. The diagonal
            misses nearly all of it for LoRA factors, which move together: on SmolLM2-135M it told 1/6000 of the whole
            quadratic, 1e3 outweighed the preference loss in one coordinate of a thousand, 1e5 in 9 %, 1e6 in 44 %.
        samples (`int`, *optional*, defaults to `64`): pairs of a task by which its Fisher information is measured.
    """

    name = "ewc"
    reads_adapter = True

    def __init__(self, weight: float = 1e5, samples: int = 64):
        if not weight > 0:
            raise ValueError(f"You set weight={weight} of the strategy 'ewc'. It has to be above 0.")
        self.refuse_below(1, samples=samples)
        self.weight = float(weight)
        self.samples = samples
        self._quadratic: Tensors = {}

    def _file(self, run: Run, task: str) -> Path:
        return run.strategy_file(self, f"{run.label(task)}.safetensors")

    def _before(self, run: Run, task: str) -> Tensors:
        """The quadratic of all tasks before one."""
        finished = run.lived[: run.lived.index(task)]
        if not finished:
            return {}
        file = self._file(run, finished[-1])
        if run.agreed(file.is_file()):
            return read_tensors(file)
        run.note(f"The Fisher information of the tasks before {task!r} is not at hand: nothing holds them.")
        return {}

    def before_phase(self, run: Run, phase: Phase, trainer: "Trainer") -> None:
        device = next(iter(trainable_parameters(run.model).values())).device
        self._quadratic = {name: tensor.to(device) for name, tensor in self._before(run, phase.task).items()}

    def compute_extra_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor | None:
        if not self._quadratic:
            return None
        inner: Any = model
        while hasattr(inner, "module") and not hasattr(inner, "peft_config"):
            inner = inner.module  # DDP's
        return self.weight * quadratic_penalty(trainable_parameters(inner), self._quadratic)

    def after_phase(self, run: Run, phase: Phase, trainer: "Trainer") -> None:
        self._quadratic = {}

    def after_task(self, run: Run, task: str) -> None:
        before = self._before(run, task)
        fisher = self._fisher(run, task)
        content: Tensors = {}
        for name, parameter in trainable_parameters(run.model).items():
            new, anchor = fisher[name], parameter.detach().float().cpu()
            if before:
                new, anchor = merged_quadratics(before[_FISHER + name], before[_ANCHOR + name], new, anchor)
            content |= {_FISHER + name: new, _ANCHOR + name: anchor}
        if run.is_main_process:
            write_tensors(self._file(run, task), content)

    def _fisher(self, run: Run, task: str) -> Tensors:
        """Mean Fisher information of the task's own pairs, on the CPU."""
        from hf_lifealign.lifelong.scoring import pair_log_probs

        rows = run.training_rows(task)
        picked = reservoir(len(rows), self.samples, seeded_generator(run.seed, "ewc", task))
        pairs, reference = run.reference_pairs([rows[i] for i in picked], f"{task}-ewc")
        parameters = trainable_parameters(run.model)
        sums = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in parameters.items()}
        whole = [(pair, c - r) for pair, (c, r) in zip(pairs, reference, strict=True) if not pair.is_empty]
        pad, beta = int(run.processing_class.pad_token_id or 0), run.training_args.beta
        with evaluating(run.model):
            for pair, base in whole:
                chosen, rejected = pair_log_probs(run.model, [pair], pad, run.pair_packing)
                margin = beta * (chosen - rejected - base)[0]
                gradients = torch.autograd.grad(margin, list(parameters.values()))
                for name, gradient in zip(parameters, gradients, strict=True):
                    sums[name] += preference_fisher(margin.detach().float(), gradient.float()) / len(whole)
        return {name: tensor.cpu() for name, tensor in sums.items()}

    def record(self, run: Run, phase: Phase) -> dict[str, Any]:
        return {"penalty_weight": self.weight} if phase.name == PREFERENCE else {}

    def state_files(self, run: Run) -> list[Path]:
        # the last one holds all before it
        files = [file for task in run.lived if (file := self._file(run, task)).is_file()]
        return files[-1:]


def quadratic_penalty(parameters: Mapping[str, torch.Tensor], quadratic: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """``1/2 sum_i F_i (x_i - a_i)^2`` over all parameters, scalar.

    Args:
        parameters (`dict[str, torch.Tensor]`): by name.
        quadratic (`dict[str, torch.Tensor]`): `"fisher/NAME"` and `"anchor/NAME"` of the same shapes.
    """
    terms = [
        (quadratic[_FISHER + name] * (parameter.float() - quadratic[_ANCHOR + name]) ** 2).sum()
        for name, parameter in parameters.items()
    ]
    return torch.stack(terms).sum() / 2
