# make detect      boxes on the photographs of data/photos, in runs/detect
# make test        ruff, every test, every notebook
# make notebooks   Jupyter on nbs/
# make lint        ruff alone
#
# Each makes .venv and installs what it needs the first time, and again when pyproject.toml changes.
# Another Python: make detect PYTHON=python3.12. Another place: make detect VENV=/somewhere/else.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
NBTIMEOUT ?= 900

.PHONY: detect test notebooks lint

detect: $(VENV)/installed-base
	$(BIN)/python -m odutils detect data/photos --out runs/detect

test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q
	$(BIN)/python -m pytest -q --nbmake --nbmake-timeout=$(NBTIMEOUT) nbs

notebooks: $(VENV)/installed-notebooks
	$(BIN)/python -m jupyter lab nbs

lint: $(VENV)/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or later is needed, this is %d.%d: try PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# OpenCV's usual wheel wants the system's libGL, which servers and containers often lack; the headless one does not.
define install
	@echo "Installing into $(VENV), once; with torch for the GPU that is some gigabytes and some minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.$(1)'
	@$(BIN)/python -c 'import cv2' 2>/dev/null || { \
		echo "opencv-python does not load here; taking opencv-python-headless instead"; \
		$(BIN)/python -m pip uninstall --quiet --yes opencv-python; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check opencv-python-headless; }
	@touch $@
endef

$(VENV)/installed-base: pyproject.toml | $(VENV)/made
	$(call install,)

$(VENV)/installed-test: pyproject.toml | $(VENV)/made
	$(call install,[test])

$(VENV)/installed-notebooks: pyproject.toml | $(VENV)/made
	$(call install,[notebooks])

$(VENV)/installed-lint: pyproject.toml | $(VENV)/made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'ruff>=0.9'
	@touch $@
