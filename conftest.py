"""Tests and the examples in docstrings run offline, seeded, without progress bars, and write into temporary folders."""

import gc
import inspect
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import pytest
import torch
from huggingface_hub import constants
from transformers.utils import logging

import hfprune  # noqa: F401 (registers pruned types with the Auto classes)
from hfprune.measuring import latency
from hfprune.publishing import card, verification
from hfprune.sweeping.run import sweep
from tests.support.examples import given
from tests.support.registries import restored

logging.disable_progress_bar()
datasets.disable_progress_bars()


def pytest_collection_finish():
    """Torch, transformers and the tests stay to the end: Python need not search them for garbage again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _caches_in_tmp(tmp_path_factory, monkeypatch):
    """Nothing is read from or written to the user's cache of data sets."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


@pytest.fixture(autouse=True)
def _marks_in_tmp(tmp_path_factory, monkeypatch):
    """That a checkpoint was verified, and latency tables, are not written into the user's cache."""
    home = str(tmp_path_factory.getbasetemp() / "hf")
    monkeypatch.setattr(verification, "HF_HOME", home)
    monkeypatch.setattr(constants, "HF_HOME", home)


@pytest.fixture(autouse=True)
def _no_pictures(request, monkeypatch):
    """Cards have no pictures, which take longer than all else of a small model's saving, but in tests marked so."""
    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr(card, "can_draw", lambda: False)


@pytest.fixture(autouse=True)
def _few_timed_passes(monkeypatch):
    """Latency is measured in few passes where a call does not say in how many: no test goes by the times."""
    for function in (latency.measure_latency, latency.measure_latencies):
        defaults = inspect.unwrap(function).__kwdefaults__
        monkeypatch.setitem(defaults, "runs", 3)
        monkeypatch.setitem(defaults, "warmup", 1)
    monkeypatch.setitem(inspect.unwrap(sweep).__kwdefaults__, "latency_runs", 3)


@pytest.fixture(autouse=True)
def _examples(request):
    """Every example gets models and data of its own, and an empty folder; what it registers is forgotten after it."""
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("_folder_of_example")
        request.getfixturevalue("_registries_as_before")


@pytest.fixture
def _folder_of_example(doctest_namespace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    doctest_namespace.update(given())


@pytest.fixture
def _registries_as_before():
    with restored():
        yield
