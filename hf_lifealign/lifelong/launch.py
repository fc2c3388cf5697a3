"""Several CPU processes from `accelerate launch --cpu`, which by itself starts them through MPI only."""

import os
import sys
from pathlib import Path

import yaml

_STARTED_BY = ("LOCAL_RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def processes_asked_for(command: list[str]) -> int | None:
    """`num_processes` of an `accelerate launch` command line, from its flags or its config file.

    Args:
        command (`list[str]`): the command line.
    """
    flags: dict[str, str] = {}
    for word, following in zip(command, [*command[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            flags.setdefault(name[2:].replace("-", "_"), value if equals else following)
    if "num_processes" in flags:
        return int(flags["num_processes"])
    config = Path(flags.get("config_file", ""))
    if config.is_file():
        return yaml.safe_load(config.read_text(encoding="utf-8")).get("num_processes")
    return None


def start_all_cpu_processes() -> None:
    """Starts the script again under torchrun if accelerate was asked for several CPU processes and started one.

    accelerate (1.15) hands CPU processes to `mpirun`; without an MPI host file it starts a single process, whatever
    `--num_processes` says, and a run would go on alone without a word.

    Raises:
        RuntimeError: if several were asked for and their number cannot be found.
    """
    env = os.environ
    alone = not any(name in env for name in _STARTED_BY)
    # accelerate names a master exactly when more than one process was asked for
    if not alone or "MASTER_ADDR" not in env or env.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true"):
        return
    import psutil

    parent = psutil.Process().parent()
    number = processes_asked_for(parent.cmdline()) if parent is not None else None
    if number is None:
        raise RuntimeError(
            "accelerate was asked for several CPU processes and started one, since it starts them through MPI only. "
            "Use `torchrun --nproc_per_node N SCRIPT ...` with ACCELERATE_USE_CPU=true instead."
        )
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        env.pop(name, None)
    sys.stdout.flush()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}"]
    os.execv(sys.executable, [*torchrun, *sys.argv])
