"""Tables: as text for a terminal, as HTML for a notebook, and as data frames."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame

#: A table in a notebook is at most so high; a longer one scrolls.
_MOST_HEIGHT = "32em"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of texts under a head. The first column names the rows, the others are numbers or short facts.

    >>> table = Table(head=("block", "units"), rows=(("a", "12"), ("b", "1,536")), notes=("two blocks",))
    >>> print(table.text())
    block  units
    a         12
    b      1,536
    two blocks
    >>> Table(head=("name",), rows=(("<b>",),)).html().count("&lt;b&gt;")
    1

    Attributes:
        head: The titles of the columns.
        rows: The cells, as many in a row as there are titles.
        notes: Lines of text below the table.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def text(self) -> str:
        """The table as plain text: the first column flush left, the others flush right."""
        lines = [self.head, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        written = []
        for cells in lines:
            padded = [cells[0].ljust(widths[0])]
            for cell, width in zip(cells[1:], widths[1:], strict=True):
                padded.append(cell.rjust(width))
            written.append("  ".join(padded).rstrip())
        return "\n".join([*written, *self.notes])

    def html(self) -> str:
        """The table as HTML: every text is escaped, and no colour is set, so that dark notebooks show it too."""
        parts = [f'<div style="max-height: {_MOST_HEIGHT}; overflow: auto"><table>', "<thead>"]
        parts.append(_html_row(self.head, "th"))
        parts.append("</thead><tbody>")
        for cells in self.rows:
            parts.append(_html_row(cells, "td"))
        parts.append("</tbody></table></div>")
        for note in self.notes:
            parts.append(f"<div><small>{html.escape(note)}</small></div>")
        return "\n".join(parts)


def _html_row(cells: Sequence[str], tag: str) -> str:
    """A row of a table, its first cell flush left and the others flush right."""
    written = []
    for position, cell in enumerate(cells):
        side = "left" if position == 0 else "right"
        written.append(f'<{tag} style="text-align: {side}">{html.escape(cell)}</{tag}>')
    return f"<tr>{''.join(written)}</tr>"


def bar_of(share: float) -> str:
    """A share as a bar of twenty characters.

    >>> bar_of(0.25)
    '█████░░░░░░░░░░░░░░░'
    """
    return f"{'█' * round(20 * share):░<20}"


def data_frame(rows: Sequence[Mapping[str, Any]]) -> "DataFrame":
    """A data frame with these rows, in this order.

    >>> frame = data_frame([{"block": "a", "units": 12}, {"block": "b", "units": 1536}])
    >>> frame["units"].tolist()
    [12, 1536]

    Args:
        rows: For each row, its values by column. A column that a row lacks is NaN there.

    Returns:
        The data frame of pandas.
    """
    # pandas takes half a second to import
    import pandas as pd

    return pd.DataFrame(rows)
