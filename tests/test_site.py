"""The site builds strictly, and its reference has every public name."""

import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import zlib

import pytest

import hfprune
from docs.examples_in_docstrings import with_code_blocks
from tests.support.pages import ROOT

#: Old paths; the commands, which have a page of their own; the loader, which goes into checkpoints.
NOT_PUBLIC = ("hfprune.deprecated", "hfprune.cli", "hfprune.structure.modeling_pruned")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site's folder. Strict: a broken link or anchor, a page outside the menu or a missing name fails."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


def documented_names(site) -> set[str]:
    """From the inventory of the site, in the format of Sphinx: four lines, and then compressed ones."""
    content = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(content).decode().splitlines()
    return {line.split(" ", 1)[0] for line in lines}


def public_names() -> set[str]:
    """What a package exports, and every function that registers something or lists what is registered."""
    names = set()
    modules = [hfprune]
    for found in pkgutil.walk_packages(hfprune.__path__, "hfprune."):
        if not found.name.startswith(NOT_PUBLIC):
            modules.append(importlib.import_module(found.name))
    for module in modules:
        is_package = hasattr(module, "__path__")
        if is_package:
            names.update(f"{module.__name__}.{name}" for name in getattr(module, "__all__", ()))
        for name, value in vars(module).items():
            own = getattr(value, "__module__", None) == module.__name__
            if own and re.match("(register|known)_", name):
                names.add(f"{module.__name__}.{name}")
    modules_of_names = {name for name in names if inspect.ismodule(_value(name))}
    return names - modules_of_names


def _value(name: str) -> object:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def test_the_reference_has_every_public_name(site):
    names = public_names()
    assert {"hfprune.prune", "hfprune.scoring.register_scorer"} <= names
    assert names - documented_names(site) == set()


@pytest.mark.parametrize("name", sorted(public_names()))
def test_every_public_name_has_a_docstring(name):
    value = _value(name)
    if inspect.isclass(value) or inspect.isroutine(value):
        assert value.__doc__
        assert not value.__doc__.startswith(f"{value.__name__}("), f"{name}: a dataclass without a docstring"


def test_nothing_is_loaded_from_other_hosts(site):
    loads = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""")
    for page in site.rglob("*.html"):
        loaded = set(loads.findall(page.read_text(encoding="utf-8")))
        assert not loaded, f"{page.relative_to(site)}: {loaded}"


def test_doctests_become_code_blocks():
    assert with_code_blocks("What.\n\n>>> 1 + 1\n2\n\nMore.") == "What.\n\n```pycon\n>>> 1 + 1\n2\n```\n\nMore."
    assert with_code_blocks("Example:\n    >>> 1") == "Examples:\n    >>> 1"
