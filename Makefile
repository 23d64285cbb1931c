# `make demo` shows the whole job, `make test` checks the whole book. Both make the environment first.
# `make help` lists what else there is: each target with the text behind ##.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SHAPES = data/shapes
# Both variants learn with the same rate. Shapes look like nothing in ImageNet, so the segmenter
# begins where the classifier ended.
DEMO = --data $(SHAPES) --classifier.crop 160 --classifier.epochs 5 \
	--classifier.learning-rate 0.01 --cams.scales 1 0.5 1.5 --segmenter.begin classifier \
	--segmenter.epochs 4 --segmenter.crop 80 --segmenter.learning-rate 0.005 \
	--segmenter.new-layers 1 --segmenter.new-biases 2 --prediction.scales 1

.PHONY: install help crf demo table test bench soak lab exercises marks docs clean

install: $(VENV)/installed  ## make the environment, and install the package into it
	@echo "To use it, type this in every new terminal:   . $(BIN)/activate"
	@echo "and then, to see what there is:               wsss_nb --help"

help:  ## list what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s%s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(VENV)/installed: settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed: make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --upgrade pip
	$(BIN)/pip install -e '.[dev]'
	@$(MAKE) --no-print-directory crf || echo "$(NO_CRF)"
	@touch $@

# The dense CRF has no binary packages, and its own Cython is too old for Python 3.13.
NO_CRF = The dense CRF was not installed: it needs a C++ compiler. PAMR takes its place, \
	and the tests of the CRF skip. Once there is a compiler: make crf
crf:  ## build the dense CRF into the environment (needs a C++ compiler)
	$(BIN)/pip install 'cython>=3' setuptools wheel
	$(BIN)/pip install --no-build-isolation '$(shell sed -n 's/^crf_requirements = //p' settings.ini)'

demo: $(VENV)/installed  ## the whole job on generated photos, in two variants (3 minutes)
	$(BIN)/wsss_nb shapes $(SHAPES)
	$(BIN)/wsss_nb run --system baseline --out runs/baseline $(DEMO)
	$(BIN)/wsss_nb run --system words --out runs/full $(DEMO)
	@$(BIN)/wsss_nb compare runs/baseline runs/full
	@echo "The figures are runs/baseline/figures/examples.png and runs/full/figures/examples.png"

# The paper's ablation on the same data, up to the CAMs, with three seeds: 21 runs.
table: $(VENV)/installed  ## the paper's ablation on generated photos
	$(BIN)/wsss_nb shapes $(SHAPES)
	$(BIN)/wsss_nb table b --out runs/table-b --seeds 0 1 2 \
		--variants baseline GMP '+ words' '+ HSPP' both VWL-L VWL-M $(DEMO)

# One thread a process: two processes that share two cores wait for each other most of the time.
# Chapters that compute a dense CRF on their page are left out where there is none.
test: $(VENV)/installed  ## all notebooks and tests
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 $$($(BIN)/python tests/without_crf.py)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests

# Our way and the published one in turns, on the machine as it is and with every core busy; the rows
# go to data/measured_speed.csv. `make bench BENCH=--whole`: also what takes minutes.
bench: $(VENV)/installed  ## time our way and the published one
	$(BIN)/python -m pytest tests/bench/bench_*.py --benchmark-columns=median,iqr,rounds $(BENCH)

# Hours of work in little: steps and photos by the thousand, kills at random moments, damaged files.
soak: $(VENV)/installed  ## the long distance: memory, kills, damaged files (hours)
	$(BIN)/python tests/soak/steady.py
	$(BIN)/python tests/soak/kills.py
	$(BIN)/python tests/soak/mutations.py --count 30000

NOTEBOOKS ?= nbs
lab: $(VENV)/installed  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab $(NOTEBOOKS)

# Chapters without their solutions and answers, to fill in; those that are there stay as they are.
exercises: $(VENV)/installed  ## copy chapters without their solutions, to fill in
	$(BIN)/python -c "from wsss_nb.exercises import make_sheets; make_sheets('nbs', 'exercises')"
	@echo "To fill them in: make lab NOTEBOOKS=exercises"

# Which functions are right in the sheets of a folder: `make marks SHEETS=folder`. It runs them.
SHEETS ?= exercises
marks: $(VENV)/installed  ## say which functions of such sheets are right
	@$(BIN)/python -c "from wsss_nb.exercises import print_marks; \
		raise SystemExit(len(print_marks('nbs', '$(SHEETS)')) > 0)"

# The notebooks with their stored outputs, guides and a reference as a site that needs no network: open _docs/index.html.
docs: $(VENV)/installed  ## the notebooks, guides and reference as a site: _docs/index.html
	$(BIN)/python docs/prepare.py _proc/docs
	$(BIN)/sphinx-build -q -W --keep-going -b html -d _proc/doctrees _proc/docs _proc/html
	rm -rf _docs && mv _proc/html _docs
	@echo "The site is _docs/index.html"

clean:  ## take away what demo, table and docs made; not the environment
	rm -rf _docs _proc runs/baseline runs/full runs/table-b $(SHAPES) build *.egg-info
