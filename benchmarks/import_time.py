"""Time of `import hf_lifealign` beyond the interpreter, and of its heavier rooms for comparison.

    python benchmarks/import_time.py [--repeats 15]

Each import runs in a process of its own; the bare interpreter and the import alternate; medians are printed.
"""

import argparse
import statistics
import subprocess
import sys
import time

BAR_SECONDS = 0.1


def start(code: str) -> float:
    """Seconds that a fresh interpreter takes to run `code`."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    bare, ours = [], []
    for _ in range(repeats):
        bare.append(start("pass"))
        ours.append(start("import hf_lifealign"))
    extra = statistics.median(ours) - statistics.median(bare)
    print(f"interpreter           {statistics.median(bare) * 1e3:8.1f} ms (median of {repeats})")
    print(f"import hf_lifealign   {statistics.median(ours) * 1e3:8.1f} ms")
    print(f"beyond the interpreter{extra * 1e3:8.1f} ms (bar: {BAR_SECONDS * 1e3:.0f} ms)")
    print(f"from hf_lifealign import FPOTrainer {start('from hf_lifealign import FPOTrainer'):.2f} s (once)")
    return 0 if extra < BAR_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
