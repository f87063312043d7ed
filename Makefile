.PHONY: demo test test-fast test-all test-browser bench lint figures notebook tensorboard
PYTHON := .venv/bin/python

# Trains UNet1024 on drawn cars and predicts others: needs two cores, but no GPU and no Kaggle account.
# Other options: make demo ARGS="--epochs 3"
demo: .venv/installed
	@$(PYTHON) main.py --dataset sample --net UNet1024 --input-img-resize 128 128 --output-img-resize 128 128 \
	    --optimizer AdamW --learning-rate 0.001 --schedule one_cycle --batch-size 4 --epochs 6 $(ARGS)
	@echo "what next   $(PYTHON) predict.py input/sample/test    (cuts these cars out; or: make tensorboard)"

test: .venv/installed-dev
	@$(PYTHON) -m pytest -m "not slow"

test-fast: .venv/installed-dev
	@$(PYTHON) -m pytest -m "not slow and not seconds"

# With the tests that take minutes: the whole demo, a training on two nodes, overfitting, the study of a GPU.
test-all: .venv/installed-dev
	@$(PYTHON) -m pytest

# Opens TensorBoard's page in Chromium, and installs Chromium if there is none.
test-browser: .venv/installed-browser
	$(PYTHON) -m pytest tests/test_browser.py

bench: .venv/installed-dev
	@$(PYTHON) benchmarks

lint: .venv/installed-dev
	.venv/bin/ruff check

# Draws the figures of the docs. The first time, it trains three nets for them.
# Only some of them: make figures ARGS="gains speed"
figures: .venv/installed-dev
	@$(PYTHON) docs/figures.py $(ARGS)

# Makes docs/tutorial.ipynb of docs/tutorial.md and its figures.
notebook:
	@python3 docs/make_notebook.py

tensorboard: .venv/installed
	$(PYTHON) -m tensorboard.main --logdir=./logs --samples_per_plugin=images=1000

.venv/installed: requirements.txt
	python3 -m venv .venv
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

.venv/installed-browser: .venv/installed-dev requirements-browser.txt
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements-browser.txt
	command -v chromium || command -v chromium-browser || command -v google-chrome || \
	    $(PYTHON) -m playwright install --with-deps chromium || (apt-get update && apt-get install -y chromium)
	touch $@
