# Everything a person or CI does with this repository. Each target installs what it needs first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
GUEST  := PYTHONPATH=tests $(BIN)/python -m guest.vm

# What make test needs. For pageferry itself: libnuma1. For the tests: a guest with four NUMA nodes and Debian's Slurm, the
# tree of another Debian release, linters.
PACKAGES := git libnuma1 numactl procps python3-venv shellcheck strace lua5.4 cpio kmod zstd e2fsprogs util-linux \
            dpkg-dev init-system-helpers man-db systemd dbus \
            qemu-system-x86 linux-image-amd64 busybox-static mmdebstrap \
            btrfs-progs fuse-overlayfs squashfs-tools \
            slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge
# What the other tests and the benchmarks need as well: the package's checker, a browser for the report's page, promtool;
# the peers of the benchmarks.
MORE_PACKAGES := lintian chromium chromium-driver fonts-dejavu-core prometheus gcc libc6-dev

PYTEST   := pytest -q --durations=5
MACHINES := guest-four-1 guest-four-2 guest-root guest-v1 guest-cpuless guest-tight guest-package \
            guest-debian13-1 guest-debian13-2 guest-fuzz guest-fuzz-13
QUICK    :=
SHORT    = $(if $(QUICK),and not long)
V1_TESTS = $(if $(QUICK),$(addprefix tests/guest/test_,machine.py gate.py),tests/guest)
# The tests of what moves memory, as each change must pass them with the rights of the agent's unit.
MEMORY   := $(addprefix tests/guest/test_,$(addsuffix .py,capacity confined denied devices failures huge keep_huge libraries \
            node_map private process_ids rights shared untouched))
# Cases of other people's programs that need no nodes: on the kernels of both Debians as well.
CASES     = $(if $(QUICK),,$(addprefix tests/host/test_,$(addsuffix .py,odd_memory unit_rights whose_pages torn sparse mempolicy filesystems \
            hangs)))
# What is kept, then fresh seeds for ten minutes: make guest-fuzz. One seed again: make guest-fuzz SEED=N.
FUZZ      = tests/guest/test_fuzz_account.py $(if $(SEED),-k kept --fuzz-seed $(SEED),--fuzz-seconds 600)
PARTS    := PYTHONPATH=tests $(BIN)/python -m parts

# The package runs with the interpreter that its hosts have, not with that of the virtual environment.
DEB_PYTHON  ?= /usr/bin/python3
DEB_VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' plugin/pageferry/__init__.py)
DEB         := dist/pageferry_$(DEB_VERSION)_$(shell dpkg --print-architecture).deb
DEB_SOURCES := $(shell find planner plugin hooks contrib docs -type f -not -name '*.pyc') CHANGELOG.md LICENSE README.md

.PHONY: help quick test test-all test-all-parts release-check lint unit deb $(MACHINES) guest-debian13 \
        demo bench look soak guest packages more-packages clean

help:
	@echo "make demo    a Slurm job moves while it is suspended, in a throw-away guest with four NUMA nodes"
	@echo "make quick   linters, types, import rules and the pure tests: less than 90 seconds"
	@echo "make test    that, and all tests that each change must pass: here, in the guest, and on Debian 13"
	@echo "make test-all [PART='...']  all tests, or these parts of them; before a release"
	@echo "make test-all-parts   which parts there are, and when each passed last;  make release-check: what a release lacks"
	@echo "make bench   the benchmark against the kernel's own ways; writes docs/benchmarks.md"
	@echo "make look [AGAINST=REV]  what one look at a job costs here, against the kernel's walks and an earlier commit"
	@echo "make soak    ten minutes of jobs that come, go and are suspended, while the agent is killed 200 times, in the guest"
	@echo "make deb     the Debian package, below dist/; for this machine's Debian and architecture"
	@echo "make guest [LAYOUT=four] [DEBIAN=13]   a shell in the guest, with Slurm running"

quick: lint
	$(BIN)/pytest -q -n2 tests/unit

# Two at a time, the longest first: a guest uses about one CPU. What takes long is left to test-all, whose guests have the
# machine alone.
test: $(VENV)/ready
	$(MAKE) -j2 --output-sync=target QUICK=yes lint guest-four-2 guest-debian13 unit guest-four-1 guest-cpuless guest-v1

test-all: $(VENV)/ready
	$(PARTS) run $(PART)

