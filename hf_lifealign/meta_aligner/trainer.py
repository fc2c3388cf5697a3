"""MetaAlignerTrainer: several objectives at once, preference weights and policy learning from each other."""

import contextlib
import copy
import functools
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch.utils.data import DataLoader, SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
from trl import RLOOTrainer
from trl.trainer.utils import add_fused_lm_head, get_config_model_id, pad

from hf_lifealign._modes import evaluating, require_differentiable
from hf_lifealign.fpo.reference import drop_reference_adapter
from hf_lifealign.meta_aligner.buffers import Answer, Buffer
from hf_lifealign.meta_aligner.config import POLICY_ENCODER, MetaAlignerConfig
from hf_lifealign.meta_aligner.data import completion_ids, cut_rows, split_preferences, within_length
from hf_lifealign.meta_aligner.encoders import AutoEncoder
from hf_lifealign.meta_aligner.identity import identity_of
from hf_lifealign.meta_aligner.optimization import TwoOptimizersMixin
from hf_lifealign.meta_aligner.optimizer import WEIGHTS, PairedSchedule
from hf_lifealign.meta_aligner.policy import MetaAlignedPolicy
from hf_lifealign.meta_aligner.preferences import preference_divergence, realised_preference, sequence_nll
from hf_lifealign.meta_aligner.rounds import RoundsMixin
from hf_lifealign.meta_aligner.saving import SavingMixin
from hf_lifealign.meta_aligner.schedule import INNER, OUTER, PRETRAIN, Schedule
from hf_lifealign.meta_aligner.selection import kept_count
from hf_lifealign.meta_aligner.states import AnswerStates, head_is_plain, states_size
from hf_lifealign.meta_aligner.storage import GENERATION_NAMES, policy_file, read_policy
from hf_lifealign.prompt_pool import pools_of

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig

RewardFunc = str | PreTrainedModel | Callable[..., Any]


class MetaAlignerTrainer(RoundsMixin, SavingMixin, TwoOptimizersMixin, RLOOTrainer):
    r"""
    Trainer for Meta-Aligner (Meal, arXiv 2604.24178): one policy for several objectives, conditioned on preference
    weights, and a preference-weight-net that learns along with it which weights suit a prompt.

    Pre-training on the offline set teaches the net the preferences its answers realise, and the policy to answer
    accordingly. Then come rounds: answers are generated under the net's weights, rated by all reward functions, the
    best are kept, and inner steps of the policy alternate with outer steps of the net.

    It takes reward functions as [`~trl.RLOOTrainer`] and [`~trl.GRPOTrainer`] do, and generates and rates with TRL's
    means. The base stays frozen throughout; the adapter of `peft_config` is trained in pre-training and frozen in the
    meta phase, unless it is itself what the preference conditions (`conditioning="lora"`).

    Example:

    ```python
    >>> from hf_lifealign import MetaAlignerConfig, MetaAlignerTrainer, load_meta_aligned

    >>> trainer = MetaAlignerTrainer(
    ...     model="Qwen/Qwen2.5-0.5B-Instruct",
    ...     reward_funcs=[helpful, harmless],
    ...     args=MetaAlignerConfig("Qwen2.5-0.5B-Meal"),
    ...     train_dataset=prompts,
    ...     offline_dataset=prompt_completion_rows,
    ... )
    >>> trainer.train()
    >>> trainer.save_model()
    >>> policy = load_meta_aligned("Qwen/Qwen2.5-0.5B-Instruct", "Qwen2.5-0.5B-Meal")
    >>> policy.generate("How do I pick a lock?", preference=[0.2, 0.8])
    ```

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy to start from.
        reward_funcs (`list` of `str`, `PreTrainedModel` or `Callable`):
            One for each objective, at least two, in TRL's protocol.
        objective_names (`list[str]`, *optional*):
            Names of the objectives; those of the reward functions by default.
        args ([`MetaAlignerConfig`], *optional*):
            Configuration.
        train_dataset ([`~datasets.Dataset`]):
            Rows with `prompt`, plain or conversational; further columns reach the reward functions. Preference rows
            serve as prompts and, where no offline set is given, as offline set.
        eval_dataset ([`~datasets.Dataset`] or `dict`, *optional*):
            Prompts for evaluation.
        offline_dataset ([`~datasets.Dataset`], *optional*):
            Rows with `prompt` and `completion`, or preference rows. Without it there is no pre-training, and rewards
            are z-scored by the first round's.
        processing_class, reward_processing_classes, callbacks, quantization_config, peft_config:
            As for [`~trl.RLOOTrainer`].

    Raises:
        TypeError, ValueError: for settings or data that cannot work, before anything is trained.
    """

    _tag_names = ["trl", "meta-aligner", "hf-lifealign"]
    _name = "Meta-Aligner"
    _paper = {
        "title": "Meta-Aligner: Bidirectional Preference-Policy Optimization for Multi-Objective LLMs Alignment",
        "id": "2604.24178",
        "citation": textwrap.dedent("""\
            @article{xu2026metaaligner,
                title         = {{Meta-Aligner: Bidirectional Preference-Policy Optimization for Multi-Objective LLMs Alignment}},
                author        = {Wenzhe Xu and Biao Liu and Yiyang Sun and Xin Geng and Ning Xu},
                year          = 2026,
                eprint        = {arXiv:2604.24178}
            }"""),  # noqa: E501
    }

    args: MetaAlignerConfig
    model: Any
    train_dataset: Any
    loss_is_scaled_for_ga = False
    _weight_rate: float

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        reward_funcs: RewardFunc | list[RewardFunc],
        objective_names: Sequence[str] | None = None,
        args: MetaAlignerConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        offline_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        quantization_config: "BitsAndBytesConfig | None" = None,
        peft_config: "PeftConfig | None" = None,
    ):
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = MetaAlignerConfig(f"{model_name.split('/')[-1]}-Meal")
        elif not isinstance(args, MetaAlignerConfig):
            raise TypeError(
                f"You passed args of type {type(args).__name__}. MetaAlignerTrainer needs an "
                "hf_lifealign.MetaAlignerConfig, which takes RLOOConfig's settings for generation and training."
            )
        rewards = list(reward_funcs) if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
        if len(rewards) < 2:
            raise ValueError(
                f"You passed {len(rewards)} reward function{'s' * (len(rewards) != 1)}. Preferences weigh objectives "
                "against each other: pass at least two. For one, use trl.GRPOTrainer or trl.RLOOTrainer."
            )
        train_dataset, offline_dataset = split_preferences(train_dataset, offline_dataset)
        drop_reference_adapter(model)
        super().__init__(
            model=model,
            reward_funcs=rewards,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        self._refuse_what_cannot_work()
        require_differentiable(self.model)
        # RLOOTrainer's frozen copy of a PeftModel's adapter serves a KL term that this method does not have
        drop_reference_adapter(self.model)
        # the likelihood of the method is that of the policy, whatever the temperature answers are drawn with
        base = self.model.get_base_model() if is_peft_model(self.model) else self.model
        add_fused_lm_head(base, outputs=("log_probs", "entropy"))
        if not is_peft_model(self.model):
            self.model.requires_grad_(False)
        self._adapter = [p for p in self.model.parameters() if p.requires_grad]
        self.reward_func_names = self._named_objectives(objective_names)
        # as they are now: one that counts its calls is not another one for it
        self._reward_code = [identity_of(reward) for reward in self.reward_funcs]
        self._prepare_data(offline_dataset)
        self.policy = self._make_policy()
        self._kind = PRETRAIN
        self._update_is_over = True
        self._states: tuple[Buffer, AnswerStates | None] | None = None
        self._reset_rounds()

    # Set-up

    def _refuse_what_cannot_work(self) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError(
                "You started MetaAlignerTrainer under DeepSpeed or FSDP, which own the optimizer; this method has two "
                "that take turns. Use plain `accelerate launch` on one or several processes."
            )
        if getattr(self.args.accelerator_config, "split_batches", False):
            raise ValueError(
                "You set split_batches=True in accelerator_config. The plan of a training counts batches by process; "
                "set it to False, and per_device_train_batch_size to what each process is to have."
            )
        if is_peft_model(self.model) and not any(p.requires_grad for p in self.model.parameters()):
            raise ValueError(
                "You passed a PeftModel whose adapter is frozen, so that pre-training could not train it. Load it with "
                "PeftModel.from_pretrained(..., is_trainable=True); to leave it as it is, merge it into the base."
            )
        if pools_of(self.model):
            raise ValueError(
                "You passed an adapter of type L2P, which chooses prompts by what stands before the answer; this "
                "trainer reads prompt and answer together. Use a LoRA adapter."
            )
        if self._is_vlm:
            raise ValueError("You passed a processor for images. MetaAlignerTrainer takes text only; pass a tokenizer.")

    def _named_objectives(self, names: Sequence[str] | None) -> list[str]:
        found = list(names) if names is not None else list(self.reward_func_names)
        if len(found) != len(self.reward_funcs):
            raise ValueError(f"You passed {len(found)} objective_names for {len(self.reward_funcs)} reward functions.")
        if len(set(found)) != len(found):
            raise ValueError(
                f"The objectives are named {found}, and names have to differ. Pass objective_names, one for each "
                "reward."
            )
        return found

    def _prepare_data(self, offline: Dataset | None) -> None:
        room = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        answer, longest = self.max_completion_length or 1, self.args.max_prompt_length
        ids = self._prompt_ids(self.train_dataset)
        kept = within_length(self.train_dataset, [len(row) for row in ids], longest, room, answer)
        self.train_dataset = self.train_dataset.select(kept)
        self.prompt_rows = self.train_dataset.to_list()
        self.prompt_lengths = [len(ids[i]) for i in kept]
        self.offline_rows, self.offline_tokens = [], []
        if offline is not None and len(offline):
            ids = self._prompt_ids(offline)
            kept = within_length(offline, [len(row) for row in ids], longest, room, answer)
            rows = offline.select(kept).to_list()
            template: Any = self.chat_template_kwargs
            completions = [completion_ids(row, self._tokenizer, template) for row in rows]
            cut_rows(rows, completions, self._tokenizer, self.max_completion_length)
            self.offline_rows = rows
            self.offline_tokens = [(list(ids[i]), c) for i, c in zip(kept, completions, strict=True)]

    def _prompt_ids(self, data: Dataset) -> list[list[int]]:
        prompts = data["prompt"][:]
        found: list[list[int]] = []
        for start in range(0, len(prompts), 1000):
            found += self._tokenize_prompts(prompts[start : start + 1000])[0]
        return found

    def _make_policy(self) -> MetaAlignedPolicy:
        args = self.args
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(args.seed)
            encoder = None
            if args.encoder != POLICY_ENCODER:
                encoder = AutoEncoder(args.encoder, trainable=args.encoder_learning_rate > 0)
            template: Any = self.chat_template_kwargs
            policy = MetaAlignedPolicy(
                self.model, self._tokenizer, self.reward_func_names, args.conditioning, encoder,
                args.weight_net_hidden, template,
            )  # fmt: skip
        policy.generation = {
            key: self.generation_kwargs[key] for key in GENERATION_NAMES if self.generation_kwargs.get(key) is not None
        }
        return policy

    def continue_from(self, path: str | Path) -> None:
        """Takes over a policy's preference-weight-net, conditioning and reward statistics, so that training goes on
        with it. Objectives that it does not know are added; the known ones have to come first.

        Args:
            path (`str` or `Path`): the folder of a saved policy, or its JSON. The adapter is not read; pass a model
                that has it.

        Raises:
            FileNotFoundError, ValueError: if there is no such policy, or it does not fit.
        """
        generation = self.policy.generation
        path = Path(path)
        self.policy.load_weights(read_policy(path if path.suffix == ".json" else policy_file(path)))
        self.policy.generation = generation

    def adapter_tensors(self) -> dict[str, torch.Tensor]:
        """The trained tensors of the model itself, by name."""
        own = {id(p) for p in self._adapter}
        return {name: p for name, p in self.model.named_parameters() if id(p) in own}

    # The plan

    @functools.cached_property
    def schedule(self) -> Schedule:
        """What happens at which update."""
        args = self.args
        prompts = min(args.prompts_per_round or len(self.prompt_rows), len(self.prompt_rows))
        answers = args.num_generations or 1
        kept = (
            prompts * kept_count(answers, args.rho)
            if args.scope == "prompt"
            else kept_count(prompts * answers, args.rho)
        )
        batch = self._train_batch_size * self.accelerator.num_processes
        return Schedule(
            rows_per_update=batch * args.gradient_accumulation_steps,
            offline_rows=len(self.offline_rows),
            pretrain_epochs=args.pretrain_epochs,
            rounds=args.num_rounds,
            kept_rows=kept,
            epochs=int(args.num_train_epochs),
            outer=args.weight_source == "learned",
        )

    def get_train_dataloader(self) -> DataLoader:
        """Numbers of rows: which answers they are is known only when their round has been generated."""
        if not self.schedule.updates:
            raise ValueError(
                "There is nothing to train: num_rounds=0, and no offline_dataset (or pretrain_epochs=0). Set one of "
                "them."
            )
        return self._get_dataloader(
            dataset=range(self.schedule.rows),  # type: ignore[arg-type]
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=SequentialSampler,  # type: ignore[arg-type]
            is_training=True,
        )

    def set_initial_training_values(self, args: Any, dataloader: DataLoader) -> Any:
        """As Trainer's; the data loader is the whole training, in which `num_train_epochs` is counted already."""
        if args.max_steps > self.schedule.updates:
            raise ValueError(
                f"You set max_steps={args.max_steps}. Pre-training and {args.num_rounds} rounds have "
                f"{self.schedule.updates} steps in all. Leave max_steps out, or raise num_rounds or num_train_epochs."
            )
        once = copy.copy(args)
        once.num_train_epochs = 1
        return super().set_initial_training_values(once, dataloader)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's; see [`MetaAlignerConfig`] for what is trained."""
        # answers of an earlier training are those of another policy
        self._reset_rounds()
        try:
            done = super().train(*args, **kwargs)
            self._remove_rounds()
            return done
        finally:
            self._states = None
            self.policy.conditioning.give(None)
            for parameter in self._adapter:
                parameter.requires_grad_(True)

    # A step

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One forward and backward. The preference stands until both are done, since a checkpointed layer runs its
        forward again in the backward."""
        assert isinstance(self.lr_scheduler, PairedSchedule)
        # before the schedule goes on: what is logged is the rate of the step
        self._weight_rate = self.lr_scheduler.pair[WEIGHTS].get_last_lr()[0]
        if self._update_is_over:
            # Trainer clears the gradients of the model only
            self._paired.zero_grad()
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        finally:
            self.policy.conditioning.give(None)
        self._update_is_over = self.accelerator.sync_gradients
        if self._update_is_over:
            self._average_gradients()
        return loss

    def _prepare_inputs(self, numbers: Any) -> dict[str, Any]:
        """The rows of a batch by their numbers in the plan."""
        if not numbers or not isinstance(numbers[0], int):
            return super()._prepare_inputs(numbers)
        places = [self.schedule.place(number) for number in numbers]
        kind, round = places[0].kind, places[0].round
        buffer = self.offline_buffer() if kind == PRETRAIN else self.round_buffer(round)
        self._begin(kind)
        rows = [buffer.row(place.row, self.args.seed, round, place.epoch) for place in places]
        return self._batch(buffer, rows, "offline" if kind == PRETRAIN else "train")

    @property
    def _backbone_stands(self) -> bool:
        """Whether nothing below the LM head learns in this kind of update."""
        return self.policy.conditioning.kind == "logit_bias" and not (self._kind == PRETRAIN and self._adapter)

    def _states_of(self, buffer: Buffer) -> AnswerStates | None:
        """The hidden states of a buffer, where they stand still and fit into memory."""
        if self._states is None or self._states[0] is not buffer:
            fits = states_size(buffer, self.model) <= self.args.state_cache_gb * 1024**3
            states = None
            if self._backbone_stands and fits and head_is_plain(self.model):
                batch, quiet = self._train_batch_size, bool(self.args.disable_tqdm)
                states = AnswerStates.read(buffer, self.model, self._padded, batch, self.accelerator, quiet)
            self._states = (buffer, states)
        return self._states[1]

    def _batch(self, buffer: Buffer, rows: list[int], kind: str) -> dict[str, Any]:
        answers = [buffer.answers[i] for i in rows]
        device = self.accelerator.device
        return self._padded(answers) | {
            "answers": answers,
            "rows": rows,
            "states": self._states_of(buffer),
            "kind": kind,
            "prompts": [answer.prompt for answer in answers],
            "targets": buffer.targets[torch.tensor(rows)].to(device),
        }

    def _padded(self, answers: Sequence[Answer]) -> dict[str, torch.Tensor]:
        """Tokens as RLOOTrainer has them: prompts padded on the left, completions on the right."""
        batch = {}
        for name, side in (("prompt", "left"), ("completion", "right")):
            ids = [torch.tensor(getattr(answer, f"{name}_ids"), dtype=torch.long) for answer in answers]
            masks = [torch.ones_like(row) for row in ids]
            unit: Any = self.pad_to_multiple_of
            filler = self._tokenizer.pad_token_id
            batch[f"{name}_ids"] = pad(ids, padding_value=filler, padding_side=side, pad_to_multiple_of=unit)
            batch[f"{name}_mask"] = pad(masks, padding_value=0, padding_side=side, pad_to_multiple_of=unit)
        return {key: value.to(self.accelerator.device) for key, value in batch.items()}

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        log_weights = self._log_weights(inputs)
        weights = self._training_weights(inputs, log_weights)
        self.policy.conditioning.give(weights)
        nll, entropy = self._nll(model, inputs)
        supervised = preference_divergence(log_weights, inputs["targets"]).mean()
        loss = nll.mean()
        if self._kind == PRETRAIN:
            loss = loss + supervised
        elif self._kind == OUTER:
            loss = loss + self.args.supervision * supervised
        metrics = {f"{self._kind}/nll": nll.mean(), "supervised": supervised, "entropy": entropy}
        self._record(metrics)
        return loss

    def _log_weights(self, inputs: dict[str, Any]) -> torch.Tensor:
        """What the preference-weight-net says of the batch, as logarithms; with gradients where they are wanted."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._kind != INNER):
            features = self.features(inputs["kind"], inputs["prompts"]).to(self.accelerator.device)
            return self.policy.weight_net.log_weights(features)

    def _training_weights(self, inputs: dict[str, Any], log_weights: torch.Tensor) -> torch.Tensor:
        """The preference under which the policy learns a batch, `torch.Tensor` of shape `(answers, objectives)`."""
        source = self.args.weight_source
        if self._kind == PRETRAIN or source == "reward":
            return inputs["targets"]
        if source in ("random", "uniform"):
            return torch.tensor([answer.weights for answer in inputs["answers"]], device=self.accelerator.device)
        return log_weights.exp()

    def _nll(self, model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Negative log-likelihood of each answer, and the mean entropy of a token."""
        mask, ids = inputs["completion_mask"], inputs["completion_ids"]
        if inputs["states"] is not None:
            bias = self.policy.conditioning.bias()
            with self.accelerator.autocast():
                logps, entropies = inputs["states"].log_probs(model, inputs["rows"], ids, mask, bias)
        else:
            # what does not learn has no dropout, as where its states are read once
            with evaluating(self.model) if self._backbone_stands else contextlib.nullcontext():
                logps, entropies, _ = self._get_per_token_logps_and_entropies(
                    model,
                    torch.cat([inputs["prompt_ids"], ids], dim=1),
                    torch.cat([inputs["prompt_mask"], mask], dim=1),
                    mask.size(1),
                    compute_entropy=True,
                )
        entropy = (entropies.detach() * mask).sum() / mask.sum().clamp(min=1)
        return sequence_nll(logps, mask, self.args.loss_per_token), entropy

    def _record(self, values: dict[str, torch.Tensor]) -> None:
        """Means over all processes, for the next log."""
        means = self.accelerator.reduce(torch.stack([v.detach().float() for v in values.values()]), "mean").tolist()
        mode = "train" if self.model.training else "eval"
        for name, value in zip(values, means, strict=True):
            self._metrics[mode][name].append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As TRL's, with the preference-weight-net's learning rate beside the policy's."""
        if "learning_rate" in logs:
            logs["weight_learning_rate"] = self._weight_rate
        super().log(logs, start_time)

    # Evaluation

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """Answers prompts under the preference-weight-net's weights and logs their rewards; the loss is the negative
        inner product of weights and z-scored rewards."""
        self._ensure_statistics()  # or the first evaluation would be on another scale than the later ones
        prompts = [row["prompt"] for row in inputs]
        weights = self.policy.preference(prompts).to(self.accelerator.device)
        with torch.no_grad(), self.policy.conditioning.given(weights):
            _, completion_ids, completions = self._generate(prompts)
        rewards = torch.tensor(self._rewards_here(inputs, prompts, completions, completion_ids)).to(weights)
        self._log_user_metrics([self._take_user_metrics()], "eval")
        assert self.policy.statistics is not None
        scores = self.policy.statistics.normalise(rewards)
        self._record({"preference/divergence": self._divergence(weights, scores)})
        inner = (weights * scores).sum(-1)
        values = {"reward/inner_product": inner.nanmean()}
        for k, name in enumerate(self.policy.objective_names):
            values |= {f"rewards/{name}/mean": rewards[:, k].nanmean(), f"preference/{name}": weights[:, k].mean()}
        self._record(values)
        return -inner.nanmean(), None, None

    def _divergence(self, weights: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return preference_divergence(weights.log(), realised_preference(scores, self.args.tau)).nanmean()
