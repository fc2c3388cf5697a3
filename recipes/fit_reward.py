"""Fits a reward function on preference pairs, in the style of TRL's scripts.

A linear Bradley-Terry head on frozen sentence embeddings; minutes on a CPU, nearly all of them for the embeddings:

    python recipes/fit_reward.py --dataset_name_or_path data/helpful/train.jsonl --name helpful \
        --output_dir rewards/helpful

Measured on rows of its own, and published:

    python recipes/fit_reward.py --dataset_name_or_path trl-lib/hh-rlhf-helpful-base --test_dataset_name_or_path \
        trl-lib/hh-rlhf-helpful-base --name helpful --output_dir rewards/helpful --push_to_hub --hub_model_id me/helpful

Trainers of TRL take what `hf_lifealign.resolve_reward("rewards/helpful")` gives in `reward_funcs`.
"""

from dataclasses import dataclass, field
from typing import cast

from trl import TrlParser

from hf_lifealign import MiniLMBradleyTerryReward
from hf_lifealign.rewards.head import DEFAULT_EMBEDDING, DEFAULT_L2, DEFAULT_MAX_TOKENS, DEFAULT_TEMPLATE
from hf_lifealign.rewards.texts import load_preferences


@dataclass
class RewardArguments:
    """Arguments of the script.

    Args:
        dataset_name_or_path (`str`): rows with `prompt`, `chosen` and `rejected`: a JSON, JSON Lines or Parquet file,
            or the Hub id of a dataset, of which the split `train` is taken.
        name (`str`): name of the reward, under which TRL logs it.
        output_dir (`str`): folder for the reward.
        test_dataset_name_or_path (`str`, *optional*): rows to measure on, as above, with the split `test` of a dataset.
        held_out (`float`): share of the rows to measure on where no others are given.
        embedding, template, max_tokens, l2: see `MiniLMBradleyTerryReward.fit`.
        dataset_note (`str`, *optional*): what the pairs are, in words, for record and card.
        push_to_hub (`bool`), hub_model_id (`str`), hub_private_repo (`bool`): whether and where to publish.
    """

    dataset_name_or_path: str = field(metadata={"help": "File or Hub id with prompt, chosen and rejected."})
    name: str = field(metadata={"help": "Name of the reward, under which TRL logs it."})
    output_dir: str = field(metadata={"help": "Folder for the reward."})
    test_dataset_name_or_path: str | None = field(default=None, metadata={"help": "Rows to measure the reward on."})
    held_out: float = field(default=0.2, metadata={"help": "Share of the rows to measure on, where no others are."})
    embedding: str = field(default=DEFAULT_EMBEDDING, metadata={"help": "Embedding model: Hub id or folder."})
    template: str = field(default=DEFAULT_TEMPLATE, metadata={"help": "completion, turn or dialogue."})
    max_tokens: int = field(default=DEFAULT_MAX_TOKENS, metadata={"help": "Most tokens of a text that are read."})
    l2: float = field(default=DEFAULT_L2, metadata={"help": "Penalty of the fit."})
    dataset_note: str = field(default="", metadata={"help": "What the pairs are, in words."})
    push_to_hub: bool = field(default=False, metadata={"help": "Publish the reward."})
    hub_model_id: str | None = field(default=None, metadata={"help": "owner/name to publish it as."})
    hub_private_repo: bool = field(default=False, metadata={"help": "Make the repository private."})


def main(args: RewardArguments) -> None:
    """Loads the pairs, fits, saves, publishes if asked to."""
    if args.push_to_hub and not args.hub_model_id:
        raise ValueError("You set --push_to_hub. Set --hub_model_id with owner/name as well.")
    test = args.test_dataset_name_or_path
    reward = MiniLMBradleyTerryReward.fit(
        load_preferences(args.dataset_name_or_path, "train"),
        name=args.name,
        l2=args.l2,
        held_out=load_preferences(test, "test") if test else args.held_out,
        embedding=args.embedding,
        template=args.template,
        max_tokens=args.max_tokens,
        dataset=args.dataset_note,
    )
    reward.save_pretrained(args.output_dir)
    facts = reward.record
    measured = "not measured" if facts.accuracy is None else f"{facts.accuracy:.3f} on {facts.held_out_pairs} pairs"
    print(f"The reward {facts.name} was fitted on {facts.pairs} pairs (accuracy {facts.fit_accuracy:.3f}).")
    print(f"Held-out accuracy: {measured}. Saved to {args.output_dir}.")
    if args.push_to_hub:
        print(f"Published: {reward.push_to_hub(str(args.hub_model_id), private=args.hub_private_repo)}")


if __name__ == "__main__":
    parser = TrlParser((RewardArguments,))  # type: ignore[arg-type]
    main(cast(RewardArguments, parser.parse_args_and_config()[0]))
