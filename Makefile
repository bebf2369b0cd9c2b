# make demo       a clip from a sentence, from nothing
# make test       lint, types, layering and the fast tests
# make test-slow  the long tests
#
# TORCH chooses the PyTorch build: cpu, cuda, or auto (CUDA where the machine has an NVIDIA GPU).
# PROMPT and OUTPUT are what `make demo` draws and where.

PYTHON ?= python3
TORCH ?= auto
PROMPT ?= a red heart
OUTPUT ?= demo.mp4
VENV := .venv
RUN := $(VENV)/bin

.PHONY: demo test test-slow lint clean

demo: $(VENV)/.ready
	$(RUN)/latent-shift generate "$(PROMPT)" --output "$(OUTPUT)"

test: $(VENV)/.ready-dev lint
	$(RUN)/pytest -m "not slow and not gpu"

test-slow: $(VENV)/.ready-dev
	$(RUN)/pytest -m "slow and not gpu"

lint: $(VENV)/.ready-dev
	$(RUN)/ruff check
	$(RUN)/ruff format --check
	$(RUN)/codespell src docs recipes scripts README.md CHANGELOG.md Makefile
	$(RUN)/mypy
	$(RUN)/lint-imports

$(VENV)/.ready: pyproject.toml constraints.txt scripts/install.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" TORCH="$(TORCH)" scripts/install.sh .
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	PYTHON="$(PYTHON)" VENV="$(VENV)" TORCH="$(TORCH)" scripts/install.sh ".[train,dev]"
	touch $@

clean:
	rm -rf $(VENV)
