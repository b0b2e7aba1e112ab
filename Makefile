# Everything a person types here. Two commands are enough: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# From the distribution; the versions of Debian 12 are the oldest supported.
PACKAGES := qemu-system-x86 qemu-utils mmdebstrap bubblewrap uidmap squashfs-tools e2fsprogs kmod cpio busybox-static \
	python3-venv ca-certificates
TEST_PACKAGES := iproute2 xvfb openbox xdotool x11-utils imagemagick libegl1 libgl1 libxkbcommon-x11-0 libxcb-cursor0 libxcb-icccm4 libxcb-image0 \
	libxcb-keysyms1 libxcb-render-util0 libxcb-shape0 libxcb-xinerama0 libfontconfig1 libdbus-1-3

.DEFAULT_GOAL := help
.PHONY: help deps test-deps install demo doctor bench bench-check test test-debian13 lint unit boot slow foreign clean

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

deps: ## install what is missing from Debian (asks sudo when not root)
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  echo "installing from Debian:" $$missing; \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  $$sudo apt-get update -q && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -q --no-install-recommends $$missing; \
	fi

test-deps: PACKAGES += $(TEST_PACKAGES)
test-deps: deps ## also what the tests of windows need

$(BIN)/.installed: pyproject.toml | deps
	@echo "1 of 2: a Python environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "2 of 2: Cloison into it, and the Python packages that it and its tests need"
	@$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	@touch $@

install: $(BIN)/.installed ## Cloison and its tools into .venv/bin
	@$(BIN)/python -m compileall -q src

demo: install ## build a template if needed; show the main job on real virtual machines
	$(BIN)/cloison demo

doctor: install ## what this machine has and lacks
	$(BIN)/cloison doctor

bench: install ## measure starts, calls, streams and memory, each against its floor
	$(BIN)/cloison bench

bench-check: install ## what got more than 15 % worse since `cloison bench --json > FILE`: make bench-check BEFORE=FILE
	@test -n "$(BEFORE)" || { echo "name a former run: make bench-check BEFORE=FILE; make one by: $(BIN)/cloison bench --json > FILE"; exit 2; }
	$(BIN)/cloison bench --quick --compare "$(BEFORE)"

test: test-deps install lint ## lint, types, import contracts, and all tests, real virtual machines included
	$(BIN)/python -m pytest -m "not slow" || { status=$$?; echo $$status > .pytest_cache/status; exit $$status; }

test-debian13: install ## the same in a bare Debian 13, made once and kept: see the head of tests/bare/debian13.py
	$(BIN)/python tests/bare/debian13.py

lint: install ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache > $(VENV)/imports.log || { cat $(VENV)/imports.log; exit 1; }

unit: test-deps install ## the tests that need no virtual machine
	$(BIN)/python -m pytest -m "not boot" -n auto

boot: install ## the tests with real virtual machines
	$(BIN)/python -m pytest tests/boot -m "boot and not slow"

slow: install ## kill -9 of everything, faults at every step, hostile guests, 20 qubes at once, an ordinary user: a quarter of an hour
	$(BIN)/python -m pytest -m slow

foreign: install ## Qubes OS's own client against ours: CLOISON_FOREIGN_CLIENT names its folder (tests/foreign/conftest.py); its policy programs: CLOISON_FOREIGN_QREXEC
	@test -n "$$CLOISON_FOREIGN_CLIENT" || { echo "set CLOISON_FOREIGN_CLIENT; see tests/foreign/conftest.py"; exit 2; }
	$(BIN)/python -m pytest tests/foreign

clean: ## remove what was installed and cached here; no qube is touched
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build src/*.egg-info
