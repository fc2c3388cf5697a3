"""SLMCModel: LoRA's tuner with a long-term memory, `begin_task` before a task and `consolidate` after it."""

import copy
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from peft import LoraModel
from peft.tuners.lora.layer import LoraLayer
from peft.utils import AuxiliaryTrainingWrapper
from safetensors import safe_open
from torch import nn

from .config import SLMCConfig
from .consolidation import ConsolidationError, Settings, Staged, consolidate_delta, consolidate_factor
from .distributed import compute_once, first_reason
from .hooks import ConsolidationHook, ConsolidationVetoed, HookHandle
from .linalg import storage_dtype
from .memory import MEMORY_DIR, Memory, RunningPhase, SLMCMemoryError, describe_base, fingerprint
from .report import ConsolidationReport

logger = logging.getLogger(__name__)


@dataclass
class AdaptedModule:
    """One LoRA layer of the owning adapter: its name in the base model, its factors and its scaling s."""

    name: str
    A: nn.Parameter
    B: nn.Parameter
    scaling: float
    suffixes: tuple[str, str]

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """A and B under the names they have in a saved adapter, without ``base_model.model.``."""
        return {f"{self.name}.{self.suffixes[0]}": self.A, f"{self.name}.{self.suffixes[1]}": self.B}


