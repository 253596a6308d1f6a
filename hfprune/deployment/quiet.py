"""Silence for exporters and converters, which print, log and warn about much that no user can change."""

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(*, errors_too: bool = False) -> Iterator[None]:
    """Silence what exporters print, log and warn about, inside the `with`; exceptions come through.

    Args:
        errors_too: Whether to silence what is printed as an error, too.

    Yields:
        Nothing.
    """
    # several loggers have names that are not those of their modules, so all are silenced
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO() if errors_too else sys.stderr):
                yield
    finally:
        logging.disable(before)
