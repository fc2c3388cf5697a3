"""Times SLMC's consolidation of a 7B model's adapter against the published algorithm and against a dense SVD.

No model is built: only LoRA tensors of a 7B model's shapes, through the very functions `SLMCModel.consolidate` uses.
One layer's tensors serve every layer, so the run needs little memory; everything `consolidate` holds until it writes is
held here too. Run it with ``python -m benchmarks.consolidation`` or ``python benchmarks/consolidation.py``.
"""

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hf_lifealign.slmc.consolidation import Settings, Staged, Vector, consolidate_delta, consolidate_factor
from hf_lifealign.slmc.lowrank import Factors, denoise_factors, gram_of, update_factors


@dataclass
class Module:
    """LoRA tensors of one module before and after a task, with the history of both spaces.

    Shapes: A `(r, n)`, B `(m, r)`; `history_a`/`history_b` hold `(RSM,)`, `history` holds
    `(left^T (k, m), right (k, n))`.
    """

    name: str
    A_prev: Tensor
    B_prev: Tensor
    A_now: Tensor
    B_now: Tensor
    history_a: list[Vector]
    history_b: list[Vector]
    history: list[Vector]
    gram: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.B_now.shape[0], self.A_now.shape[1]


def layer_shapes(hidden: int, intermediate: int) -> dict[str, tuple[int, int]]:
    """(out, in) of the seven linear layers of a Llama block."""
    square, up = (hidden, hidden), (intermediate, hidden)
    return {"q": square, "k": square, "v": square, "o": square, "gate": up, "up": up, "down": (hidden, intermediate)}


def build(name: str, m: int, n: int, rank: int, tasks: int, threshold: float) -> Module:
    """Gaussian factors and changes: the worst case, since trained changes have fewer directions to keep."""

    def factors(scale: float) -> tuple[Tensor, Tensor]:
        return scale * torch.randn(rank, n) / n**0.5, scale * torch.randn(m, rank) / m**0.5

    A_prev, B_prev = factors(1.0)
    history: list[Vector] = []
    for _ in range(tasks):
        dA, dB = factors(0.3)
        update = update_factors(A_prev.double(), B_prev.double(), (A_prev + dA).double(), (B_prev + dB).double(), 2.0)
        left, right = denoise_factors(update, threshold)[0]
        history.append((left.T.float().contiguous(), right.float()))
    gram = (
        gram_of([Factors(left.T.double(), right.double()) for left, right in history]) if history else torch.empty(0, 0)
    )
    dA, dB = factors(0.3)
    history_a: list[Vector] = [(0.3 * torch.randn(rank, n) / n**0.5,) for _ in range(tasks)]
    history_b: list[Vector] = [(0.3 * torch.randn(m, rank) / m**0.5,) for _ in range(tasks)]
    return Module(name, A_prev, B_prev, A_prev + dA, B_prev + dB, history_a, history_b, history, gram)


def ours(module: Module, settings: Settings) -> list[Staged]:
    """What `SLMCModel.consolidate` computes for this module."""
    if settings.space == "delta":
        before, now = (module.A_prev, module.B_prev), (module.A_now, module.B_now)
        index = len(module.history)
        gram = module.gram if module.history else None
        return [consolidate_delta(module.name, before, now, 2.0, module.history, gram, settings, index)]
    return [
        consolidate_factor(f"{module.name}.lora_A", module.A_prev, module.A_now, module.history_a, settings),
        consolidate_factor(f"{module.name}.lora_B", module.B_prev, module.B_now, module.history_b, settings),
    ]


def published(module: Module, settings: Settings) -> list[Tensor]:
    """The published algorithm for both factors: torch SVD of each, and the history's basis by an SVD of the stack.

    As published, the stack is padded with a zero vector for the first task; float32, thin SVD (the cheaper reading).
    """
    results = []
    for before, now, history in (
        (module.A_prev, module.A_now, module.history_a),
        (module.B_prev, module.B_now, module.history_b),
    ):
        U, S, Vh = torch.linalg.svd(now - before, full_matrices=False)
        share = S.square().cumsum(0) / S.square().sum()
        k = int((share < settings.denoising_threshold).sum()) + 1
        flat = ((U[:, :k] * S[:k]) @ Vh[:k]).reshape(-1)
        rows = torch.stack([torch.zeros_like(flat), *(vector[0].reshape(-1) for vector in history)])
        basis = torch.linalg.svd(rows, full_matrices=False)[2]
        projected = basis.T @ (basis @ flat)
        results.append(before + (flat - (1 - settings.projection_weight) * projected).view_as(before))
    return results


