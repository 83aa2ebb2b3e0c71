# `make` alone lists the targets. Each target first installs what it needs (tools/bootstrap.py); that is quick when
# there is nothing to do. Namespaces and mounts need root: as an ordinary user the targets that need it use sudo.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
BIN := .venv/bin
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help bootstrap demo test check bench lock install uninstall clean

help: ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

bootstrap: ## install what is missing (Debian packages, .venv)
	@python3 tools/bootstrap.py

demo: bootstrap root ## three nodes on this machine, real commands across them, then all taken down again
	@$(AS_ROOT) $(BIN)/omfs-lab demo

test: check root ## everything: the checks below and all tests, also those in the lab; ARGS="-k lock" narrows
	@$(AS_ROOT) $(BIN)/python -m pytest --pure-coverage --durations=30 $(ARGS)

check: bootstrap ## format, lint, types, layers
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check --quiet
	@$(BIN)/mypy
	@$(BIN)/mypy tools/*.py
	@$(BIN)/lint-imports

bench: root ## native ext4, sshfs and oMFS side by side; ARGS="--programs --peers --rounds 5 --json FILE"
	@python3 tools/bootstrap.py --with bench $(foreach extra,programs peers,$(if $(findstring --$(extra),$(ARGS)),--with $(extra)))
	@$(AS_ROOT) $(BIN)/python -m bench.run $(ARGS)

lock: ## write requirements.lock anew: the newest versions that pyproject.toml allows
	@python3 tools/bootstrap.py --lock

install: bootstrap root ## link the commands of this checkout into the system (/usr/local/sbin, /sbin/mount.fuse.omfs)
	@$(AS_ROOT) $(BIN)/python tools/install.py

uninstall: root ## take those links away
	@$(AS_ROOT) python3 tools/install.py --remove

clean: ## remove what the targets above made here (.venv too)
	@$(AS_ROOT) rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage *.egg-info
	@$(AS_ROOT) find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: root
root:
	@if [ -n "$(AS_ROOT)" ] && ! command -v sudo >/dev/null; then \
	    echo "make: this needs root (namespaces and mounts): run it as root, or install sudo" >&2; exit 1; fi
