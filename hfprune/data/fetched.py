"""Data that `make data` fetches beside the packages, into the folder `.data`."""

import os
from pathlib import Path


def data_folder(relative: str) -> Path:
    """Find a folder of the data that `make setup` fetches beside the packages.

    Args:
        relative: The path inside `.data`, or inside the folder that the environment variable HFPRUNE_DATA names.

    Returns:
        The path.

    Raises:
        FileNotFoundError: The folder does not exist; the message says how to fetch it.
    """
    path = Path(os.environ.get("HFPRUNE_DATA", ".data")) / relative
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} is not there. Run `make data` and start from that folder, or set HFPRUNE_DATA to the .data folder "
            "that it made."
        )
    return path