class SLMCModel(LoraModel):
    """LoRA with Short-to-Long Memory Consolidation (LifeAlign, arXiv 2509.17183).

    The first SLMC adapter injected owns the memory. Further adapters, such as TRL's frozen "ref" copy, are plain LoRA:
    they are never consolidated and saving them writes no memory. All methods are reached through `PeftModel` as well.
    """

    # Class-level defaults: LoraModel's constructor injects the first adapter before this class could set anything.
    _memory: Memory | None = None
    _memory_adapter: str | None = None
    _consolidation_hooks: list[ConsolidationHook]

    # ------------------------------------------------------------------ injection and ownership

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        config = self.peft_config[adapter_name]
        shared = any(other is config for name, other in self.peft_config.items() if name != adapter_name)
        owned_elsewhere = isinstance(config, SLMCConfig) and config.owner not in (None, self)
        if shared or owned_elsewhere:
            # TRL adds "ref" with the very object of "default"; two adapters must not share one owner.
            config = copy.copy(config)
            self.peft_config[adapter_name] = config
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        if not isinstance(config, SLMCConfig):
            return
        if config.space == "delta":
            self._check_delta_layers(adapter_name)
        if self._memory_adapter is None:
            self._memory_adapter = adapter_name
            self._memory = Memory(settings=config.slmc_settings())
            self._consolidation_hooks = []
            config.bind(self)

    def _check_delta_layers(self, adapter_name: str) -> None:
        for module in self._adapted_modules(adapter_name):
            if module.A.dim() != 2:
                raise ValueError(
                    f"You set space='delta' and adapt {module.name!r}, a convolution. Its factors are not matrices "
                    "whose product is the change. Set space='factors', or leave it out of target_modules."
                )
            if module.scaling <= 0:
                raise ValueError(
                    f"You set space='delta' and lora_alpha so that {module.name!r} is scaled by {module.scaling}. The "
                    "change would be zero or reversed. Set lora_alpha > 0."
                )

    def _check_target_module_compatiblity(self, peft_config: Any, model: nn.Module, target_name: str) -> None:
        # PEFT keeps LoRA off some layers of Mamba models by the type's name; SLMC trains the same parameters.
        plain: Any = SimpleNamespace(peft_type="LORA")
        super()._check_target_module_compatiblity(plain, model, target_name)

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        if adapter_name == self._memory_adapter:
            self._memory_adapter, self._memory = None, None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A copied or unpickled model owns the copied memory, so its configuration must point to the copy.
        if self._memory_adapter is not None:
            self._owner_config.bind(self)

    # ------------------------------------------------------------------ the public life of an adapter

    @property
    def memory_adapter(self) -> str:
        """Name of the adapter that owns the memory."""
        if self._memory_adapter is None:
            raise SLMCMemoryError("This model has no SLMC adapter any more. Add one before using its memory.")
        return self._memory_adapter

    @property
    def _owner_config(self) -> SLMCConfig:
        return cast(SLMCConfig, self.peft_config[self.memory_adapter])

    @property
    def memory(self) -> Memory:
        """The long-term memory of the owning adapter."""
        if self._memory is None:
            raise SLMCMemoryError("This model has no SLMC adapter any more. Add one before using its memory.")
        return self._memory

    @property
    def is_task_running(self) -> bool:
        """Whether `begin_task` was called and neither `consolidate` nor `abandon_task` has followed."""
        return self._memory is not None and self._memory.running is not None

    def begin_task(self, name: str, phase: str | None = None, force: bool = False) -> None:
        """Remember the adapter's present weights as W_prev of a new task.

        Args:
            name (`str`): the task.
            phase (`str`, *optional*): a part of it that is consolidated on its own, for instance "sft" or "fpo".
            force (`bool`): abandon a task that is running instead of raising.

        Raises:
            RuntimeError: if a task is running already.
            ValueError: if the adapter is frozen.
        """
        running = self.memory.running
        if running is not None and not force:
            raise RuntimeError(
                f"You began {name!r} while {running.task!r} (phase {running.phase!r}) is running since {running.date}. "
                "Its start would be lost. Call consolidate() or abandon_task() first, or resume its training with "
                "resume_from_checkpoint."
            )
        parameters = self._adapter_parameters()
        if not any(parameter.requires_grad for parameter in parameters.values()):
            raise ValueError(
                f"You began {name!r} but adapter {self.memory_adapter!r} is frozen, so nothing would be learnt. Load "
                "it with is_trainable=True or call set_adapter()."
            )
        empty = [key for key, parameter in parameters.items() if parameter.numel() == 0]
        if empty:
            raise ValueError(
                f"You began {name!r} and {empty[0]} is empty on this process, as DeepSpeed ZeRO-3 leaves parameters. "
                "There would be nothing to consolidate. Train with DDP or ZeRO-1/2."
            )
        previous = {
            key: parameter.detach().to("cpu", storage_dtype(parameter.dtype), copy=True)
            for key, parameter in parameters.items()
        }
        self.memory.running = RunningPhase(name, phase, _now(), previous)

    def abandon_task(self, restore: bool = False) -> None:
        """Forget that a task is running; with `restore` also put the weights back to its start.

        Raises:
            RuntimeError: if no task is running.
        """
        running = self._running("abandon_task")
        if restore:
            with torch.no_grad():
                for key, parameter in self._adapter_parameters().items():
                    parameter.copy_(running.previous[key])
        self.memory.running = None

    def consolidate(self) -> ConsolidationReport:
        """Turn what the running task changed into long-term memory; one call is one history entry.

        All or nothing: on any error and on a veto, weights, memory and the running task stay as they are. With several
        processes rank 0 computes and every rank receives the same result.

        Raises:
            RuntimeError: if no task is running.
            ConsolidationError: on NaN/Inf or a changed parameter, with the module and the cause.
            ConsolidationVetoed: if a hook said no.
        """
        running = self._running("consolidate")
        started = time.perf_counter()
        modules = list(self._adapted_modules(self.memory_adapter))
        device = modules[0].A.device if modules else torch.device("cpu")
        staged = compute_once(lambda: self._compute(running, modules), device)
        report = ConsolidationReport(
            task=running.task,
            phase=running.phase,
            index=len(self.memory.entries),
            modules=[unit.report for unit in staged.values()],
            unconsolidated=self._unconsolidated(),
            seconds=time.perf_counter() - started,
        )
        reason = first_reason(self._ask_hooks(report))
        if reason:
            raise ConsolidationVetoed(reason, report)
        self._write(staged, modules, report)
        for hook in list(self._consolidation_hooks):
            hook("after", report)
        return report

    def register_consolidation_hook(self, hook: ConsolidationHook) -> HookHandle:
        """Call `hook(stage, report)` around every consolidation.

        At stage "before" nothing is written yet: returning a non-empty string vetoes, and so does raising. At "after"
        the new weights are in place. With several processes hooks run on each; one veto counts for all.

        Returns:
            A handle whose `remove()` takes the hook out again.
        """
        self.memory  # noqa: B018 - raises where there is nothing to consolidate
        self._consolidation_hooks.append(hook)
        return HookHandle(self._consolidation_hooks, hook)

    # ------------------------------------------------------------------ computing and applying

    def _running(self, called: str) -> RunningPhase:
        running = self.memory.running
        if running is None:
            raise RuntimeError(
                f"You called {called}() and no task is running, so there is no start to compare with. Call "
                "begin_task(name) before training."
            )
        return running

    def _settings(self) -> Settings:
        return Settings(**self._owner_config.slmc_settings())

    def _units(self, modules: Sequence[AdaptedModule]) -> dict[str, dict[str, nn.Parameter]]:
        """Unit of consolidation -> its parameters by name: each factor, or both factors of a module."""
        if self.memory.space == "delta":
            return {module.name: module.parameters for module in modules}
        return {key: {key: value} for module in modules for key, value in module.parameters.items()}

    def _adapter_parameters(self) -> dict[str, nn.Parameter]:
        modules = self._adapted_modules(self.memory_adapter)
        return {key: value for module in modules for key, value in module.parameters.items()}

    def _compute(self, running: RunningPhase, modules: Sequence[AdaptedModule]) -> dict[str, Staged]:
        settings, memory = self._settings(), self.memory
        by_name = {module.name: module for module in modules}
        units = self._units(modules)
        expected = {key for parameters in units.values() for key in parameters}
        missing = sorted(expected ^ set(running.previous))
        if missing:
            raise ConsolidationError(
                f"{missing[0]}: the parameter exists only now or only at the start of the task. Nothing was modified. "
                "Do not change target_modules while a task runs."
            )
        staged: dict[str, Staged] = {}
        with torch.no_grad():
            for unit, parameters in units.items():
                now = [parameter.detach() for parameter in parameters.values()]
                before = [running.previous[key] for key in parameters]
                history = memory.history.get(unit, [])
                try:
                    if memory.space == "factors":
                        staged[unit] = consolidate_factor(unit, before[0], now[0], history, settings)
                    else:
                        staged[unit] = consolidate_delta(
                            unit,
                            (before[0], before[1]),
                            (now[0], now[1]),
                            by_name[unit].scaling,
                            history,
                            memory.gram.get(unit),
                            settings,
                            len(memory.entries),
                        )
                except torch.linalg.LinAlgError as error:
                    raise ConsolidationError(
                        f"{unit}: its decomposition failed: {error}. Nothing was modified. Report it with the "
                        "adapter's folder; training on and consolidating again may get past it."
                    ) from error
        return staged

    def _ask_hooks(self, report: ConsolidationReport) -> str | None:
        for hook in list(self._consolidation_hooks):
            try:
                reason = hook("before", report)
            except Exception as error:
                if torch.distributed.is_available() and torch.distributed.is_initialized():
                    # Raising here would leave the other ranks waiting; as a veto it reaches them all.
                    logger.exception("A consolidation hook failed.")
                    return f"a hook raised {type(error).__name__}: {error}"
                raise
            if reason:
                return str(reason)
        return None

    def _write(self, staged: dict[str, Staged], modules: Sequence[AdaptedModule], report: ConsolidationReport) -> None:
        units = self._units(modules)
        with torch.no_grad():
            for unit, result in staged.items():
                for parameter, weight in zip(units[unit].values(), result.weights, strict=True):
                    parameter.copy_(weight)
                self.memory.apply(unit, result)
        self.memory.settings = self._owner_config.slmc_settings()
        self.memory.entries.append(
            {
                "index": report.index,
                "task": report.task,
                "phase": report.phase,
                "date": _now(),
                "adapter_sha256": fingerprint({key: value.data for key, value in self._adapter_parameters().items()}),
                "slmc": self.memory.settings,
                "report": report.to_dict(),
            }
        )
        self.memory.running = None

    # ------------------------------------------------------------------ saving and loading

    def attach_memory(self, memory: Memory, where: str = "the memory") -> None:
        """Take over a loaded memory after checking that it belongs to this base model and adapter.

        Args:
            memory (`Memory`): from `Memory.load`.
            where (`str`): names the folder in errors.

        Raises:
            SLMCMemoryError: if base model, space or shapes differ.
        """
        config = self._owner_config
        if memory.settings["space"] != config.space:
            raise SLMCMemoryError(
                f"{where} was consolidated in space {memory.settings['space']!r} and the adapter is set to "
                f"{config.space!r}. A history cannot change its space: set space={memory.settings['space']!r}."
            )
        memory.check_base(self._base_description()["architecture"], where)
        modules = list(self._adapted_modules(self.memory_adapter))
        shapes = {
            unit: tuple(tuple(parameter.shape) for parameter in parameters.values())
            for unit, parameters in self._units(modules).items()
        }
        memory.check_shapes(shapes, dict(self._adapter_parameters()))
        self._memory = memory

    def save_memory(self, config: SLMCConfig, directory: str) -> None:
        """Write ``slmc/`` beside a saved adapter, if `config` is that of the adapter that owns the memory.

        Raises:
            SLMCMemoryError: if the adapter beside it was saved as a pickle.
        """
        if self._memory_adapter is None or self.peft_config.get(self._memory_adapter) is not config:
            return
        weights = Path(directory) / "adapter_model.safetensors"
        if not weights.is_file():
            if (Path(directory) / "adapter_model.bin").exists():
                raise SLMCMemoryError(
                    f"You saved the adapter to {directory} with safe_serialization=False. A memory is only kept beside "
                    "weights whose fingerprint can be checked without running a pickle. Save with safetensors."
                )
            # Only the configuration is being saved: there are no weights the memory could belong to.
            return
        with safe_open(weights, framework="pt") as tensors:
            saved = fingerprint({key: tensors.get_tensor(key) for key in tensors.keys() if "lora_" in key})  # noqa: SIM118
        self.memory.save(Path(directory) / MEMORY_DIR, saved, self._base_description())

    def _base_description(self) -> dict[str, Any]:
        modules = {
            module.name: [module.B.shape[0], module.A.shape[1]] for module in self._adapted_modules(self.memory_adapter)
        }
        config = self._owner_config
        name = config.base_model_name_or_path or getattr(self.model, "name_or_path", None)
        return describe_base(name, getattr(self.model, "config", None), modules)

    # ------------------------------------------------------------------ what belongs to the adapter

    def _adapted_modules(self, adapter_name: str) -> list[AdaptedModule]:
        found = []
        for name, layer in self.model.named_modules():
            if not isinstance(layer, LoraLayer):
                continue
            if adapter_name in layer.lora_A:
                A: Any = layer.lora_A[adapter_name].weight
                B: Any = layer.lora_B[adapter_name].weight
                suffixes = ("lora_A.weight", "lora_B.weight")
            elif adapter_name in layer.lora_embedding_A:
                A, B = layer.lora_embedding_A[adapter_name], layer.lora_embedding_B[adapter_name]
                suffixes = ("lora_embedding_A", "lora_embedding_B")
            else:
                continue
            found.append(AdaptedModule(name, A, B, float(layer.scaling[adapter_name]), suffixes))
        return found

    def _unconsolidated(self) -> list[str]:
        """Parameters the adapter trains and saves as they are: modules_to_save and trainable tokens."""
        return [
            f"{name}.{key}"
            for name, module in self.model.named_modules()
            if isinstance(module, AuxiliaryTrainingWrapper)
            for key, _ in module.named_parameters()
            if self.memory_adapter in key.split(".")
        ]


def find_tuner(model: nn.Module) -> SLMCModel:
    """The `SLMCModel` inside a model, a `PeftModel` or a wrapper of one.

    Raises:
        TypeError: if there is none.
    """
    for module in model.modules():
        if isinstance(module, SLMCModel):
            return module
    raise TypeError(
        f"The model is a {type(model).__name__} without an SLMC adapter. Make it with get_peft_model(model, "
        "SLMCConfig(...)), pass peft_config=SLMCConfig(...) to the trainer, or use load_adapter()."
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
