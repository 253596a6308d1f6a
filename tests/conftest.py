"""Offline, deterministic, and without Python warnings or progress bars."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import pytest
import torch
from transformers.utils import logging

import hfprune  # noqa: F401 (registers pruned types with the Auto classes)
from hfprune.publishing import card, verification
from tests.support import contract_table

logging.disable_progress_bar()
datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _caches_in_tmp(tmp_path_factory, monkeypatch):
    """Nothing is read from or written to the user's cache of data sets."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


@pytest.fixture(autouse=True)
def _marks_in_tmp(tmp_path_factory, monkeypatch):
    """That a checkpoint was verified is not written into the user's cache."""
    monkeypatch.setattr(verification, "HF_HOME", str(tmp_path_factory.getbasetemp() / "hf"))


@pytest.fixture
def no_pictures(monkeypatch):
    """For tests that save many small models: the pictures of the card would take longer than all the rest."""
    monkeypatch.setattr(card, "can_draw", lambda: False)


@pytest.fixture
def one_thread():
    """For what is compared to the last bit with another process, which has one too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_addoption(parser):
    parser.addoption("--contract-table", metavar="FILE", help="write what every contract cell measured")


def pytest_terminal_summary(terminalreporter, config):
    contract_table.summarize(terminalreporter, config.getoption("--contract-table"))
