# make demo   the main job, on a small real model (a minute and a half on two CPU cores)
# make test   the tests
# make bench  the benchmarks (20 minutes on two quiet cores)
# make test-all   the tests on every Python from 3.11 to 3.13 that can be had
# make docs   the documentation as a site, in build/site
# All make the environment first, in .venv, with the tested versions of everything.

VENV ?= .venv
PY := $(VENV)/bin/python
# The first Python on the path that rfflow runs on; say make PYTHON=... to choose.
PYTHON ?= $(shell for p in python3 python3.12 python3.13 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
STAMP := $(VENV)/.installed

.PHONY: install demo test browser lint types wheel bench bench-gpu docs test-all

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt requirements-demo.txt
	@test -n "$(PYTHON)" || { echo "rfflow needs Python 3.11, 3.12 or 3.13; none is on the path (make PYTHON=...)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[api,dev,docs,gguf,math,mlflow,qlora,rag,ray,text,trackio,wandb]"
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-demo.txt
	touch $@

demo: install
	$(PY) -m rfflow +recipe=sft --multirun lr=1e-3,1e-4

# A file of tests stays in one process, so that what its tests share is made once.
test: install
	$(PY) -m pytest -n logical --maxprocesses 4 --dist loadfile

# Each in an environment of its own, .venv-3.12 and so on; says at the end which were run.
test-all:
	@PYTHONS="$(PYTHONS)" MAKE="$(MAKE)" sh tests/all_pythons.sh

# The tab in TensorBoard, in the system's Chromium (apt-get install chromium); says why where there is none.
browser: install
	$(PY) -m pytest -m browser -rs tests/dashboard

# Without a network; a link that leads nowhere fails.
docs: install
	$(PY) docs/site/build.py

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: install
	$(PY) -m mypy

wheel: install
	$(PY) -m build --no-isolation --wheel

# rfflow against what people do today: benchmarks/results/README.md. Goes on where it was; PARTS=sides,startup for some.
bench: install
	-test -d $(VENV)/benchmark-libraries || $(PY) -m pip install --quiet --disable-pip-version-check \
		--no-deps --target $(VENV)/benchmark-libraries -r benchmarks/requirements.txt
	OMP_NUM_THREADS=1 BENCHMARK_LIBRARIES=$(abspath $(VENV))/benchmark-libraries $(PY) benchmarks/report.py --seconds 1150 $(if $(PARTS),--only $(PARTS)) $(BENCH)

bench-gpu: install
	$(PY) benchmarks/gpu.py --model small --repeat 3 --seconds 400 --out benchmarks/results
