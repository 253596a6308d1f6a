"""How densely the package is written: `python -m tests.support.readability` prints the figures per 1,000 code lines.

Code lines are lines with code on them: no blank lines, comments or docstrings. A packed assignment gives several names
their values from as many expressions in one statement. A comment line holds a comment and nothing else; orders to
tools, such as `noqa`, and comments behind code do not count.
"""

import argparse
import ast
import io
import tokenize
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "hfprune"
#: The most of each per 1,000 code lines, and the least of comments.
LIMITS = {"ternaries": 12, "comprehensions": 30, "packed assignments": 3}
LEAST_COMMENTS = 30
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_LAYOUT = (
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.COMMENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
)
_ORDERS = ("noqa", "type:", "pragma")


def docstring_lines(tree: ast.AST) -> set[int]:
    """The numbers of all lines that belong to docstrings."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.update(range(node.lineno, node.end_lineno + 1))
    return lines


def packed_values(node: ast.AST) -> int:
    """How many names a statement gives their values from as many expressions; 0 for any other statement."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return 0
    return max((len(target.elts) for target in node.targets if isinstance(target, ast.Tuple)), default=0)


def is_nested_ternary(node: ast.AST) -> bool:
    """Whether a ternary stands inside another one."""
    if not isinstance(node, ast.IfExp):
        return False
    return any(isinstance(part, ast.IfExp) for part in (node.test, node.body, node.orelse))


def counts_of(text: str) -> Counter[str]:
    """Counts of one file's text."""
    counts: Counter[str] = Counter()
    tree = ast.parse(text)
    for node in ast.walk(tree):
        counts["ternaries"] += isinstance(node, ast.IfExp)
        counts["comprehensions"] += isinstance(node, _COMPREHENSIONS)
        counts["nested ternaries"] += is_nested_ternary(node)
        counts["packed assignments"] += packed_values(node) > 1
        counts["wide assignments"] += packed_values(node) > 2
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            stands_alone = token.line.lstrip().startswith("#")
            is_order = token.string.lstrip("#: ").startswith(_ORDERS)
            counts["comment lines"] += stands_alone and not is_order
        elif token.type not in _LAYOUT:
            code.update(range(token.start[0], token.end[0] + 1))
    counts["code lines"] = len(code - docstring_lines(tree))
    return counts


def counts_of_files(paths: Iterable[Path]) -> Counter[str]:
    """Counts of several files together."""
    total: Counter[str] = Counter()
    for path in paths:
        total += counts_of(path.read_text(encoding="utf-8"))
    return total


def per_thousand(counts: Counter[str]) -> dict[str, float]:
    """By name of what is counted: how many of it stand in 1,000 code lines."""
    names = (*LIMITS, "comment lines")
    return {name: 1000 * counts[name] / max(counts["code lines"], 1) for name in names}


def main() -> None:
    """Print the figures of the package, or of the files that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path, default=[PACKAGE], help="files or folders; by default hfprune/")
    parser.add_argument("--each", action="store_true", help="a line for each file")
    arguments = parser.parse_args()
    files: list[Path] = []
    for path in arguments.paths:
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    groups = [[file] for file in files] if arguments.each else []
    for group in [*groups, files]:
        counts = counts_of_files(group)
        name = str(group[0]) if len(group) == 1 else f"{len(group)} files"
        figures = ", ".join(f"{value:.1f} {what}" for what, value in per_thousand(counts).items())
        print(f"{name}: {counts['code lines']} code lines; per 1,000: {figures}")


if __name__ == "__main__":
    main()
