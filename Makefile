PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin

# Without bytecode each of the tests' many processes compiles PyTorch's modules anew: 7 s a process.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test slow check docs fast proto clean

demo: $(VENV)/.app  ## install, then federate the embedded demo: 5 clients, 5 rounds
	$(RUN)/fednano run
	@echo 'fednano is installed in $(VENV): source $(RUN)/activate'

test: $(VENV)/.installed  ## install what the tests need and run them
	$(RUN)/python -m pytest -n 3 --dist worksteal --durations=20 -m "not slow"

slow: $(VENV)/.installed  ## the tests that take many minutes: fuzzing, kills, launches, soak, faults
	$(RUN)/python -m pytest --durations=20 -m slow

check: $(VENV)/.installed docs  ## lint, formatting, types and the pages' links
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy fednano_flwr fednano_demo benchmarks

docs: $(VENV)/.installed  ## the pages as a site in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --strict

fast: $(VENV)/.installed  ## the tests that start no SuperLink
	$(RUN)/python -m pytest -n 2 --dist worksteal -m "not e2e and not slow"

# What the demo needs, and what development needs besides: each counts as the former, too.
$(VENV)/.app: WHAT = .
$(VENV)/.installed: WHAT = .[dev]
$(VENV)/.app $(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --upgrade pip
	$(RUN)/python -m pip install --no-compile --constraint constraints.txt --editable '$(WHAT)'
	touch $(VENV)/.app $@

proto:  ## regenerate the gRPC code; needs grpcio-tools 1.71
	$(PYTHON) -m grpc_tools.protoc -I. --python_out=. --pyi_out=. \
		fednano_flwr/exchange/wire/fednano.proto

clean:
	rm -rf $(VENV) runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache
