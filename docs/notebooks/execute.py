"""Execute the notebooks of this folder and save them with their output.

    python docs/notebooks/execute.py                   # all of them
    python docs/notebooks/execute.py language_model    # one of them

Start it in the root of the repository. The notebooks write their models to
runs/notebooks there. The notebook of the classifier comes first, because two
others start from the model that it fine-tunes.

A notebook has one cell with the tag `parameters`, which sets names to values
(the convention of papermill). `with_parameters` gives other values to them: the
tests run every notebook on a tiny model.
"""

import argparse
import ast
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent
#: In this order: the second and the fourth read what the first one saves.
NAMES = ("classifier", "gradual_pruning", "language_model", "publish_and_load")
#: A progress bar. It shows something only while a kernel runs.
_WIDGET = "application/vnd.jupyter.widget-view+json"


def main() -> None:
    """Execute the notebooks that the command line names, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="execute.py [NAME ...]",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"one of {', '.join(NAMES)}; without a name all",
    )
    asked = parser.parse_args().names
    for name in asked:
        if name not in NAMES:
            parser.error(
                f"there is no notebook {name!r}; there are {', '.join(NAMES)}."
            )
    for name in asked or NAMES:
        path = FOLDER / f"{name}.ipynb"
        began = time.perf_counter()
        done = executed(read(path), Path.cwd())
        nbformat.write(tidied(done), path)
        seconds = time.perf_counter() - began
        kilobytes = path.stat().st_size / 1000
        print(f"{path.name}: {seconds:.0f} s, {kilobytes:.0f} kB", flush=True)


def read(path: Path) -> NotebookNode:
    """Read a notebook, in the format that all of this folder have."""
    return nbformat.read(path, as_version=4)


def with_parameters(
    notebook: NotebookNode, values: Mapping[str, Any]
) -> NotebookNode:
    """A copy of a notebook with other values in its cell of parameters.

    Args:
        notebook: The notebook.
        values: The new values, by name; all other parameters stay.

    Returns:
        The copy.

    Raises:
        ValueError: The notebook does not have one cell of parameters, or the
            cell does not set a name.
    """
    changed = nbformat.from_dict(notebook)
    cells = [
        cell
        for cell in changed.cells
        if "parameters" in cell.metadata.get("tags", [])
    ]
    if len(cells) != 1:
        raise ValueError(
            f"expected one cell with the tag 'parameters', got {len(cells)}."
        )
    (cell,) = cells
    names = names_set_in(cell.source)
    lines = [cell.source]
    for name, value in values.items():
        if name not in names:
            raise ValueError(
                f"the notebook has no parameter {name!r}; its parameters are "
                f"{', '.join(names)}."
            )
        lines.append(f"{name} = {value!r}")
    cell.source = "\n".join(lines)
    return changed


def names_set_in(code: str) -> list[str]:
    """The names to which code assigns values, in order."""
    names = []
    for statement in ast.parse(code).body:
        if isinstance(statement, ast.Assign):
            names += [
                target.id
                for target in statement.targets
                if isinstance(target, ast.Name)
            ]
    return names


def executed(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Execute a notebook in a kernel of this interpreter.

    Args:
        notebook: The notebook; it gets its outputs.
        folder: The folder in which the kernel runs.

    Returns:
        The notebook.

    Raises:
        CellExecutionError: The code of a cell raised an error.
    """
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        # the same code twice gives the same file
        record_timing=False,
        # one output for all lines that a cell prints
        coalesce_streams=True,
    )
    client.execute()
    return notebook


def tidied(notebook: NotebookNode) -> NotebookNode:
    """Leave out what a page cannot show, and what differs between machines.

    Progress bars are left out: outside a running kernel they stand at 0 %.

    Args:
        notebook: An executed notebook, which is changed.

    Returns:
        The notebook.
    """
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {
                "display_name": "Python 3",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if _WIDGET not in output.get("data", {})
            ]
            for output in cell.outputs:
                _drop_text_beside_html(output)
    return notebook


def _drop_text_beside_html(output: NotebookNode) -> None:
    """Keep only the table, where an output is a table and a text."""
    data = output.get("data", {})
    if "text/html" in data:
        data.pop("text/plain", None)


if __name__ == "__main__":
    main()
