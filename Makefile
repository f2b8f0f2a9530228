# make detect      boxes on the photographs of data/photos, in runs/detect
# make test        ruff, every test, every notebook
# make notebooks   Jupyter on nbs/
# make lint        ruff alone
# make test-lowest every test with the lowest versions that pyproject.toml admits, in .venv-lowest; some gigabytes more
#
# Each makes .venv and installs what it needs the first time, and again when pyproject.toml changes.
# Another Python: make detect PYTHON=python3.12. Another place: make detect VENV=/somewhere/else.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
LOWEST = $(VENV)-lowest/bin
NBTIMEOUT ?= 900

# JupyterLab refuses to run as root, as one is in a container, unless it is told to.
ALLOW_ROOT = $(shell [ "$$(id -u)" != 0 ] || echo --allow-root)

.PHONY: detect test notebooks lint test-lowest

detect: $(VENV)/installed-base
	$(BIN)/python -m odutils detect data/photos --out runs/detect

test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q
	$(BIN)/python -m pytest -q --nbmake --nbmake-timeout=$(NBTIMEOUT) nbs

notebooks: $(VENV)/installed-notebooks
	$(BIN)/python -m jupyter lab $(ALLOW_ROOT) nbs

lint: $(VENV)/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test-lowest: $(VENV)-lowest/installed
	$(LOWEST)/python -m pytest -q

$(VENV)/made $(VENV)-lowest/made:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or later is needed, this is %d.%d: try PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(@D)
	@touch $@

# OpenCV's usual wheel wants the system's libGL, which servers and containers often lack; the headless one does not.
define check_opencv
	@$(1)/python -c 'import cv2' 2>/dev/null || { \
		echo "opencv-python does not load here; taking opencv-python-headless instead"; \
		version=$$($(1)/python -m pip list --format=freeze | sed -n 's/^opencv-python==//p'); \
		$(1)/python -m pip uninstall --quiet --yes opencv-python; \
		$(1)/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps \
			"opencv-python-headless==$$version"; }
endef

define install
	@echo "Installing into $(VENV), once; with torch for the GPU that is some gigabytes and some minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.$(1)'
	$(call check_opencv,$(BIN))
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

# uv, because pip has no way to ask for the lowest versions.
$(VENV)-lowest/installed: pyproject.toml | $(VENV)-lowest/made
	$(LOWEST)/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/uv pip install --quiet --python $(LOWEST)/python --resolution lowest-direct --editable '.[test]'
	$(call check_opencv,$(LOWEST))
	@touch $@
