# make demo and make test need Python 3.11 or newer and make; each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
METHODS := subnetwork,random,random_per_layer,gradient,ffn,full,last_layers,hft,ssu,lora,lora_all,lora_matched,dora,shira,ia3
export PYTHONPATH :=

.PHONY: demo demo-all test test-all keys audit torture faults lint bench bench-gpu clean

.venv/ready: pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch .venv/ready

demo: .venv/ready
	$(BIN)/python -m datamodules.invented runs/demo/hub
	$(BIN)/python main.py fit --config demo/base.yaml
	$(BIN)/python main.py fit --config demo/adapt.yaml
	$(BIN)/python main.py validate --run_dir runs/demo
	$(BIN)/python main.py compare --config demo/adapt.yaml --name compare --lrs 10x --model.rank 8 --model.lr null \
		--data.token_budget 120_000 --methods subnetwork,random_per_layer,lora,ffn

demo-all: demo
	$(BIN)/python main.py compare --config demo/adapt.yaml --name compare-all --lrs 10x --model.rank 8 --model.lr null \
		--data.token_budget 120_000 --methods $(METHODS) --model.source_language qaa-Latn \
		--model.calibration_sequences 100 --model.calibration_tokens 128 --scale 0,0.25,0.5,0.75,1,1.25

test: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

test-all: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile

torture: .venv/ready
	$(BIN)/python -m tests.torture --out docs/torture.json --page docs/torture.md

faults: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow' --faults=docs/faults.md

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

keys: .venv/ready
	$(BIN)/python -m lightning_app.cli.key_table

audit:
	test -x .venv/audit/bin/pip-audit || $(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.7'
	.venv/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off

bench: .venv/ready
	$(BIN)/python -m benchmarks --out benchmarks/results/cpu.json

bench-gpu: .venv/ready
	$(BIN)/python -m benchmarks --device cuda --out benchmarks/results/gpu.json --suites train_step,operations \
		--settings llama-8b:2x512@0.0131,llama-8b:1x4096@0.0131,llama-8b:8x512@0.0131 \
		--variants packed,documents,packed_compiled,lora,lora_compiled,clone,masked
	$(BIN)/python -m benchmarks --device cuda --out benchmarks/results/gpu-nf4.json --suites train_step \
		--settings llama-8b:2x512@0.0131 --variants packed,nf4_frozen,nf4_packed,nf4_lora
	$(BIN)/python -m benchmarks --device cuda --out benchmarks/results/gpu-more.json \
		--suites plan,profiling,train_step,loss,scaling --scaling 95m:4x512 \
		--settings llama-8b:2x512@0.0131,nemo-12b:2x512,aya-8b:2x512 --variants packed,lora \
		--profiling llama-8b:1x4096,nemo-12b:1x4096,aya-8b:1x4096

clean:
	rm -rf .venv runs/demo
