"""Trains one preference task with FPO, in the style of TRL's scripts.

Full fine-tuning:

    python recipes/fpo.py --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct \
        --dataset_name trl-lib/ultrafeedback_binarized --output_dir Qwen2.5-0.5B-FPO

An SLMC adapter, consolidated when training ends:

    accelerate launch recipes/fpo.py --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct \
        --dataset_name trl-lib/ultrafeedback_binarized --output_dir Qwen2.5-0.5B-FPO \
        --use_slmc --lora_r 16 --lora_target_modules all-linear --learning_rate 1e-5
"""

from accelerate.logging import get_logger
from datasets import load_dataset
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    TrlParser,
    get_dataset,
    get_quantization_config,
)

from hf_lifealign import FPOConfig, FPOTrainer
from hf_lifealign.cli.adapter_args import SLMCArguments, get_adapter_config
from hf_lifealign.lifelong.launch import start_all_cpu_processes
from hf_lifealign.models import resolve_model

logger = get_logger(__name__)


def main(
    script_args: ScriptArguments,
    training_args: FPOConfig,
    model_args: ModelConfig,
    slmc_args: SLMCArguments,
    dataset_args: DatasetMixtureConfig,
) -> None:
    """Loads model and data, trains, saves, pushes if asked to."""
    if not model_args.model_name_or_path:
        raise ValueError("You gave no model. Pass --model_name_or_path with a Hub id or a local folder.")
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),  # type: ignore[dict-item]
    }

    if dataset_args.datasets:
        dataset = get_dataset(dataset_args)
    elif script_args.dataset_name:
        dataset = load_dataset(
            script_args.dataset_name, name=script_args.dataset_config, streaming=script_args.dataset_streaming
        )
    else:
        raise ValueError("You gave no data. Pass --dataset_name, or a `datasets` mixture in a --config file.")

    evaluates = training_args.eval_strategy != "no"
    trainer = FPOTrainer(
        model=resolve_model(model_args.model_name_or_path),
        args=training_args,
        train_dataset=dataset[script_args.dataset_train_split],
        eval_dataset=dataset[script_args.dataset_test_split] if evaluates else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_adapter_config(model_args, slmc_args),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    trainer.accelerator.print(f"Model saved to {training_args.output_dir}.")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    trainer.end()


if __name__ == "__main__":
    start_all_cpu_processes()
    groups = (ScriptArguments, FPOConfig, ModelConfig, SLMCArguments, DatasetMixtureConfig)
    parser = TrlParser(groups)  # type: ignore[arg-type]
    main(*parser.parse_args_and_config())
