"""load_routed: the views of a routed memory as plain adapters of one model, and the gate that chooses among them."""

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lifealign.routing.features import feature_count, prompt_features
from hf_lifealign.routing.gate import DTYPE, FOLDER, LEAN, Gate, view_weights

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


class RoutedPolicy:
    """A model with an adapter for each view of a routed memory, and the gate that tells which one answers a prompt.

    Example:

    ```python
    >>> policy = load_routed("Qwen/Qwen2.5-0.5B-Instruct", "me/assistant-lifelong", tokenizer)
    >>> policy.route(["How do I pick a lock?"])
    ['harmless']
    >>> policy.generate(["How do I pick a lock?"], max_new_tokens=64)
    ```

    Each view is plain LoRA: `policy.model.save_pretrained(folder)` writes all of them for any server that holds several
    adapters, and `policy.model.generate(..., adapter_names=[policy.adapters[t] for t in policy.route(prompts)])` is
    PEFT's own way of answering a mixed batch.

    Args:
        model ([`~peft.PeftModel`]): with the adapters.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): as in training.
        gate ([`Gate`]): over the features of the model's base.
        adapters (`Mapping[str, str]`): name of the adapter of each task's view.
    """

    def __init__(
        self, model: Any, tokenizer: "PreTrainedTokenizerBase", gate: Gate, adapters: Mapping[str, str]
    ) -> None:
        if tokenizer.pad_token is None:
            # as in a life, and the user's own stays as it is
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.pad_token = tokenizer.eos_token
        self.model, self.tokenizer, self.gate, self.adapters = model, tokenizer, gate, dict(adapters)

    def route(self, prompts: Sequence[Any], batch_size: int = 8) -> list[str]:
        """The task to which each prompt belongs.

        Args:
            prompts (`Sequence`): each a string, or a list of messages; as in the training rows.
            batch_size (`int`): prompts of a forward pass.
        """
        from hf_lifealign.lifelong.evaluation import prompt_ids

        ids = prompt_ids(self.tokenizer, [{"prompt": prompt} for prompt in prompts])
        return self.gate.route(prompt_features(self.model, ids, int(self.tokenizer.pad_token_id or 0), batch_size))

    def generate(
        self,
        prompts: Sequence[Any],
        max_new_tokens: int = 64,
        batch_size: int = 8,
        tasks: Sequence[str] | None = None,
    ) -> list[str]:
        """Greedy answers, each by the view of the task its prompt belongs to; the active adapter stays what it was.

        Args:
            prompts (`Sequence`): as in [`~RoutedPolicy.route`].
            max_new_tokens (`int`): of an answer, at most.
            batch_size (`int`): prompts of a forward pass.
            tasks (`Sequence[str]`, *optional*): the task of each prompt, where the caller knows it; the gate is not
                asked then.

        Raises:
            ValueError: if there are not as many tasks as prompts, or one has no view.
        """
        from hf_lifealign.lifelong.evaluation import generate_answers

        tasks = self.route(prompts, batch_size) if tasks is None else tasks
        strange = sorted(set(tasks) - set(self.adapters))
        if strange or len(tasks) != len(prompts):
            raise ValueError(
                f"You gave {len(prompts)} prompts and {len(tasks)} tasks"
                + (f", among them {strange}" if strange else "")
                + f". Give each prompt one of {list(self.adapters)}, or leave tasks out."
            )
        active = self.model.active_adapters
        answers: dict[int, str] = {}
        try:
            for task in sorted(set(tasks)):
                indices = [i for i, other in enumerate(tasks) if other == task]
                rows = [{"prompt": prompts[i]} for i in indices]
                self.model.base_model.set_adapter(self.adapters[task], inference_mode=True)
                told = generate_answers(self.model, self.tokenizer, rows, max_new_tokens, batch_size)
                answers |= zip(indices, told, strict=True)
        finally:
            self.model.base_model.set_adapter(active, inference_mode=True)
        return [answers[i] for i in range(len(prompts))]


