# Everything runs in a virtual environment that the first target to need it creates.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint types docs bench clean

demo: $(READY)  ## train on the handwritten digits inside scikit-learn, then report
	@out=runs/demo-$$(date +%Y%m%d-%H%M%S) && \
	$(BIN)/preresnet train digits/resnet20-preact --out $$out && \
	$(BIN)/preresnet evaluate $$out && \
	$(BIN)/preresnet report $$out

test: lint types docs  ## everything that CI checks
	$(BIN)/pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/basedpyright

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(READY)  ## the site, in site/
	$(BIN)/mkdocs build --strict

bench: $(READY)  ## speed and memory beside peers; records and charts in runs/
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[peers]'
	PRERESNET=$(BIN)/preresnet benchmarks/marks.sh runs/bench-$$(date +%Y%m%d-%H%M%S)

clean:
	rm -rf $(VENV) site

# uv resolves and installs in seconds what takes pip minutes; it comes from the same registry.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or later is needed; this is %d.%d. Name another one: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.7,<1'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable . --group dev
	@touch $@
