"""Supervised fine-tuning, in the style of TRL's scripts, that watches how alignment moves and which forces move it.

    python recipes/dynamics.py --config recipes/dynamics.yaml
    lifealign dynamics runs/dynamics

With data and a judge of your own:

    python recipes/dynamics.py --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --dataset_name me/support-answers \
        --output_dir Qwen2.5-0.5B-SFT --use_peft --probes me/red-team-prompts --judge refusal --every 20
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, TrlParser, get_peft_config, get_quantization_config

from hf_lifealign import AlignmentDynamicsCallback, MiniLMBradleyTerryReward, RewardJudge, resolve_judge
from hf_lifealign.lifelong.launch import start_all_cpu_processes
from hf_lifealign.lifelong.recipe import find_recipe
from hf_lifealign.models import resolve_model
from hf_lifealign.stream.tables import load_rows

if TYPE_CHECKING:
    from datasets import Dataset

_COLUMNS = ("prompt", "completion")


@dataclass
class DynamicsArguments:
    """Arguments of what is watched.

    Args:
        train_data (`str`, *optional*): file, folder or Hub id, in place of `--dataset_name`. Preference rows are
            learnt from by their chosen answers.
        probes (`str`): file, folder (its test split) or Hub id of prompts by whose answers alignment is judged.
        judge (`str`, *optional*): name of a judge, or `package.module:function`.
        reward_judge (`str`, *optional*): folder of a fitted reward, in place of a judge: aligned is what it finds
            better than the middle of the pairs it was fitted on.
        fit_reward (`str`, *optional*): preference pairs on which that reward is fitted if its folder is not there.
        every, anchor_every, force_batch, samples, probe_tokens: see `AlignmentDynamicsCallback`.
    """

    train_data: str | None = field(default=None, metadata={"help": "File, folder or Hub id of what is learnt."})
    probes: str = field(default="", metadata={"help": "File, folder or Hub id of the probes."})
    judge: str | None = field(default=None, metadata={"help": "Name of a judge, or package.module:function."})
    reward_judge: str | None = field(default=None, metadata={"help": "Folder of a fitted reward that judges."})
    fit_reward: str | None = field(default=None, metadata={"help": "Preference pairs to fit that reward on."})
    every: int = field(default=20, metadata={"help": "Steps between scores."})
    anchor_every: int | None = field(default=None, metadata={"help": "Steps between anchors; five times `every`."})
    force_batch: int = field(default=48, metadata={"help": "Training rows on which forces are measured."})
    samples: int = field(default=8, metadata={"help": "Answers to each probe."})
    probe_tokens: int = field(default=32, metadata={"help": "Longest answer to a probe."})


def main(
    script_args: ScriptArguments, training_args: SFTConfig, model_args: ModelConfig, watched: DynamicsArguments
) -> None:
    """Loads model and data, trains under watch, saves, pushes if asked to."""
    if not model_args.model_name_or_path:
        raise ValueError("You gave no model. Pass --model_name_or_path with a Hub id or a local folder.")
    source = watched.train_data or script_args.dataset_name
    if not source or not watched.probes:
        raise ValueError("You gave no data or no probes. Pass --dataset_name or --train_data, and --probes.")
    watch = AlignmentDynamicsCallback(
        load_rows(_shipped(watched.probes), script_args.dataset_test_split),
        the_judge(watched, script_args.dataset_train_split),
        every=watched.every,
        anchor_every=watched.anchor_every,
        force_batch=watched.force_batch,
        samples=watched.samples,
        max_new_tokens=watched.probe_tokens,
        seed=training_args.seed,
    )
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),  # type: ignore[dict-item]
    }
    trainer = SFTTrainer(
        model=resolve_model(model_args.model_name_or_path),
        args=training_args,
        train_dataset=_answers(load_rows(_shipped(source), script_args.dataset_train_split)),
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        callbacks=[watch],
    )
    watch.trainer = trainer
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    trainer.accelerator.print(f"Model saved to {training_args.output_dir}.")
    trainer.accelerator.print(f"What moved it: lifealign dynamics {training_args.output_dir}")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)


def the_judge(watched: DynamicsArguments, split: str) -> Any:
    """The judge that was named, or a fitted reward as one.

    Raises:
        ValueError: if there is neither, or both.
    """
    if (watched.judge is None) == (watched.reward_judge is None):
        raise ValueError("Pass one of --judge, with the name of one, and --reward_judge, with the folder of a reward.")
    if watched.judge is not None:
        return resolve_judge(watched.judge)
    folder = Path(str(watched.reward_judge))
    if not (folder / "reward.json").is_file() and watched.fit_reward:
        rows = load_rows(_shipped(watched.fit_reward), split)
        reward = MiniLMBradleyTerryReward.fit(rows, name=folder.name, dataset=Path(watched.fit_reward).name)
        reward.save_pretrained(folder)
        print(f"Fitted {reward} to {folder}.", flush=True)
    reward = MiniLMBradleyTerryReward.from_pretrained(folder)
    return RewardJudge(reward, threshold=float(reward.metadata["mean"]))


def _answers(rows: "Dataset") -> "Dataset":
    """Prompts and completions; of preference rows the chosen answers."""
    if "chosen" in rows.column_names and "completion" not in rows.column_names:
        rows = rows.rename_column("chosen", "completion")
    missing = [name for name in _COLUMNS if name not in rows.column_names]
    if missing:
        raise ValueError(f"The training rows lack {missing}. Give prompt-completion or preference rows.")
    return rows.select_columns(list(_COLUMNS))


def _shipped(source: str) -> str:
    """A source as it is named, or the one that comes with the package where there is no checkout."""
    return source if Path(source).exists() else str(find_recipe(source))


if __name__ == "__main__":
    start_all_cpu_processes()
    groups: Any = (ScriptArguments, SFTConfig, ModelConfig, DynamicsArguments)
    main(*TrlParser(groups).parse_args_and_config())
