"""A Hub on the loopback interface, other processes, and what some tests do without. More is in the conftest above."""

import pytest
import torch

from tests.support import contract_table
from tests.support.hub import Hub, loopback_hub
from tests.support.processes import Python


@pytest.fixture(scope="session")
def _running_hub():
    with loopback_hub() as hub:
        yield hub


@pytest.fixture
def hub(_running_hub: Hub):
    """A Hub without repositories; `client` uses it."""
    _running_hub.forget()
    return _running_hub


@pytest.fixture(scope="session")
def _pythons(_running_hub: Hub, tmp_path_factory):
    started: dict[bool, Python] = {}

    def get(with_hfprune: bool) -> Python:
        python = started.get(with_hfprune)
        if python is None or python.process.poll() is not None:
            folder = tmp_path_factory.mktemp("client")
            python = Python(_running_hub.environment(folder), folder / "log", with_hfprune=with_hfprune)
            started[with_hfprune] = python
        return python

    yield get
    for python in started.values():
        python.close()


@pytest.fixture
def client(_pythons, tmp_path):
    """Run code in another process, in `tmp_path`, where hfprune can be imported or cannot; see `Python.run`."""
    return lambda code, *, with_hfprune=True, **options: _pythons(with_hfprune).run(code, folder=tmp_path, **options)


@pytest.fixture
def one_thread():
    """For what is compared to the last bit with another process, which has one too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_addoption(parser):
    parser.addoption("--contract-table", metavar="FILE", help="write what every contract cell measured")
    parser.addoption("--suite-dir", metavar="DIR", help="the source of another project, whose tests are to be run")
    parser.addoption("--suite-results", metavar="FILE", help="write what became of another project's tests")


def pytest_terminal_summary(terminalreporter, config):
    contract_table.summarize(terminalreporter, config.getoption("--contract-table"))
