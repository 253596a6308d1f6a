"""Imports go only down the house: a line a package says what each may import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hfprune
from hfprune.structure.modeling_pruned import loader_text

PACKAGE = Path(hfprune.__file__).parent
#: By package (or file at the root): what of the rest of hfprune its files may import.
MAY_IMPORT = {
    "errors": set(),
    "distributed": {"errors"},
    "showing": {"errors"},
    "structure": {"errors", "distributed"},
    "encoders": {"errors", "structure"},
    "measuring": {"errors", "distributed", "showing", "structure"},
    "scoring": {"errors", "distributed", "showing", "structure"},
    "data": {"errors", "distributed", "structure", "measuring"},
    "planning": {"errors", "showing", "structure", "measuring", "scoring"},
    "config": {"errors", "structure", "measuring", "planning"},
    "publishing": {"errors", "distributed", "showing", "structure", "encoders", "measuring", "planning"},
    "reconstruction": {"errors", "distributed", "showing", "structure", "scoring"},
    "pruning": {"errors", "showing", "structure", "measuring", "scoring", "planning", "config", "publishing"}
    | {"encoders", "reconstruction"},
    "vocabulary": {"errors", "structure", "encoders", "measuring", "planning", "publishing"},
    "recovery": {"errors", "distributed", "structure", "measuring", "scoring", "planning", "config", "publishing"}
    | {"encoders", "pruning"},
    "sweeping": {"errors", "showing", "structure", "measuring", "scoring", "planning", "config", "publishing"}
    | {"reconstruction", "pruning"},
    "deployment": {"errors", "showing", "structure", "measuring", "data", "publishing"},
    "jobs": {"errors", "distributed", "structure", "measuring", "scoring", "data", "planning", "config", "publishing"}
    | {"encoders", "pruning", "recovery", "sweeping", "deployment"},
    "reporting": {"errors", "showing", "planning", "publishing", "sweeping"},
    "cli": {"errors", "structure", "measuring", "scoring", "data", "planning", "config", "publishing", "pruning"}
    | {"showing", "sweeping", "vocabulary", "deployment", "jobs", "reporting"},
    "deprecated": set(),
    "__init__": {"errors", "structure", "planning", "publishing", "deprecated"},
    "__main__": {"cli"},
}
FILES = sorted(PACKAGE.rglob("*.py"))
#: Imported inside functions: what takes long to import, or what users may not have.
LATE = {
    "jsonschema",
    "jsonschema.exceptions",
    "matplotlib",
    "matplotlib.colors",
    "matplotlib.figure",
    "peft",
    "lm_eval",
    "rouge_score.rouge_scorer",
    "sacrebleu.metrics",
}
#: Runtimes of exported models, and the exporters of transformers, which its older versions do not have.
LATE |= {
    "transformers.exporters",
    "transformers.exporters.utils",
    "onnxruntime",
    "openvino",
    "executorch.backends.xnnpack.partition.xnnpack_partitioner",
    "executorch.exir",
    "executorch.extension.pybindings.portable_lib",
    "executorch.runtime",
    "transformers.integrations.executorch",
    "gguf",
    "gguf.quants",
    "xllamacpp",
    "litert_torch",
    "ai_edge_litert.interpreter",
    "ai_edge_quantizer",
    "torchao.quantization",
    "sentence_transformers",
}
#: It is there with datasets, but takes half a second to import.
LATE |= {"pandas"}
#: What opens pictures, and sounds that are no wav files, which users of texts need not have.
LATE |= {"PIL", "soundfile"}
#: What measures speech recognition.
LATE |= {"jiwer"}

#: Files of the command line that say what a command takes. They import what it runs when it runs, as help and
#: completion must not wait for torch and transformers.
COMMANDS = {"__init__", "app", "options", "prune", "sweep", "latency_table", "vocabulary", "evaluate", "export"}
COMMANDS |= {"checkpoints", "quantize", "recover", "run"}


def is_of_commands(path: Path) -> bool:
    return path.parent == PACKAGE / "cli" and path.stem in COMMANDS


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def module_of(path: Path) -> str:
    parts = ("hfprune", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


def for_types_only(tree: ast.AST) -> set[int]:
    """Nodes inside of `if TYPE_CHECKING:`."""
    nodes: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            nodes.update(id(inner) for inner in ast.walk(node))
    return nodes


def imports_of(path: Path) -> list[str]:
    """The modules of hfprune that a file imports; of the façade, which names its types early, those that it runs."""
    names = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    left_out = for_types_only(tree) if path == PACKAGE / "__init__.py" else set()
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                is_module = (PACKAGE.parent / Path(*inside.split("."))).with_suffix(".py").is_file()
                names.append(inside if is_module else node.module)
    return [name for name in names if name.split(".")[0] == "hfprune"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_import_climbs(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imports_of(path):
        part = part_of(name)
        assert part == own or part in MAY_IMPORT[own], f"{path} imports {name}, which is above it or beside it"


def test_packages_stand_one_above_the_other():
    seen = set()
    for package, may_import in MAY_IMPORT.items():
        assert may_import <= seen | {"deprecated"}, f"{package} may import what stands behind it in the table"
        seen.add(package)
    there = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert there - {"__pycache__"} == seen


def test_no_files_import_each_other_in_a_circle():
    edges = {module_of(path): set(imports_of(path)) for path in FILES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join((*path, module))}"
        if module in done:
            return
        for other in sorted(edges.get(module, ())):
            # that a package's __init__ hands on the names of its files is no circle
            if other != module:
                visit(other, (*path, module))
        done.add(module)

    for module in edges:
        visit(module, ())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_stand_at_the_top(path):
    if path == PACKAGE / "__init__.py":  # the façade, whose `import hfprune` must be light
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.ImportFrom):
                of_command = is_of_commands(path) and node.module.startswith("hfprune.")
                assert of_command or node.module in LATE, f"{path}: {node.module} is imported inside {function.name}"
            elif isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= LATE, f"{path}: an import inside {function.name}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "cli").glob("*.py")), ids=lambda p: p.stem)
def test_commands_import_what_they_run_when_they_run(path):
    """At the top of their files: typer, what the standard library has, and each other."""
    if not is_of_commands(path):
        return
    light = {"typer", "hfprune.errors", *(f"hfprune.cli.{name}" for name in COMMANDS)}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        for name in names:
            assert name in light or name.split(".")[0] in sys.stdlib_module_names, f"{path} imports {name} at the top"
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef):
            continue
        late = [node for node in ast.walk(function) if isinstance(node, ast.ImportFrom)]
        # the package may not have been run yet, except in there
        inside = [node for with_ in ast.walk(function) if isinstance(with_, ast.With) for node in with_.body]
        assert set(late) <= set(inside), f"{path}: {function.name} imports outside of errors_in_one_line"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_end_where_their_idea_ends(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


def test_planning_has_no_modules_of_torch_nn():
    for path in (PACKAGE / "planning").glob("*.py"):
        assert "torch.nn" not in path.read_text()
        assert "transformers" not in path.read_text()


def test_the_loader_needs_torch_and_transformers_only():
    tree = ast.parse(loader_text())
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add(node.module.split(".")[0])
    assert roots - set(sys.stdlib_module_names) == {"torch", "transformers"}


def test_every_public_name_is_there_and_import_is_light():
    code = (
        "import sys, hfprune\n"
        "heavy = [m for m in ('evaluate', 'datasets', 'transformers.trainer', 'sklearn') if m in sys.modules]\n"
        "assert not heavy, heavy\n"
        "for name in hfprune.__all__: getattr(hfprune, name)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
