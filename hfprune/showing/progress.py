"""Progress bars: one line for the outermost work, at the end of which stands the step that runs inside it.

Bars inside of bars need a terminal that can move its cursor up. The text output of a notebook cannot, and repeats their
lines instead. So only the outermost bar is drawn. It is that of transformers, which gives notebooks a widget, and which
`transformers.utils.logging.disable_progress_bar()` turns off.
"""

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from transformers.utils.logging import tqdm

Item = TypeVar("Item")

#: The least seconds between two times at which the step inside is written anew.
_SECONDS = 0.2
#: The bar that is drawn, if there is one.
_OUTERMOST: list["Progress"] = []


class Progress:
    """How far some work is.

    Args:
        bar: The bar that is drawn; None for work inside of other work, which is written at the end of the outer bar.
        desc: What the work is called.
        total: How many steps it has.
        unit: What one step is called.
    """

    def __init__(self, bar: Any, *, desc: str, total: int, unit: str) -> None:
        self.bar = bar
        self.desc = desc
        self.total = total
        self.unit = unit
        self.done = 0
        self._written_at = 0.0

    def update(self, steps: int = 1) -> None:
        """Count steps that are done."""
        self.done += steps
        if self.bar is not None:
            self.bar.update(steps)
        elif _OUTERMOST:
            _OUTERMOST[0].write(f"{self.desc} {self.done}/{self.total} {self.unit}")

    def write(self, text: str) -> None:
        """Write at the end of the bar what runs inside it, not more often than a reader can follow."""
        self.bar.set_postfix_str(text, refresh=False)
        now = time.monotonic()
        if now - self._written_at >= _SECONDS:
            self._written_at = now
            self.bar.refresh()


@contextmanager
def progress(total: int, *, desc: str, unit: str) -> Iterator[Progress]:
    """Show how far some work is, in a bar of its own or at the end of the bar of the work around it.

    >>> with progress(2, desc="Searching", unit="model") as outer, progress(9, desc="Scoring", unit="batch") as inner:
    ...     inner.update(3)
    ...     inner.bar is None, outer.bar is None
    (True, False)

    Args:
        total: How many steps the work has.
        desc: What it is called.
        unit: What one step is called.

    Yields:
        What counts the steps.
    """
    if _OUTERMOST:
        yield Progress(None, desc=desc, total=total, unit=unit)
        return
    with tqdm(total=total, desc=desc, unit=unit) as bar:
        outermost = Progress(bar, desc=desc, total=total, unit=unit)
        _OUTERMOST.append(outermost)
        try:
            yield outermost
        finally:
            _OUTERMOST.remove(outermost)
            # the finished line says what was done, not its last step
            bar.set_postfix_str("", refresh=False)


@contextmanager
def tracked(items: Collection[Item], *, desc: str, unit: str, shown: bool = True) -> Iterator[Iterator[Item]]:
    """Show how far a loop over items is. It is a context, so that an error in the loop ends the bar, too.

    >>> with tracked([1, 2], desc="Counting", unit="number") as numbers:
    ...     sum(numbers)
    3

    Args:
        items: The items.
        desc: What is done with them.
        unit: What one of them is called.
        shown: False where something else shows it.

    Yields:
        The items to go through.
    """
    if not shown:
        yield iter(items)
        return
    with progress(len(items), desc=desc, unit=unit) as counted:
        yield _counting(items, counted)


def _counting(items: Collection[Item], counted: Progress) -> Iterator[Item]:
    """The items, each of which is counted when the next one is asked for."""
    for item in items:
        yield item
        counted.update()