def dense(module: Module, settings: Settings) -> list[Tensor]:
    """Only the denoising of the m x n change with a dense SVD, in float32: less work than ours does altogether."""
    update = 2.0 * (module.B_now @ module.A_now - module.B_prev @ module.A_prev)
    U, S, Vh = torch.linalg.svd(update, full_matrices=False)
    share = S.square().cumsum(0) / S.square().sum()
    k = int((share < settings.denoising_threshold).sum()) + 1
    return [(U[:, :k] * S[:k]) @ Vh[:k]]


def clock(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def alternate(first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of both, timed in turns so that a busy machine hits both alike."""
    times = [(clock(first), clock(second)) for _ in range(repeats)]
    return statistics.median(t[0] for t in times), statistics.median(t[1] for t in times)


def memory_kib(field: str) -> int:
    """VmRSS or VmHWM of this process in KiB, 0 where /proc is missing."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def reset_peak() -> None:
    """Let VmHWM start again from the present size, where the kernel allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def staged_bytes(staged: list[Staged]) -> tuple[int, int]:
    """Bytes held until writing: `(new weights, new history entry)`."""
    weights = sum(tensor.nbytes for result in staged for tensor in result.weights)
    return weights, sum(part.nbytes for result in staged for vector in result.added for part in vector)


def run_whole(modules: list[Module], settings: Settings, layers: int) -> None:
    """Consolidate every module of the model once and print time and memory."""
    ours(modules[0], settings)
    adapter = sum(m.A_now.nbytes + m.B_now.nbytes for m in modules) * layers
    reset_peak()
    before, staged = memory_kib("VmRSS"), []
    start = time.perf_counter()
    for _ in range(layers):
        for module in modules:
            staged.extend(ours(module, settings))
    seconds = time.perf_counter() - start
    peak = (memory_kib("VmHWM") - before) * 1024
    weights, entry = staged_bytes(staged)
    print(f"[{settings.space}] {layers * len(modules)} modules in {seconds:.2f} s on {torch.get_num_threads()} threads")
    print(
        f"[{settings.space}] adapter {adapter / 2**20:.0f} MiB; held until writing: new weights {weights / 2**20:.0f} "
        f"MiB + new history entry {entry / 2**20:.0f} MiB; peak extra {peak / 2**20:.0f} MiB = {peak / adapter:.2f}x "
        f"the adapter, {max(peak - entry, 0) / adapter:.2f}x without the new entry"
    )


def compare(modules: list[Module], settings: Settings, repeats: int, layers: int) -> None:
    """Time ours and the other side on one module of each shape, and extrapolate to the whole model by counts."""
    other, label = (dense, "dense SVD") if settings.space == "delta" else (published, "published algorithm")
    counts: dict[tuple[int, int], int] = {}
    for module in modules:
        counts[module.shape] = counts.get(module.shape, 0) + layers
    total_ours = total_other = 0.0
    for shape, count in counts.items():
        module = next(m for m in modules if m.shape == shape)
        fast, slow = alternate(lambda m=module: ours(m, settings), lambda m=module: other(m, settings), repeats)  # type: ignore[misc]
        total_ours, total_other = total_ours + count * fast, total_other + count * slow
        print(f"[{settings.space}] {shape}: ours {1e3 * fast:.1f} ms, {label} {1e3 * slow:.1f} ms, {slow / fast:.1f}x")
    print(
        f"[{settings.space}] extrapolated by the number of modules of each shape: ours {total_ours:.1f} s, {label} "
        f"{total_other:.1f} s, {total_other / total_ours:.1f}x"
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=11008)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--tasks", type=int, default=10, help="earlier tasks in the history")
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--projection-weight", type=float, default=0.5)
    parser.add_argument("--memory-rank", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=3, help="alternations of the comparison; medians are printed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--space", choices=["factors", "delta", "both"], default="both")
    parser.add_argument("--skip-comparison", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark; see ``--help``."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(
        f"torch {torch.__version__}, {options.threads} threads of {os.cpu_count()} cores, {options.tasks} earlier tasks"
    )
    shapes = layer_shapes(options.hidden, options.intermediate)
    modules = [build(name, m, n, options.rank, options.tasks, options.threshold) for name, (m, n) in shapes.items()]
    for space in ("factors", "delta") if options.space == "both" else (options.space,):
        settings = Settings(options.threshold, options.projection_weight, space, options.memory_rank)
        with torch.no_grad():
            run_whole(modules, settings, options.layers)
            if not options.skip_comparison:
                compare(modules, settings, options.repeats, options.layers)


if __name__ == "__main__":
    main()
