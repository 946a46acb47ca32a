# Everything runs in a virtual environment that the first target to need it creates.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

LOWEST := .venv-lowest

# Two tests at a time. Threads that wait for each other then sleep, for there may be more of them than cores.
PARALLEL := -n 2 --dist worksteal
test level-x86-64-v2 level-x86-64-v3 level-x86-64-v4 without-compiler lowest: export OMP_WAIT_POLICY := passive

# What must come out the same on every machine.
NUMERICS := $(wildcard $(addprefix tests/test_,native.py operations.py preactivation.py folding.py golden.py units.py memory.py inference.py))
FEW := $(addprefix tests/test_,folding.py golden.py inference.py)

.PHONY: demo test test-portable test-portable-short without-compiler lowest package sanitize torture parity lint types docs bench clean

demo: $(READY)  ## train on the handwritten digits inside scikit-learn, then report
	@out=runs/demo-$$(date +%Y%m%d-%H%M%S) && \
	$(BIN)/preresnet train digits/resnet20-preact --out $$out && \
	$(BIN)/preresnet evaluate $$out && \
	$(BIN)/preresnet report $$out

test: lint types docs  ## everything that CI checks
	$(BIN)/pytest $(PARALLEL) --durations=10

# Not part of `test`: other instructions than this machine's, no compiler, the lowest torch that pyproject.toml allows.
test-portable: level-x86-64-v2 level-x86-64-v3 level-x86-64-v4 without-compiler lowest package

test-portable-short:  ## what CI has time for
	$(MAKE) level-x86-64-v2 without-compiler NUMERICS='$(FEW)'

# PyTorch's compiler keeps what it made for other instructions, and takes it for the same.
level-x86-64-v2 level-x86-64-v3 level-x86-64-v4: export TORCHINDUCTOR_CACHE_DIR = $(abspath $(VENV))/inductor-$@
level-x86-64-v2: export ATEN_CPU_CAPABILITY := default
level-x86-64-v2: export ONEDNN_MAX_CPU_ISA := SSE41
level-x86-64-v3: export ATEN_CPU_CAPABILITY := avx2
level-x86-64-v3: export ONEDNN_MAX_CPU_ISA := AVX2
level-x86-64-v4: export ATEN_CPU_CAPABILITY := avx512
level-x86-64-v4: export ONEDNN_MAX_CPU_ISA := AVX512_CORE
level-%: $(READY)
	@able=$$($(BIN)/python -c 'from preresnet.kernels import native; print(*native.levels_here())') && \
	case " $$able " in \
	*" $* "*) PRERESNET_MARCH=$* $(BIN)/pytest $(PARALLEL) $(NUMERICS) ;; \
	*) echo "$* is not tested: this processor executes native $$able" ;; \
	esac

without-compiler: $(READY)
	CXX=/nowhere $(BIN)/pytest $(PARALLEL) $(NUMERICS)

lowest: $(LOWEST)/.ready
	$(LOWEST)/bin/pytest $(PARALLEL) $(NUMERICS)

package: $(READY)  ## built, installed into a clean environment, used
	$(BIN)/pytest -m slow tests/test_package.py

sanitize: $(READY)  ## the numerics with kernels that check every address and every undefined operation
	CXX='g++ -g -fsanitize=address,undefined -fno-sanitize-recover=undefined' ASAN_OPTIONS=detect_leaks=0 \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" $(BIN)/pytest --capture=sys $(NUMERICS)

torture: $(READY)  ## ten thousand damaged files for each reader
	PRERESNET_FUZZ=10000 $(BIN)/pytest --timeout 3000 tests/test_exchange.py -k damaged

parity: $(READY)  ## the table of docs/guide/exchange.md, beside the libraries themselves
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[peers]' --group foreign
	KERAS_BACKEND=torch $(BIN)/python tests/test_parity.py --write

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
	rm -rf $(VENV) $(LOWEST) site

# uv resolves and installs in seconds what takes pip minutes; it comes from the same registry.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or later is needed; this is %d.%d. Name another one: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.7,<1'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable . --group dev
	@touch $@

$(LOWEST)/.ready: pyproject.toml | $(READY)
	$(PYTHON) -m venv $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --editable . --group dev 'torch==2.11.*' 'torchvision==0.26.*'
	@touch $@
