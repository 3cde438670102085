# Everything installs into .venv and runs from there; nothing but Python packages is downloaded.
PYTHON ?= python3
SCALE ?= paper
OUT ?= reports/razin_cohen_2020
MINUTES ?= 10
SEED ?= 0

# Compilation is most of the tests' time and takes one core; a file's tests share what they compile.
# The longest files come first, see tests/conftest.py.
WORKERS ?= 2
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

VENV := .venv
BIN := $(VENV)/bin

.PHONY: help reproduce test test-lowest lint bench campaign clean
.NOTPARALLEL:  # two pips in one environment break each other

help:
	@echo "make reproduce   the figures and claims of Razin & Cohen (2020): $(OUT)/index.html"
	@echo "                 (SCALE=quick for a small version, OUT=DIR for another folder)"
	@echo "make test        doctests and tests in double precision, then the tests in float32"
	@echo "                 (WORKERS=4 for more processes at once than two)"
	@echo "make test-lowest the oldest versions allowed: a flow and a figure, in an environment apart"
	@echo "make lint        ruff, basedpyright and the import layers"
	@echo "make bench       benchmarks"
	@echo "make campaign    random runs against an exact flow: is anything trusted that is not true?"
	@echo "                 (MINUTES=10 SEED=0; ONLY=17.4 for one run, as it is printed)"
	@echo "make clean       remove .venv and caches; reports stay"

# One stamp per extra: a second run installs nothing until these files change.
$(VENV)/.installed-%: pyproject.toml constraints.txt
	@echo "Installing factorflow[$*] into $(VENV)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@

.PRECIOUS: $(VENV)/.installed-%

# The report is written, and worth reading, when a claim fails too.
reproduce: $(VENV)/.installed-plot
	@$(BIN)/factorflow reproduce razin_cohen_2020 --scale $(SCALE) --out $(OUT); status=$$?; \
	if test -f $(OUT)/index.html; then echo "Report: $(abspath $(OUT))/index.html"; fi; \
	exit $$status

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(PARALLEL) --doctest-modules src tests
	FACTORFLOW_TEST_PRECISION=float32 $(BIN)/python -m pytest $(PARALLEL) tests

# The lower bounds in pyproject.toml are those that this passes with.
LOWEST := $(VENV)-lowest
test-lowest:
	test -x $(LOWEST)/bin/pip || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt -e '.[plot,convex]'
	$(LOWEST)/bin/factorflow reproduce razin_cohen_2020 --scale quick --figure step_size --out $(LOWEST)/report --no-progress

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright
	$(BIN)/lint-imports --no-logo

# COMPARE=1 adds a plain PyTorch loop to compare with.
bench: $(VENV)/.installed-plot $(if $(COMPARE),$(VENV)/.installed-torch)
	$(BIN)/python benchmarks/run.py

# PAGE=docs/certificates.md writes the table there; EACH is how long a structure's runs may take, in
# seconds of a processor. KEPT=FILE keeps what is done: the same command goes on from there.
campaign: $(VENV)/.installed-test
	PYTHONPATH=tests $(BIN)/python -m campaign --minutes $(MINUTES) --seed $(SEED) \
	  $(if $(RUNS),--runs $(RUNS)) $(if $(EACH),--seconds $(EACH)) \
	  $(if $(KEPT),--kept $(KEPT)) $(if $(ONLY),--only $(ONLY)) $(if $(PAGE),--markdown $(PAGE))

$(VENV)/.installed-torch: $(VENV)/.installed-plot
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-lowest .benchmarks .hypothesis .import_linter_cache .pytest_cache .ruff_cache dist
