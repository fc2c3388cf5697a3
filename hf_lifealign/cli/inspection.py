"""What `lifealign inspect` tells about an adapter: its verified memory, lineage, settings, size and base model."""

from typing import Any

from hf_lifealign._files import read_json
from hf_lifealign.hub.loading import locate_adapter
from hf_lifealign.report.lineage import lineage_table
from hf_lifealign.report.table import markdown_table

_WEIGHTS = "adapter_model.safetensors"
_LORA = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "modules_to_save")


def describe_adapter(adapter: str, revision: str | None = None) -> dict[str, Any]:
    """Reads an adapter's memory, verifies it, and tells what is in it.

    Args:
        adapter (`str`): folder of the adapter, or a Hub repository `owner/name`.
        revision (`str`, *optional*): branch, tag or commit of the repository.

    Raises:
        FileNotFoundError: if there is no such adapter.
        HubError: if the Hub does not give it.
        ValueError: if it has no memory.
        SLMCMemoryError: if the memory is damaged or belongs to other weights.
    """
    folder, origin = locate_adapter(adapter, revision, {})
    config_file = folder / "adapter_config.json"
    if not config_file.is_file():
        raise FileNotFoundError(
            f"{adapter} is no adapter: it has no adapter_config.json. Give a folder like adapters/01-<task> of a run."
        )
    if not (folder / "slmc" / "memory.json").is_file():
        raise ValueError(
            f"{adapter} is an adapter without a memory: it has no slmc/memory.json, so there is no lineage to show. "
            "Only adapters trained with SLMCConfig have one."
        )
    # Verifying reads the tensors, and that needs torch.
    from hf_lifealign.slmc import Memory

    memory = Memory.load(folder / "slmc")
    if not (folder / _WEIGHTS).is_file():
        raise FileNotFoundError(f"{adapter} has a memory but no {_WEIGHTS}. Copy the whole adapter folder again.")
    memory.check_adapter(folder / _WEIGHTS)
    lora = read_json(config_file)
    running = memory.running
    return {
        "adapter": adapter,
        "commit": origin["commit"] if origin else None,
        "base_model": memory.saved["base_model"]["name_or_path"],
        "verified": True,
        "settings": {**memory.settings, **{key: lora.get(key) for key in _LORA if lora.get(key) not in (None, False)}},
        "memory": {
            "vectors_per_unit": memory.length,
            "units": len(memory.history),
            "bytes_on_disk": sum(file.stat().st_size for file in (folder / "slmc").iterdir() if file.is_file()),
        },
        "adapter_bytes": (folder / _WEIGHTS).stat().st_size,
        "running": None if running is None else {"task": running.task, "phase": running.phase, "date": running.date},
        "entries": memory.entries,
    }


def inspection_text(found: dict[str, Any]) -> str:
    """The description as text for a terminal."""
    memory, entries = found["memory"], found["entries"]
    unit = "parameters" if found["settings"].get("space") == "factors" else "modules"
    facts = [
        ("base model", found["base_model"] or "not recorded"),
        ("checksums", "verified: memory files and adapter weights belong together"),
        ("adapter", size_text(found["adapter_bytes"])),
        (
            "memory",
            f"{size_text(memory['bytes_on_disk'])} on disk, {memory['vectors_per_unit']} history vectors for each of "
            f"{memory['units']} {unit}",
        ),
    ]
    if found["commit"]:
        facts.insert(0, ("commit", found["commit"]))
    if found["running"]:
        phase = f" ({found['running']['phase']})" if found["running"]["phase"] else ""
        facts.append(("running", f"{found['running']['task']}{phase}, begun {found['running']['date'][:16]}"))
    facts += [(name, _value_text(value)) for name, value in sorted(found["settings"].items())]
    width = max(len(name) for name, _ in facts)
    lines = [f"Adapter {found['adapter']}", "", *(f"{name:<{width}}  {value}" for name, value in facts), ""]
    lines.append(lineage_table(entries) if entries else "Nothing was consolidated yet.")
    left_out = sorted({name for entry in entries for name in entry["report"].get("unconsolidated", ())})
    if left_out:
        table = markdown_table(("trained but not consolidated",), [[name] for name in left_out])
        lines += ["", table]
    return "\n".join(lines)


def size_text(size: int) -> str:
    """Bytes as people read them: `812 B`, `3.4 MB`."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def _value_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(sorted(str(item) for item in value))
    return "none" if value is None else str(value)
