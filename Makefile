# `make` alone lists the targets. Each target first installs what it needs (tools/bootstrap.py); that is quick when
# there is nothing to do. Namespaces and mounts need root: as an ordinary user the targets that need it use sudo.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
BIN := .venv/bin
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
ARGS ?=
PREFIX ?= /usr/local
DESTDIR ?=
PLACE = --prefix '$(PREFIX)' $(if $(DESTDIR),--destdir '$(abspath $(DESTDIR))')
# A worker per processor (labs wait a lot, and four have enough to do); a file's tests share a lab, so they stay together.
WORKERS := -n auto --maxprocesses 4 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help bootstrap demo test check bench lock manuals install uninstall clean

help: ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

bootstrap: ## install what is missing (Debian packages, .venv)
	@python3 tools/bootstrap.py

demo: bootstrap root ## three nodes on this machine, real commands across them, then all taken down again
	@$(AS_ROOT) $(BIN)/omfs-lab demo

test: check root ## everything: the checks below and all tests, also those in the lab; ARGS="-k lock" narrows, ARGS="-n 0" for a debugger
	@python3 tools/bootstrap.py --with tests
	@$(AS_ROOT) $(BIN)/python -m pytest $(WORKERS) --pure-coverage --durations=30 $(ARGS)

check: bootstrap ## format, lint, types, layers
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check --quiet
	@$(BIN)/mypy
	@$(BIN)/mypy tools/*.py
	@$(BIN)/lint-imports

bench: root ## native ext4, sshfs and oMFS side by side; ARGS="--programs|--moves|--day --peers --rounds 5 --json FILE"
	@python3 tools/bootstrap.py --with bench $(foreach extra,programs peers day,$(if $(findstring --$(extra),$(ARGS)),--with $(extra)))
	@$(AS_ROOT) $(BIN)/python -m bench.run $(ARGS)

lock: ## write requirements.lock anew: the newest versions that pyproject.toml allows
	@python3 tools/bootstrap.py --lock

manuals: bootstrap ## man pages and shell completions of all commands, into build/
	@$(BIN)/python tools/manuals.py

install: bootstrap manuals $(if $(DESTDIR),,root) ## into the system, to stay without this checkout; PREFIX=/usr/local, DESTDIR= for packagers
	@$(if $(DESTDIR),,$(AS_ROOT)) $(BIN)/python tools/install.py $(PLACE)

uninstall: $(if $(DESTDIR),,root) ## take all of that away again (with the same PREFIX)
	@$(if $(DESTDIR),,$(AS_ROOT)) python3 tools/install.py --remove $(PLACE)

clean: ## remove what the targets above made here (.venv too)
	@$(AS_ROOT) rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage *.egg-info
	@$(AS_ROOT) find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: root
root:
	@if [ -n "$(AS_ROOT)" ] && ! command -v sudo >/dev/null; then \
	    echo "make: this needs root (namespaces and mounts): run it as root, or install sudo" >&2; exit 1; fi
