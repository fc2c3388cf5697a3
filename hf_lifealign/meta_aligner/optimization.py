"""How policy and preference-weight-net take turns inside a Trainer: what trains in which update, and at what rate."""

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from hf_lifealign.meta_aligner.config import MetaAlignerConfig
from hf_lifealign.meta_aligner.encoders import AutoEncoder
from hf_lifealign.meta_aligner.optimizer import POLICY, SIDES, WEIGHTS, PairedOptimizer, PairedSchedule
from hf_lifealign.meta_aligner.policy import MetaAlignedPolicy
from hf_lifealign.meta_aligner.schedule import INNER, OUTER, PRETRAIN, Schedule

if TYPE_CHECKING:
    from trl import RLOOTrainer

    _Base = RLOOTrainer
else:
    _Base = object

# Which optimizers step in which kind of update.
_ACTIVE = {PRETRAIN: SIDES, INNER: (POLICY,), OUTER: (WEIGHTS,)}


class TwoOptimizersMixin(_Base):
    """Mixin for a Trainer with a `policy` and a `schedule`: two optimizers with a learning rate each, as one."""

    args: MetaAlignerConfig
    model: Any
    policy: MetaAlignedPolicy
    _adapter: list[torch.nn.Parameter]
    _kind: str

    @functools.cached_property
    def schedule(self) -> Schedule:
        """What happens at which update."""
        raise NotImplementedError

    def _prepare_for_training(self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: Any) -> Any:
        # What trains are a few tensors outside the model, or an adapter that stands still half of the time, for which
        # DDP has no use: the trainer averages their gradients itself.
        prepare = self.accelerator.prepare_model
        self.accelerator.prepare_model = functools.partial(prepare, evaluation_mode=True)
        self.policy.weight_net.wake()
        try:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        finally:
            self.accelerator.prepare_model = prepare

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Two optimizers of the kind that `args.optim` names, as one."""
        args = self.args
        cls, kwargs = self.get_optimizer_cls_and_kwargs(args, self.model)
        unfit = sorted({"params", "model", "optimizer_dict"} & set(kwargs))
        if unfit:
            raise ValueError(
                f"You set optim={args.optim!r}, which takes the whole model. Use one such as 'adamw_torch'."
            )
        # the schedule sets the learning rates
        kwargs.pop("lr", None)
        decay = {"weight_decay": args.weight_decay}
        theta = [*self.policy.conditioning.parameters(), *self._adapter]
        psi: list[dict[str, Any]] = [{"params": list(self.policy.weight_net.parameters()), **decay}]
        if isinstance(self.policy.encoder, AutoEncoder) and self.policy.encoder.trainable:
            psi.append({"params": list(self.policy.encoder.parameters()), **decay})
        self._paired = PairedOptimizer(cls([{"params": theta, **decay}], **kwargs), cls(psi, **kwargs))
        self.optimizer = self._paired
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The learning rates of both, over the whole plan, phase by phase."""
        args, schedule = self.args, self.schedule
        meta, before = schedule.inner_updates(), schedule.pretrain_updates
        weights = [[(before, args.pretrain_weight_learning_rate), (meta, args.weight_learning_rate)]]
        if isinstance(self.policy.encoder, AutoEncoder) and self.policy.encoder.trainable:
            weights.append([(before, args.encoder_learning_rate), (meta, args.encoder_learning_rate)])
        self.lr_scheduler = PairedSchedule(  # type: ignore[assignment]
            self._paired,
            str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
            {
                POLICY: [[(before, args.pretrain_learning_rate), (meta, args.learning_rate)]],
                WEIGHTS: weights,
            },
            args.warmup_steps,
            dict(args.lr_scheduler_kwargs or {}),  # type: ignore[arg-type]
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _begin(self, kind: str) -> None:
        """Lets train what a kind of update trains, and nothing else."""
        self._kind = kind
        self._paired.begin("pretrain" if kind == PRETRAIN else "meta")
        self._paired.active = _ACTIVE[kind]
        self.policy.conditioning.requires_grad_(kind != OUTER)
        self.policy.weight_net.requires_grad_(kind != INNER)
        if isinstance(self.policy.encoder, AutoEncoder) and self.policy.encoder.trainable:
            self.policy.encoder.requires_grad_(kind != INNER)
        adapts = kind == PRETRAIN or (kind == INNER and self.policy.conditioning.kind == "lora")
        for parameter in self._adapter:
            parameter.requires_grad_(adapts)

    def _average_gradients(self) -> None:
        """Means of the gradients over all processes."""
        if self.accelerator.num_processes == 1:
            return
        grads = [p.grad for p in self._trained() if p.grad is not None]
        flat = self.accelerator.reduce(torch.cat([grad.flatten().float() for grad in grads]), "mean")
        for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(mean.view_as(grad))

    def _trained(self) -> list[torch.nn.Parameter]:
        return self._paired.parameters(*self._paired.active)

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        return self.accelerator.clip_grad_norm_(self._trained(), self.args.max_grad_norm)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        if grad_norm is None:
            grad_norm = self.accelerator.clip_grad_norm_(self._trained(), float("inf"))
        return super()._get_grad_norm(model, grad_norm)
