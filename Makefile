# make demo: set up .venv, export the shipped model, ask the package one question.
# make test: set up .venv, lint, type-check and test everything.
PYTHON ?= python3
BIN := .venv/bin
MODEL := examples/tiny_vlm
OUT := out

.PHONY: demo test lint bench clean
.DELETE_ON_ERROR:

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: .venv/installed
	$(BIN)/scale-export fold --coeffs $(MODEL)/spatial.pt --target cpu --out $(OUT)/spatial-cpu --force
	@echo "Question: $$(cat $(MODEL)/question.txt)  ($(MODEL)/scene.png; right: $$(cat $(MODEL)/answer.txt))"
	@echo -n "Base model: "; $(BIN)/scale-export run $(OUT)/spatial-cpu --scale 0 --image $(MODEL)/scene.png --prompt "$$(cat $(MODEL)/question.txt)"
	@echo -n "With ScAle: "; $(BIN)/scale-export run $(OUT)/spatial-cpu --image $(MODEL)/scene.png --prompt "$$(cat $(MODEL)/question.txt)"

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2

bench: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/decoder.py

clean:
	rm -rf .venv $(OUT) build dist
