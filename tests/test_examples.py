"""Central functions and classes have an example in their docstring; pytest runs them all (`--doctest-modules`)."""

import ast
import builtins
import doctest
import importlib
import inspect
import pkgutil
from dataclasses import is_dataclass
from functools import cached_property
from types import FunctionType

import pytest

import hfprune
from tests.support.examples import DEFINITIONS, GIVEN
from tests.support.registries import REGISTRIES, restored

#: Central, though in no `__all__`.
ALSO_CENTRAL = [
    "hfprune.measuring.latency.measure_latencies",
    "hfprune.publishing.callback.KeepPruningFiles",
    "hfprune.publishing.verification.verify",
]
#: What has no example, and why.
WITHOUT = {
    # this file is part of published checkpoints, which know its digest; `AutoConfig` calls it, users do not
    "hfprune.structure.modeling_pruned.register_config",
}
METHODS = (FunctionType, classmethod, staticmethod, property, cached_property)
SECTIONS = ["Args:", "Attributes:", "Returns:", "Yields:", "Raises:"]


def all_modules():
    for info in pkgutil.walk_packages(hfprune.__path__, "hfprune."):
        if not info.name.endswith("__main__"):
            yield importlib.import_module(info.name)


def is_own(thing) -> bool:
    """Whether it is a function or class of hfprune; aliases of types, modules and data are not."""
    return (inspect.isfunction(thing) or inspect.isclass(thing)) and thing.__module__.startswith("hfprune")


def is_plain_data(thing) -> bool:
    """Whether it only holds values (a result, or the arguments of a script), is an exception or describes a type."""
    if not inspect.isclass(thing):
        return False
    return is_dataclass(thing) or issubclass(thing, (tuple, Exception)) or getattr(thing, "_is_protocol", False)


def central() -> dict[str, object]:
    """By name where it is defined: what hfprune and its packages list in `__all__`, and the `register_` functions."""
    found = {}

    def add(thing):
        found[f"{thing.__module__}.{thing.__qualname__}"] = thing

    # whatever the front door shows needs an example, a config too
    for name in hfprune.__all__:
        if is_own(getattr(hfprune, name)):
            add(getattr(hfprune, name))
    for module in all_modules():
        listed = [getattr(module, name) for name in getattr(module, "__all__", [])]
        registering = [thing for name, thing in vars(module).items() if name.startswith("register_")]
        for thing in listed + registering:
            if is_own(thing) and not is_plain_data(thing):
                add(thing)
    for name in ALSO_CENTRAL:
        home, _, last = name.rpartition(".")
        add(getattr(importlib.import_module(home), last))
    return found


CENTRAL = central()
WITH_EXAMPLE = sorted(set(CENTRAL) - WITHOUT)


def public() -> dict[str, object]:
    """Every function and class of hfprune whose name, and whose module's, has no underscore in front."""
    found = {}
    for module in all_modules():
        if any(part.startswith("_") for part in module.__name__.split(".")):
            continue
        source = inspect.getsource(module)
        for name, thing in vars(module).items():
            if name.startswith("_") or not is_own(thing) or thing.__module__ != module.__name__:
                continue
            # classes that are made on demand have no docstring of their own
            if inspect.isfunction(thing) or f"class {name}" in source:
                found[f"{module.__name__}.{name}"] = thing
    return found


PUBLIC = public()


def drawn() -> dict[str, object]:
    """What the reference draws an example of: central names, values that are listed, and the methods of both."""
    found = {name: CENTRAL[name] for name in WITH_EXAMPLE}
    classes = [thing for thing in CENTRAL.values() if inspect.isclass(thing)]
    for module in all_modules():
        listed = [getattr(module, name) for name in getattr(module, "__all__", [])]
        classes += [thing for thing in listed if inspect.isclass(thing) and is_own(thing)]
    for cls in classes:
        home = f"{cls.__module__}.{cls.__qualname__}"
        members = {home: cls}
        for name, thing in vars(cls).items():
            if isinstance(thing, METHODS) and not name.startswith("_"):
                members[f"{home}.{name}"] = thing
        # a value may do without an example
        found.update({name: thing for name, thing in members.items() if code_of(thing)})
    return found


def names_used(code: str) -> set[str]:
    """The names that code reads and neither makes nor imports itself."""
    made, read = set(), set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else made).add(node.id)
        elif isinstance(node, ast.alias):
            made.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            made.add(node.name)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
    return read - made - set(dir(builtins))


def code_of(thing) -> str:
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(thing) or "")
    return "".join(example.source for example in examples)


DRAWN = drawn()


def test_the_front_door_is_central():
    assert {"hfprune.pruning.prune.prune", "hfprune.config.PruningConfig"} <= set(CENTRAL)
    assert "hfprune.planning.allocation.register_allocator" in CENTRAL
    assert set(CENTRAL) >= WITHOUT, "WITHOUT names something that is not central"


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_example(name):
    assert code_of(CENTRAL[name]), f"{name} has no example (>>>) in its docstring"


@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_no_example_is_listed_only_where_there_is_none(name):
    assert not code_of(CENTRAL[name]), f"{name} has an example now: take it out of WITHOUT"


def test_registries_are_restored_after_an_example():
    with restored():
        hfprune.scoring.register_scorer("forgotten", reads="weights")(lambda statistics: statistics.weights.sum(1))
        assert "forgotten" in hfprune.scoring.known_scorers()
    assert "forgotten" not in hfprune.scoring.known_scorers()


def test_no_registry_is_left_out_of_the_restored_ones():
    for module in all_modules():
        registers = [thing for name, thing in vars(module).items() if name.startswith("register_")]
        if not any(is_own(thing) and thing.__module__ == module.__name__ for thing in registers):
            continue
        for name, thing in vars(module).items():
            if isinstance(thing, dict) and name.startswith("_") and name.isupper():
                assert any(thing is registry for registry in REGISTRIES), f"{module.__name__}.{name}"


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_readers_see_where_the_names_come_from(name):
    unknown = names_used(code_of(DRAWN[name])) - set(GIVEN)
    assert not unknown, f"the example of {name} uses {sorted(unknown)}: import them, or make them"


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_examples_are_the_last_section(name):
    """The reference draws code only in a section of that name, and readers look for it at the end."""
    lines = inspect.getdoc(DRAWN[name]).splitlines()
    assert "Examples:" in lines
    before = lines[: lines.index("Examples:")]
    after = lines[lines.index("Examples:") :]
    assert not any(line.strip().startswith(">>>") for line in before)
    assert not set(after) & set(SECTIONS)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_first_line_is_a_sentence(name):
    first = (inspect.getdoc(PUBLIC[name]) or "").partition("\n")[0]
    assert first.endswith("."), f"{name}: {first!r} should be one sentence"
    assert not first[0].islower(), f"{name}: {first!r} should begin like a sentence"
    assert not first.startswith(("Return", "This ", "Helper")), f"{name}: say what one gets: {first!r}"


def test_definitions_for_the_examples_fit_on_a_page():
    assert len(DEFINITIONS.read_text().splitlines()) <= 60


@pytest.mark.hub
def test_push_to_hub(client, hub):
    """Doctest skips it, because it has no Hub."""
    *steps, last = doctest.DocTestParser().get_examples(hfprune.push_to_hub.__doc__)
    code = "".join(step.source for step in steps)
    said = client(f"{DEFINITIONS.read_text()}\n{code}\nsay(same=(\n{last.source}\n))")
    assert str(said["same"]) == last.want.strip()
    assert "pruning_plan.json" in hub.repos["me/small"].files()
