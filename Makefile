# make demo: set up .venv, export the shipped model for ONNX Runtime and Core ML, ask each package one question.
# make test: set up .venv, lint, type-check and test everything.
# make fuzz MINUTES=5: set up .venv, and damage files for that long for each reader.
# make docs: set up .venv, build the pages of the Python API into out/docs.
# make compat: build environments of the lowest and the newest versions, and write what they do into docs/compatibility.md.
PYTHON ?= python3
BIN := .venv/bin
MODEL := examples/tiny_vlm
OUT := out
MINUTES := 5

.PHONY: demo test lint fuzz bench docs compat clean
.DELETE_ON_ERROR:

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

QUESTION := $(MODEL)/question.txt
ASK := --image $(MODEL)/scene.png --prompt "$$(cat $(QUESTION))"

demo: .venv/installed
	@echo "Question: $$(cat $(QUESTION))  ($(MODEL)/scene.png; right: $$(cat $(MODEL)/answer.txt))"
	$(BIN)/scale-export fold --coeffs $(MODEL)/spatial.pt --target cpu --out $(OUT)/spatial-cpu --force
	@echo -n "Base model:          "; $(BIN)/scale-export run $(OUT)/spatial-cpu --scale 0 $(ASK)
	@echo -n "ScAle, ONNX Runtime: "; $(BIN)/scale-export run $(OUT)/spatial-cpu $(ASK)
	$(BIN)/scale-export fold --coeffs $(MODEL)/spatial.pt --target coreml --out $(OUT)/spatial-coreml --force
	@echo -n "ScAle, Core ML:      "; $(BIN)/scale-export run $(OUT)/spatial-coreml $(ASK)

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2 --dist worksteal

fuzz: .venv/installed
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) --keep $(OUT)/fuzz

bench: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/decoder.py

docs: .venv/installed
	$(BIN)/python docs/api.py --out $(OUT)/docs

compat: .venv/installed
	$(BIN)/python -m tests.environments.packages $(OUT)/packages
	$(BIN)/python -m tests.environments.matrix --packages $(OUT)/packages $(COMPAT)

clean:
	rm -rf .venv $(OUT) build dist
