# Everything a person or CI does with this repository. Each target installs what it needs first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
GUEST  := PYTHONPATH=tests $(BIN)/python -m guest.vm

# For pageferry itself: libnuma1. For the tests: a guest with four NUMA nodes and Debian's Slurm, its peers, linters,
# a browser for the report's page; of prometheus only promtool is used.
PACKAGES := git libnuma1 numactl python3-venv gcc libc6-dev shellcheck strace lua5.4 cpio kmod e2fsprogs util-linux \
            dpkg-dev init-system-helpers lintian man-db prometheus systemd dbus \
            qemu-system-x86 linux-image-amd64 busybox-static \
            slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge \
            chromium chromium-driver fonts-dejavu-core

PYTEST   := pytest -q --durations=5
MACHINES := guest-four-1 guest-four-2 guest-v1 guest-cpuless guest-tight guest-package
QUICK    :=
SHORT    = $(if $(QUICK),and not long)
V1_TESTS = $(if $(QUICK),$(addprefix tests/guest/test_,machine.py gate.py narrow.py),tests/guest)

# The package runs with the interpreter that its hosts have, not with that of the virtual environment.
DEB_PYTHON  ?= /usr/bin/python3
DEB_VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' plugin/pageferry/__init__.py)
DEB         := dist/pageferry_$(DEB_VERSION)_$(shell dpkg --print-architecture).deb
DEB_SOURCES := $(shell find planner plugin hooks contrib docs -type f -not -name '*.pyc') CHANGELOG.md LICENSE README.md

.PHONY: help test test-all lint unit deb guest-tests $(MACHINES) demo bench soak guest packages clean

help:
	@echo "make demo    a Slurm job moves while it is suspended, in a throw-away guest with four NUMA nodes"
	@echo "make test    linters, types, import rules, and the tests that each change must pass: here and in the guest"
	@echo "make test-all  the same, and what takes long: all tests, on all machines; before a release"
	@echo "make bench   the benchmark against the kernel's own ways; writes docs/benchmarks.md"
	@echo "make soak    ten minutes of jobs that come, go and are suspended, while the agent is killed 200 times, in the guest"
	@echo "make deb     the Debian package, below dist/; for this machine's Debian and architecture"
	@echo "make guest   a shell in the guest, with Slurm running"

# Two at a time, the longest first: a guest uses about one CPU. What takes long is left to test-all, whose guests have the
# machine alone.
test: lint
	$(MAKE) -j2 --output-sync=target QUICK=yes guest-four-2 unit guest-four-1 guest-v1 guest-cpuless

test-all: lint unit guest-tests

lint: $(VENV)/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	shellcheck .ci/run $$(git ls-files '*.sh' 'hooks/slurm/prolog.d/*' 'contrib/debian/p*')

unit: $(VENV)/ready
	$(BIN)/pytest -q $(if $(QUICK),-m 'not long')

deb: $(DEB)

$(DEB): $(DEB_SOURCES) | $(VENV)/ready
	contrib/debian/build.sh $(VENV) $(DEB_PYTHON) $@

# A boot takes seconds: one for each machine, all tests of it in one session.
guest-tests: $(MACHINES)

$(MACHINES): $(VENV)/ready

guest-four-1:
	$(GUEST) run --layout four --timeout 3000 --results .cache/four-1 -- $(PYTEST) tests/guest -m 'not cpuless and not package $(SHORT)' --shard 1/2

guest-four-2:
	$(GUEST) run --layout four --timeout 3000 --results .cache/four-2 -- $(PYTEST) tests/guest -m 'not cpuless and not package $(SHORT)' --shard 2/2

guest-cpuless:
	$(GUEST) run --layout cpuless --timeout 1800 --results .cache/cpuless -- $(PYTEST) tests/guest -m '(cpuless or every_machine) $(SHORT)'

guest-tight:
	$(GUEST) run --layout tight --timeout 900 --results .cache/tight -- $(PYTEST) tests/guest -m every_machine

guest-v1:
	$(GUEST) run --layout four --cgroup v1 --timeout 3000 --results .cache/v1 -- $(PYTEST) $(V1_TESTS) -m '(v1 or every_machine) $(SHORT)'

guest-package: $(DEB)
	$(GUEST) run --layout four --systemd --timeout 900 --results .cache/package -- $(PYTEST) tests/guest -m package

demo: $(VENV)/ready
	$(GUEST) run --layout four --timeout 600 --results .cache/demo -- env PYTHONPATH=tests python -m guest.demo

bench: $(VENV)/ready
	$(BIN)/python bench/run.py

soak: $(VENV)/ready
	$(GUEST) run --layout four --slurm --timeout 2400 --results .cache/soak -- env PYTHONPATH=tests python -m guest.soak

guest: $(VENV)/ready
	$(GUEST) shell --layout four --slurm

packages:
	@missing=$$(for package in $(PACKAGES); do \
	    dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'install ok installed' || echo $$package; done); \
	if [ -n "$$missing" ]; then \
	    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $$missing; \
	fi

$(VENV)/ready: pyproject.toml | packages
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade 'pip>=25.1'
	$(BIN)/pip install -q --group dev -e .
	touch $@

clean:
	rm -rf $(VENV) .cache dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
