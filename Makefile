# Two commands: `make demo` and `make test`. Each installs what it needs into .venv first.
PYTHON ?= python3
BIN := .venv/bin
# Byte code is compiled once here: importing vllm, ray and deepspeed without it takes minutes on 2 cores.
STAMP := .venv/.installed

.PHONY: install demo test test-hosts check format pin clean

install: $(STAMP)

$(STAMP): requirements/cpu.txt requirements/uv.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --require-hashes -r requirements/cpu.txt
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $(STAMP)

demo: install  ## the whole loop on this machine, about four minutes on 2 cores
	$(BIN)/python -m jobs.demo.run

test: check  ## format, lint, types, import rule, then every test
	$(BIN)/python -m pytest

test-hosts: install  ## every fault on a cluster of network namespaces; needs root and iproute2, half an hour
	$(BIN)/python -m jobs.chaos_hosts

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports --no-cache

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

pin: install  ## rewrite requirements/ from pyproject.toml; hashes, no addresses
	for extra in cpu gpu; do \
	  $(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --extra $$extra --extra dev --extra bench -o requirements/$$extra.txt pyproject.toml || exit 1; \
	done
	echo 'uv==0.13.9' | $(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate -o requirements/uv.txt -

clean:
	rm -rf .venv runs
