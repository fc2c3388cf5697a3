"""Trains a policy for several objectives at once with Meta-Aligner, in the style of TRL's scripts.

A 135M model on two CPU cores, with rewards that are fitted on the way, and the front it reaches:

    accelerate launch recipes/meta_aligner.py --config recipes/meta_aligner.yaml
    lifealign pareto runs/meta-aligner

One's own rewards, and a LoRA adapter whose ranks the preference scales:

    accelerate launch recipes/meta_aligner.py --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct \
        --dataset_name trl-lib/ultrafeedback_binarized --output_dir Qwen2.5-0.5B-Meal \
        --reward_funcs me/helpful-reward me/harmless-reward --objective_names helpful harmless \
        --conditioning lora --use_peft --lora_r 16 --lora_target_modules all-linear
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config

from hf_lifealign import MetaAlignerConfig, MetaAlignerTrainer, MiniLMBradleyTerryReward, resolve_reward
from hf_lifealign.lifelong.launch import start_all_cpu_processes
from hf_lifealign.lifelong.recipe import find_recipe
from hf_lifealign.meta_aligner.config import POLICY_ENCODER
from hf_lifealign.meta_aligner.sources import write_record
from hf_lifealign.models import resolve_model
from hf_lifealign.rewards.encoder import DEFAULT_EMBEDDING
from hf_lifealign.strategies.registry import available
from hf_lifealign.stream.tables import file_of_split, load_rows

if TYPE_CHECKING:
    from datasets import Dataset

# What decides the base, of the arguments it is loaded with.
_BASE = ("revision", "dtype")


@dataclass
class RewardArguments:
    """Arguments of the objectives and their data.

    Args:
        reward_funcs (`list[str]`): one for each objective: the name of an installed reward, a folder, a Hub id, or
            `package.module:function`.
        objective_names (`list[str]`, *optional*): names of the objectives; those of the rewards by default.
        fit_rewards (`list[str]`, *optional*): preference data for each of `reward_funcs`, on which it is fitted where
            its folder is not there yet.
        reward_embedding (`str`): embedding model of rewards that are fitted.
        prompt_datasets (`list[str]`, *optional*): sources of prompts, in place of `--dataset_name`. A source is a
            file, a folder with a file for each split, or a Hub id. Preference rows serve as offline set too.
        offline_datasets (`list[str]`, *optional*): sources of the offline set.
        eval_datasets (`list[str]`, *optional*): sources of held-out prompts, for evaluation and `lifealign pareto`; by
            default those of the training, with the test split, where they have one.
    """

    reward_funcs: list[str] = field(default_factory=list, metadata={"help": "One reward for each objective."})
    objective_names: list[str] | None = field(default=None, metadata={"help": "Names of the objectives."})
    fit_rewards: list[str] | None = field(
        default=None, metadata={"help": "Preference data for each reward, to fit it on if its folder is not there."}
    )
    reward_embedding: str = field(
        default=DEFAULT_EMBEDDING, metadata={"help": "Embedding model of rewards that are fitted: Hub id or folder."}
    )
    prompt_datasets: list[str] | None = field(
        default=None, metadata={"help": "Files, folders or Hub ids of prompts, in place of --dataset_name."}
    )
    offline_datasets: list[str] | None = field(
        default=None, metadata={"help": "Files, folders or Hub ids to pre-train on."}
    )
    eval_datasets: list[str] | None = field(
        default=None, metadata={"help": "Files, folders or Hub ids of held-out prompts, for `lifealign pareto`."}
    )


def main(
    script_args: ScriptArguments,
    training_args: MetaAlignerConfig,
    model_args: ModelConfig,
    reward_args: RewardArguments,
) -> None:
    """Fits rewards that are not there yet, trains, saves, pushes if asked to."""
    if not model_args.model_name_or_path:
        raise ValueError("You gave no model. Pass --model_name_or_path with a Hub id or a local folder.")
    train_split, test_split = script_args.dataset_train_split, script_args.dataset_test_split
    prompts = _shipped(reward_args.prompt_datasets) or ([script_args.dataset_name] if script_args.dataset_name else [])
    if not prompts:
        raise ValueError("You gave no data. Pass --dataset_name or --prompt_datasets with prompts or preference rows.")
    if not reward_args.reward_funcs:
        raise ValueError("You gave no rewards. Pass --reward_funcs with one for each objective, at least two.")
    offline = _shipped(reward_args.offline_datasets)
    held_out = _shipped(reward_args.eval_datasets) or [name for name in prompts if _has_split(name, test_split)]
    with PartialState().main_process_first():
        fit_missing_rewards(reward_args, train_split)

    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),  # type: ignore[dict-item]
    }
    init_kwargs = dict(training_args.model_init_kwargs)
    trainer = MetaAlignerTrainer(
        model=resolve_model(model_args.model_name_or_path),
        reward_funcs=[resolve_reward(spec) for spec in reward_args.reward_funcs],
        objective_names=reward_args.objective_names,
        args=training_args,
        train_dataset=load_rows(prompts, train_split),
        eval_dataset=_evaluation_rows(held_out, test_split) if training_args.eval_strategy != "no" else None,
        offline_dataset=load_rows(offline, train_split) if offline else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    if trainer.accelerator.is_main_process:
        write_record(
            Path(str(training_args.output_dir)),
            base=model_args.model_name_or_path,
            rewards=reward_args.reward_funcs,
            prompts=held_out,
            split=test_split,
            encoder=None if training_args.encoder == POLICY_ENCODER else training_args.encoder,
            model_init_kwargs={k: v for k, v in init_kwargs.items() if (k, v) != ("revision", "main") and k in _BASE},
        )
    trainer.accelerator.print(f"Model saved to {training_args.output_dir}.")
    trainer.accelerator.print(f"Its front: lifealign pareto {training_args.output_dir}")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    trainer.end()


def fit_missing_rewards(args: RewardArguments, split: str) -> None:
    """Fits those rewards whose folders are not there yet; functions and installed rewards need no fitting.

    Raises:
        ValueError: if there is not one source of preference data for each reward.
    """
    sources = _shipped(args.fit_rewards)
    if not sources:
        return
    if len(sources) != len(args.reward_funcs):
        raise ValueError(
            f"You set {len(sources)} fit_rewards for {len(args.reward_funcs)} reward_funcs. Set preference data for "
            "each, in the same order."
        )
    packaged = available("hf_lifealign.rewards")
    for spec, source in zip(args.reward_funcs, sources, strict=True):
        if spec not in packaged and ":" not in spec and not (Path(spec) / "reward.json").is_file():
            reward = MiniLMBradleyTerryReward.fit(
                load_rows(source, split),
                name=Path(spec).name,
                embedding=args.reward_embedding,
                dataset=Path(source).name,
            )
            reward.save_pretrained(spec)
            print(f"Fitted {reward} to {spec}.", flush=True)


def _shipped(sources: list[str] | None) -> list[str]:
    """Sources as they are named, or those that come with the package where there is no checkout."""
    return [str(find_recipe(source)) if not Path(source).exists() else source for source in sources or []]


def _has_split(source: str, split: str) -> bool:
    """Whether held-out rows can be expected: a folder tells, a file has none, a Hub id is taken at its word."""
    path = Path(source).expanduser()
    if not path.is_dir():
        return not path.is_file()
    try:
        return file_of_split(source, split) is not None
    except ValueError:
        return False


def _evaluation_rows(sources: list[str], split: str) -> "Dataset":
    """Held-out prompts without answers."""
    if not sources:
        raise ValueError("You set eval_strategy, and there are no held-out prompts. Pass --eval_datasets.")
    rows = load_rows(sources, split)
    return rows.remove_columns([name for name in ("chosen", "rejected") if name in rows.column_names])


def _find_config(command: list[str]) -> list[str]:
    """The command line with a shipped `--config` found where there is no checkout."""
    return [
        str(find_recipe(word)) if before == "--config" else word
        for before, word in zip(["", *command], command, strict=False)
    ]


if __name__ == "__main__":
    start_all_cpu_processes()
    groups: Any = (ScriptArguments, MetaAlignerConfig, ModelConfig, RewardArguments)
    main(*TrlParser(groups).parse_args_and_config(_find_config(sys.argv[1:])))
