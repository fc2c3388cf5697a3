"""state.json: what a run was asked to do, how far it is, and whether a restart asks for the same."""

import hashlib
import platform
from dataclasses import MISSING, fields
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from transformers import TrainingArguments

from hf_lifealign._files import read_json, write_json

FORMAT = 1

# Where a run lies, how it is shown, and how it is spread over machines do not decide its result.
_PRESENTATION = {
    "output_dir", "run_name", "report_to", "disable_tqdm", "logging_dir", "project", "trackio_space_id", "local_rank",
    "push_to_hub", "hub_model_id", "hub_token", "hub_strategy", "hub_private_repo", "resume_from_checkpoint",
    "overwrite_output_dir", "log_level", "log_level_replica", "logging_first_step", "save_steps", "save_total_limit",
    "save_strategy", "seed", "data_seed",
}  # fmt: skip


def changed_arguments(args: TrainingArguments | None) -> dict[str, Any] | None:
    """The arguments that differ from their class's defaults, as JSON; what does not decide the result is left out."""
    if args is None:
        return None
    changed: dict[str, Any] = {"class": type(args).__name__}
    for field in fields(args):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = plain(getattr(args, field.name))
        if field.init and field.name not in _PRESENTATION and value != plain(default):
            changed[field.name] = value
    return changed


def plain(value: Any) -> Any:
    """JSON form of a setting; sets are sorted."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(v) for v in value)
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return getattr(value, "value", value)
    if isinstance(value, Enum):
        return plain(value.value)
    if callable(getattr(value, "to_dict", None)):
        return plain(value.to_dict())
    return str(value) if isinstance(value, (torch.dtype, torch.device, Path)) else type(value).__name__


def base_digest(model: torch.nn.Module, whatever_dtype: bool = False) -> str:
    """SHA-256 over the names, shapes and outermost values of a model's parameters: tells bases apart at no cost.

    Args:
        model (`torch.nn.Module`): the base.
        whatever_dtype (`bool`): take the values as bfloat16 has them, so that a base is known in any precision.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().reshape(-1)
        ends = torch.cat([flat[:32], flat[-32:]])
        ends = (ends.bfloat16() if whatever_dtype and ends.is_floating_point() else ends).float().cpu()
        digest.update(f"{name}{tuple(parameter.shape)}{'' if whatever_dtype else parameter.dtype}".encode())
        digest.update(ends.numpy().tobytes())
    return digest.hexdigest()


def adapter_settings(config: PeftConfig) -> dict[str, Any]:
    """The adapter's configuration as JSON, without what PEFT fills in from the model."""
    content = {k: plain(v) for k, v in config.to_dict().items() if v not in (None, {}, [], False)}
    for name in ("base_model_name_or_path", "inference_mode", "peft_version", "auto_mapping", "revision"):
        content.pop(name, None)
    return content


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = ("hf-lifealign", "torch", "transformers", "trl", "peft", "accelerate", "datasets")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Lines that name each setting in which two trees differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(set(old) | set(new)):
            lines += differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        return lines
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{path}[{i}]")]
    return [] if old == new else [f"{path}: was {old!r}, is {new!r}"]


class RunState:
    """The content of state.json, written after every step that a restart may skip.

    Args:
        path (`Path`): the file.
        settings (`dict`): what decides the result.
        labels (`dict[str, str]`): `NN-<task>` by the name of each task, in order.
        is_main_process (`bool`): whether this process writes.
        records (`dict`, *optional*): records of tasks that were trained before, elsewhere.

    Raises:
        ValueError: if the file is there and was written under other settings.
    """

    def __init__(
        self,
        path: Path,
        settings: dict[str, Any],
        labels: dict[str, str],
        is_main_process: bool,
        records: dict[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.is_main_process = is_main_process
        if path.is_file():
            self.content = read_json(path)
            changed = differences(self.content.get("settings"), settings)
            if self.content.get("format") != FORMAT:
                changed = [f"format: was {self.content.get('format')}, is {FORMAT}"]
            if changed:
                raise ValueError(
                    f"The run in {path.parent} was started with other settings:\n  " + "\n  ".join(changed) + "\n"
                    "Going on would mix two runs. Set them back, or choose another output_dir."
                )
        else:
            records = records or {}
            self.content = {
                "format": FORMAT,
                "status": "running",
                "settings": settings,
                "tasks": [
                    {
                        "name": name,
                        "label": label,
                        "status": "done" if name in records else "pending",
                        "record": records.get(name, {"phases": []}),
                    }
                    for name, label in labels.items()
                ],
                "notes": [],
                "versions": versions(),
            }
            self.save()

    def save(self) -> None:
        """Writes the file."""
        if self.is_main_process:
            write_json(self.path, self.content)

    def note(self, text: str) -> bool:
        """Keeps in what the run differs from one that never moved; returns whether that is new."""
        if text in self.content["notes"]:
            return False
        self.content["notes"].append(text)
        self.save()
        return True

    def task(self, index: int) -> dict[str, Any]:
        """Entry of a task."""
        return self.content["tasks"][index]

    def finish_task(self, index: int, record: dict[str, Any]) -> None:
        """Marks a task as done."""
        self.task(index).update(status="done", record=record)
        self.save()

    def finish(self) -> None:
        """Marks the run as done."""
        self.content["status"] = "done"
        self.save()
