"""Runs a stream of preference tasks from a YAML recipe, on one process or several.

    accelerate launch recipes/lifelong_fpo.py --config recipes/quickstart.yaml
    accelerate launch --cpu --num_processes 2 recipes/lifelong_fpo.py --config recipes/quickstart.yaml \
        --output_dir runs/two-processes --set training.num_train_epochs=1

It does what `lifealign run` does; started again after a kill it goes on where it was.
"""

import argparse
import sys

from hf_lifealign.lifelong.launch import start_all_cpu_processes
from hf_lifealign.lifelong.recipe import run_recipe


def main() -> int:
    """Parses the command line and runs the recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML recipe")
    parser.add_argument("--output_dir", help="folder of the run; takes the place of the recipe's")
    parser.add_argument("--data_dir", help="folder against which relative paths of data are resolved")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
                        help="change a setting of the recipe, e.g. training.learning_rate=1e-4")  # fmt: skip
    args = parser.parse_args()
    start_all_cpu_processes()
    return run_recipe(args.config, args.overrides, args.output_dir, args.data_dir)


if __name__ == "__main__":
    sys.exit(main())