test-all-parts: $(VENV)/ready
	@$(PARTS) list $(PART)

release-check: $(VENV)/ready
	@$(PARTS) check $(PART)

lint: $(VENV)/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	shellcheck .ci/run $$(git ls-files '*.sh' 'hooks/slurm/prolog.d/*' 'contrib/debian/p*')

unit: $(VENV)/ready $(if $(QUICK),,more-packages)
	$(BIN)/pytest -q $(if $(QUICK),-m 'not long')

deb: $(DEB)

$(DEB): $(DEB_SOURCES) | $(VENV)/ready
	contrib/debian/build.sh $(VENV) $(DEB_PYTHON) $@

# A boot takes seconds: one for each machine, all tests of it in one session.
$(MACHINES) guest-debian13: $(VENV)/ready

guest-four-1:
	$(GUEST) run --layout four --timeout 3000 --results .cache/four-1 -- $(PYTEST) tests/guest $(CASES) -m 'not cpuless and not package and not folios and not fuzz $(SHORT)' --shard 1/2

guest-four-2:
	$(GUEST) run --layout four --timeout 3000 --results .cache/four-2 -- $(PYTEST) tests/guest $(CASES) -m 'not cpuless and not package and not folios and not fuzz $(SHORT)' --shard 2/2

guest-root:
	$(GUEST) run --layout four --timeout 3000 --results .cache/root -- $(PYTEST) $(filter-out %rights.py,$(MEMORY)) --rights root

# Debian 13, as far as each change must pass it.
guest-debian13:
	$(GUEST) run --layout four --debian 13 --timeout 3000 --results .cache/debian13 -- \
	    $(PYTEST) $(addprefix tests/guest/test_,$(addsuffix .py,failures folios huge rights shared machine \
	    agent)) tests/host/test_whose_pages.py -m 'not long'

guest-debian13-1:
	$(GUEST) run --layout four --debian 13 --timeout 3500 --results .cache/debian13-1 -- $(PYTEST) tests/guest $(CASES) -m 'not cpuless and not package and not fuzz' --shard 1/2

guest-debian13-2:
	$(GUEST) run --layout four --debian 13 --timeout 3500 --results .cache/debian13-2 -- $(PYTEST) tests/guest $(CASES) -m 'not cpuless and not package and not fuzz' --shard 2/2

guest-fuzz:
	$(GUEST) run --layout four --timeout 3000 --results .cache/fuzz -- $(PYTEST) $(FUZZ)

guest-fuzz-13:
	$(GUEST) run --layout four --debian 13 --timeout 3000 --results .cache/fuzz-13 -- $(PYTEST) $(FUZZ)

guest-cpuless:
	$(GUEST) run --layout cpuless --timeout 1800 --results .cache/cpuless -- $(PYTEST) tests/guest -m '(cpuless or every_machine) $(SHORT)'

guest-tight:
	$(GUEST) run --layout tight --timeout 900 --results .cache/tight -- $(PYTEST) tests/guest -m every_machine

guest-v1:
	$(GUEST) run --layout four --cgroup v1 --timeout 3000 --results .cache/v1 -- $(PYTEST) $(V1_TESTS) -m '(v1 or every_machine) $(SHORT)'

guest-package: $(DEB)
	$(GUEST) run --layout four --systemd --timeout 900 --results .cache/package -- \
	    $(PYTEST) tests/guest -m 'package or systemd'

demo: $(VENV)/ready
	$(GUEST) run --layout four --timeout 600 --results .cache/demo -- env PYTHONPATH=tests python -m guest.demo

bench: $(VENV)/ready more-packages
	$(BIN)/python bench/run.py

look: $(VENV)/ready
	PYTHONPATH=planner:plugin:tests:. $(BIN)/python -m bench.look $(if $(AGAINST),--against $(AGAINST))

soak: $(VENV)/ready
	$(GUEST) run --layout four --slurm --timeout 2400 --results .cache/soak -- env PYTHONPATH=tests python -m guest.soak

guest: $(VENV)/ready
	$(GUEST) shell --layout $(or $(LAYOUT),four) $(if $(DEBIAN),--debian $(DEBIAN)) --slurm

packages:
	@$(call install,$(PACKAGES))

more-packages:
	@$(call install,$(MORE_PACKAGES))

install = missing=$$(for package in $(1); do \
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
