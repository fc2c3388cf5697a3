"""Long-term memory of one SLMC adapter: history, lineage and running task, and their verified files in ``slmc/``."""

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_lifealign._files import replacing, write_json

from .consolidation import Staged, Vector

MEMORY_DIR = "slmc"
TENSOR_FILE = "memory.safetensors"
JSON_FILE = "memory.json"
FORMAT = "slmc-memory"
FORMAT_VERSION = 1
_SLOTS = {"factors": ("rsm",), "delta": ("left", "right")}
_KEYS = {"format", "format_version", "slmc", "adapter", "base_model", "entries", "running", "tensors", "checksum"}


class SLMCMemoryError(RuntimeError):
    """A memory is missing, damaged, or belongs to another adapter or base model."""


@dataclass
class RunningPhase:
    """A task that was begun and is not consolidated yet.

    Args:
        task (`str`), phase (`str`, *optional*), date (`str`): what was begun, and when (ISO 8601, UTC).
        previous (`dict[str, torch.Tensor]`): every adapted parameter at the start (W_prev), in float32 or wider.
    """

    task: str
    phase: str | None
    date: str
    previous: dict[str, Tensor]


@dataclass
class Memory:
    """What an adapter remembers of its life; tensors lie on the CPU in float32 or wider.

    Args:
        settings (`dict`): SLMC's settings, see `SLMCConfig.slmc_settings`.
        history (`dict[str, list[Vector]]`): for each parameter ("factors") or module ("delta") its history vectors.
        gram (`dict[str, torch.Tensor]`): in "delta" space, inner products of each module's vectors.
        entries (`list[dict]`): the lineage: one record for each consolidation.
        running (`RunningPhase`, *optional*): the task under way.
        saved (`dict`): after `load`, the header of the files: adapter fingerprint and base model.
    """

    settings: dict[str, Any]
    history: dict[str, list[Vector]] = field(default_factory=dict)
    gram: dict[str, Tensor] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)
    running: RunningPhase | None = None
    saved: dict[str, Any] = field(default_factory=dict)

    @property
    def space(self) -> str:
        return str(self.settings["space"])

    @property
    def length(self) -> int:
        """Number of history vectors of each unit."""
        return max((len(vectors) for vectors in self.history.values()), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors, the running task's snapshot included."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def apply(self, unit: str, staged: Staged) -> None:
        """Take over a computed result; nothing here can fail."""
        self.history[unit] = list(staged.added) if staged.replaces else [*self.history.get(unit, []), *staged.added]
        if staged.gram is not None:
            self.gram[unit] = staged.gram

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under the names they have in ``memory.safetensors``."""
        slots = _SLOTS[self.space]
        named = {
            f"history/{unit}/{index:05d}/{slot}": part
            for unit, vectors in self.history.items()
            for index, vector in enumerate(vectors)
            for slot, part in zip(slots, vector, strict=True)
        }
        named.update({f"gram/{unit}": gram for unit, gram in self.gram.items()})
        if self.running is not None:
            named.update({f"previous/{name}": tensor for name, tensor in self.running.previous.items()})
        return dict(sorted(named.items()))

    def save(self, directory: str | os.PathLike[str], adapter_fingerprint: str, base_model: dict[str, Any]) -> None:
        """Write both files into `directory`, each atomically, the JSON with the checksums last.

        Args:
            directory: the adapter's ``slmc`` folder.
            adapter_fingerprint (`str`): see `fingerprint`, of the adapter's tensors saved beside it.
            base_model (`dict`): see `describe_base`.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / TENSOR_FILE) as partial:
            # No metadata: safetensors writes it in random order, and equal memories must give equal bytes.
            save_file({name: tensor.contiguous() for name, tensor in self.tensors().items()}, partial)
        running = None
        if self.running is not None:
            running = {"task": self.running.task, "phase": self.running.phase, "date": self.running.date}
        header = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "slmc": self.settings,
            "adapter": {"fingerprint": adapter_fingerprint},
            "base_model": base_model,
            "entries": self.entries,
            "running": running,
            "tensors": {"file": TENSOR_FILE, "sha256": file_sha256(folder / TENSOR_FILE), "history": self.length},
        }
        header["checksum"] = _json_sha256(header)
        write_json(folder / JSON_FILE, header)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "Memory":
        """Read and verify both files.

        Raises:
            SLMCMemoryError: naming the file and what is wrong with it.
        """
        folder = Path(directory)
        header = _read_header(folder / JSON_FILE)
        path = folder / TENSOR_FILE
        if not path.is_file():
            raise SLMCMemoryError(f"{path} is missing beside {JSON_FILE}. Copy the whole adapter folder again.")
        if file_sha256(path) != header["tensors"]["sha256"]:
            raise SLMCMemoryError(
                f"{path} does not match the sha256 in {JSON_FILE}: it was truncated, edited, or comes from another "
                "save. Copy the whole adapter folder again from where it was saved."
            )
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise SLMCMemoryError(f"{path} is not a readable safetensors file: {error}.") from error
        memory = cls(settings=dict(header["slmc"]), entries=list(header["entries"]), saved=header)
        memory._fill(path, tensors, header)
        return memory

    def _fill(self, path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        collected: dict[str, dict[int, dict[str, Tensor]]] = {}
        previous: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise SLMCMemoryError(f"{path} holds NaN or Inf in {name!r}. Go back to an earlier save.")
            kind, _, rest = name.partition("/")
            if kind == "gram":
                self.gram[rest] = tensor
            elif kind == "previous":
                previous[rest] = tensor
            elif kind == "history" and rest.count("/") >= 2:
                unit, index, slot = rest.rsplit("/", 2)
                collected.setdefault(unit, {}).setdefault(int(index), {})[slot] = tensor
            else:
                raise SLMCMemoryError(f"{path} holds an unknown tensor {name!r}. Load it with a newer hf_lifealign.")
        slots, count = _SLOTS[self.space], int(header["tensors"]["history"])
        for unit, vectors in collected.items():
            if sorted(vectors) != list(range(count)) or any(set(vector) != set(slots) for vector in vectors.values()):
                raise SLMCMemoryError(
                    f"{path} holds {len(vectors)} history vectors of {unit!r} where {JSON_FILE} says {count} of "
                    f"{'/'.join(slots)}. Copy the whole adapter folder again."
                )
            self.history[unit] = [tuple(vectors[i][slot] for slot in slots) for i in range(count)]
        running = header["running"]
        if (running is not None) != bool(previous):
            raise SLMCMemoryError(f"{path} and {JSON_FILE} disagree on whether a task is running. Copy both again.")
        if running is not None:
            self.running = RunningPhase(running["task"], running["phase"], running["date"], previous)

    def check_adapter(self, adapter_file: str | os.PathLike[str]) -> None:
        """Compare the fingerprint of the LoRA tensors in `adapter_file` with the one the memory was saved with.

        Raises:
            SLMCMemoryError: if the memory was saved beside other weights.
        """
        found, expected = fingerprint(load_file(adapter_file)), self.saved["adapter"]["fingerprint"]
        if found != expected:
            raise SLMCMemoryError(
                f"{adapter_file} holds other LoRA weights (fingerprint {found[:12]}) than those "
                f"{MEMORY_DIR}/{JSON_FILE} was saved with ({expected[:12]}). Copy the whole adapter folder again, or "
                "start a new life with these weights: PeftModel.from_pretrained(base, path, config=SLMCConfig(...), "
                "is_trainable=True)."
            )

    def check_base(self, architecture: dict[str, Any], where: str) -> None:
        """Compare the base model's architecture with the one the memory was saved with.

        Raises:
            SLMCMemoryError: naming the first property that differs.
        """
        expected = self.saved["base_model"]["architecture"]
        for key in sorted(set(expected) | set(architecture)):
            if expected.get(key) != architecture.get(key):
                raise SLMCMemoryError(
                    f"{where}: the memory belongs to another base model: {key} is {_short(expected.get(key))} there "
                    f"and {_short(architecture.get(key))} here. Load it onto "
                    f"{self.saved['base_model']['name_or_path']!r}."
                )

    def check_shapes(self, shapes: dict[str, tuple[tuple[int, ...], ...]], parameters: dict[str, Tensor]) -> None:
        """Check that history and snapshot fit the adapter.

        Args:
            shapes: for each unit the shapes of its parameters: `((m, n),)`, or `(A (r, n), B (m, r))` in "delta".
            parameters: the adapter's parameters by name.

        Raises:
            SLMCMemoryError: naming the unit or parameter.
        """
        if self.history and set(self.history) != set(shapes):
            odd = sorted(set(self.history) ^ set(shapes))[0]
            raise SLMCMemoryError(f"The memory and the adapter do not cover the same modules, for example {odd!r}.")
        for unit, vectors in self.history.items():
            for vector in vectors:
                if self.space == "factors":
                    fits = vector[0].shape == shapes[unit][0]
                else:
                    (_, n), (m, _) = shapes[unit]
                    k = vector[0].shape[0]
                    fits = vector[0].shape == (k, m) and vector[1].shape == (k, n)
                if not fits:
                    raise SLMCMemoryError(f"The memory of {unit!r} has other shapes than the adapter.")
            if self.space == "delta" and self.gram[unit].shape != (len(vectors), len(vectors)):
                raise SLMCMemoryError(f"The Gram matrix of {unit!r} does not fit its history.")
        if self.running is not None:
            previous = {name: tensor.shape for name, tensor in self.running.previous.items()}
            if previous != {name: tensor.shape for name, tensor in parameters.items()}:
                raise SLMCMemoryError("The running task's snapshot does not fit the adapter's parameters.")


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """sha256 over the names, dtypes, shapes and bytes of the LoRA tensors among `tensors`, whatever their order."""
    prefix = "base_model.model."
    digest = hashlib.sha256()
    for name, tensor in sorted((name.removeprefix(prefix), tensor) for name, tensor in tensors.items()):
        if "lora_" not in name:
            continue
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def public_name(name_or_path: str | None) -> str | None:
    """A Hub id as it is; of a local path only its last component, so that no machine's folders are published."""
    if not name_or_path:
        return None
    local = name_or_path.startswith((".", "~")) or os.path.isabs(name_or_path) or name_or_path.count("/") > 1
    # A Windows path is local on every machine that reads the file.
    windows = "\\" in name_or_path or re.match(r"[A-Za-z]:", name_or_path) is not None
    local = local or windows or os.path.isdir(name_or_path)
    return re.split(r"[\\/]", name_or_path.rstrip("\\/"))[-1] if local else name_or_path


def describe_base(name_or_path: str | None, config: Any, modules: dict[str, list[int]]) -> dict[str, Any]:
    """Name and architecture of the base model as they are kept in ``memory.json``.

    Args:
        name_or_path (`str`, *optional*): Hub id or local path.
        config: the model's configuration, if it has one.
        modules (`dict`): `[out_features, in_features]` of each adapted module.
    """
    architecture: dict[str, Any] = {"modules": modules}
    for key in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size"):
        value = getattr(config, key, None)
        architecture[key] = value if isinstance(value, str | int) else None
    return {
        "name_or_path": public_name(name_or_path),
        "architecture": architecture,
        "fingerprint": _json_sha256(architecture),
    }


def _read_header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SLMCMemoryError(f"{path} is missing. The folder holds no SLMC memory.")
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SLMCMemoryError(f"{path} is not valid JSON: {error}. It was truncated or edited.") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise SLMCMemoryError(f"{path} is not an SLMC memory: its 'format' is not {FORMAT!r}.")
    if header.get("format_version") != FORMAT_VERSION:
        raise SLMCMemoryError(
            f"{path} has format version {header.get('format_version')!r}; this hf_lifealign reads {FORMAT_VERSION}. "
            "Install the hf_lifealign that wrote it, or a newer one."
        )
    if set(header) != _KEYS:
        raise SLMCMemoryError(f"{path} lacks or adds keys: {sorted(set(header) ^ _KEYS)}. It was edited.")
    if _json_sha256({key: value for key, value in header.items() if key != "checksum"}) != header["checksum"]:
        raise SLMCMemoryError(f"{path} does not match its own checksum: it was edited. Copy the adapter folder again.")
    return header


def _json_sha256(value: Any) -> str:
    """Hash of JSON without dates and durations, so that the same life has the same checksum whenever it was lived."""
    value = _timeless(value)
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in ("date", "seconds")}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