def load_routed(
    base: "nn.Module | str | os.PathLike[str]",
    path_or_repo: str | os.PathLike[str],
    tokenizer: "PreTrainedTokenizerBase",
    revision: str | None = None,
    **kwargs: Any,
) -> RoutedPolicy:
    """Loads what a life with the strategy `"routed_memory"` learnt.

    From a repository only safetensors and JSON are fetched, and checked against its lineage.

    Args:
        base (`torch.nn.Module` or `str`): the base model, or its Hub id or path (loaded as a causal language model,
            in the precision of the life).
        path_or_repo (`str`): the folder of a task (`runs/NAME/adapters/NN-task`), or a Hub repository.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): of the base.
        revision (`str`, *optional*): branch, tag or commit of the repository.
        kwargs: `token`, `cache_dir`, `local_files_only`, `subfolder`; others go to `PeftModel.from_pretrained`.

    Returns:
        [`RoutedPolicy`]: whose adapter `"default"` is the mean of all updates, as it loads without this package.

    Raises:
        FileNotFoundError: if no routed memory lies there.
        ValueError: if it is damaged, or of another base.
        DamagedRevisionError: if a file of a repository is not what its lineage says.
        HubError: if the Hub refuses or cannot be reached.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from hf_lifealign.hub.contents import CONFIG, STRATEGIES, WEIGHTS
    from hf_lifealign.hub.loading import locate_adapter
    from hf_lifealign.models import resolve_model

    needed = f"{STRATEGIES}/{FOLDER}/"
    folder, _ = locate_adapter(
        path_or_repo, revision, kwargs, only=lambda path: path in (CONFIG, WEIGHTS) or path.startswith(needed)
    )
    gate, told, updates = _read_memory(folder.resolve())
    model: Any = base
    if isinstance(base, str | os.PathLike):
        dtype = getattr(torch, told.get(DTYPE, "float32"))
        model = AutoModelForCausalLM.from_pretrained(resolve_model(str(base)), dtype=dtype)
    if feature_count(model) != gate.means.shape[1]:
        raise ValueError(
            f"The gate in {folder} reads {gate.means.shape[1]} features of a prompt, and {type(model).__name__} has "
            f"{feature_count(model)}. Give the base that the life began with."
        )
    model = PeftModel.from_pretrained(model, str(folder), **kwargs)
    return RoutedPolicy(model, tokenizer, gate, _add_views(model, gate, updates, float(told.get(LEAN, "0"))))


def _read_memory(folder: Path) -> tuple[Gate, Mapping[str, str], dict[str, Path]]:
    """The gate in a task's folder, what it tells, and the file of each task's update."""
    places = (folder / "slmc" / "strategies" / FOLDER, folder.parent.parent / "strategies" / folder.name / FOLDER)
    for place in places:
        gates = sorted(place.glob("gate-*.safetensors"))
        if not gates:
            continue
        gate, told = Gate.load(gates[-1])
        files = {task: place / f"{i:02d}-{task}.safetensors" for i, task in enumerate(gate.tasks, start=1)}
        missing = [file.name for file in files.values() if not file.is_file()]
        if missing:
            raise ValueError(f"{place} lacks {missing}, which the gate leads to. Take another revision.")
        return gate, told, files
    raise FileNotFoundError(
        f"There is no routed memory in {folder}. Give the folder of a task of a life with the strategy "
        "'routed_memory', or the repository to which it was pushed."
    )


def _add_views(model: Any, gate: Gate, files: Mapping[str, Path], lean: float) -> dict[str, str]:
    """Adds an adapter for each task's view; returns their names by task."""
    from peft import set_peft_model_state_dict

    from hf_lifealign.strategies.merging import summed_updates
    from hf_lifealign.strategies.tensors import read_tensors

    updates = {task: read_tensors(file) for task, file in files.items()}
    config, names = model.peft_config["default"], {}
    for task, file in files.items():
        view, _ = summed_updates(model, updates, view_weights(gate.tasks, task, lean))
        # a dot would divide the name of a module
        names[task] = file.stem.replace(".", "_")
        model.add_adapter(names[task], config)
        plain = {name.replace(".default.", "."): tensor for name, tensor in view.items()}
        result: Any = set_peft_model_state_dict(model, plain, names[task])
        if strange := result.unexpected_keys:
            raise ValueError(f"{file} names {strange[:3]}, which this model does not have. It is of another base.")
    model.requires_grad_(False)
    return names
