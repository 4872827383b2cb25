# make demo and make test need Python 3.11 or newer and make; each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
export PYTHONPATH :=

.PHONY: demo test lint bench bench-gpu clean

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch .venv/ready

demo: .venv/ready
	$(BIN)/python -m datamodules.invented runs/demo/hub
	$(BIN)/python main.py fit --config demo/base.yaml
	$(BIN)/python main.py fit --config demo/adapt.yaml
	$(BIN)/python main.py validate --run_dir runs/demo

test: .venv/ready
	$(BIN)/python -m pytest

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

bench: .venv/bench-ready
	$(BIN)/python -m benchmarks --out benchmarks/results/cpu.json

bench-gpu: .venv/bench-ready
	$(BIN)/python -m benchmarks --device cuda --out benchmarks/results/gpu.json \
		--settings llama-8b:2x512@0.0131,llama-8b:8x512@0.0131,llama-8b:1x4096@0.0131,nemo-12b:2x512,aya-8b:2x512 \
		--variants packed,packed_compiled,lora,clone,masked \
		--profiling llama-8b:1x4096,nemo-12b:1x4096,aya-8b:1x4096 \
		--suites train_step,plan,loss,profiling,scaling --scaling 95m:4x512

.venv/bench-ready: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch .venv/bench-ready

clean:
	rm -rf .venv runs/demo
