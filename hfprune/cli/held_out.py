"""Which rows calibrate and which measure, and lines that say how far a long work is."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from datasets import Dataset

from hfprune.config import PruningConfig
from hfprune.scoring import known_scorers


def needs_no_data(config: PruningConfig) -> bool:
    """Whether a config prunes by the weights alone, so that calibration samples change nothing.

    Args:
        config: The config.

    Returns:
        Whether it does.
    """
    scorer = known_scorers().get(config.scorer)
    return scorer is not None and not scorer.needs and not config.reconstruct


def calibration_and_rest(rows: Dataset, config: PruningConfig, *, shared: bool) -> tuple[Dataset, Dataset]:
    """Cut the rows of a file: as many as calibration takes, and all others to measure on.

    Args:
        rows: All rows.
        config: Says how many samples calibration takes, and the seed of the cut.
        shared: Whether all rows may measure, as calibration has no use for any.

    Returns:
        The rows to calibrate on, and those to measure on.
    """
    if shared:
        return rows, rows
    if len(rows) < 2:
        raise ValueError(f"the data has {len(rows)} row(s), and none is left to measure on: give more, or --held-out.")
    # a file that is too short for calibration is refused there, with the number of samples that it has
    most = max(1, len(rows) * 9 // 10)
    parts = rows.train_test_split(train_size=min(config.calibration_samples, most), seed=config.seed)
    return parts["train"], parts["test"]


class _Lines(logging.Handler):
    """Writes log records as lines on stderr, where they do not mix with what a command prints."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(record.getMessage(), err=True)


@contextmanager
def log_lines(logger_name: str) -> Iterator[None]:
    """Show what a logger says about the progress of a long work, a line for every model.

    Args:
        logger_name: Its name.

    Yields:
        Nothing.
    """
    logger = logging.getLogger(logger_name)
    handler = _Lines()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
