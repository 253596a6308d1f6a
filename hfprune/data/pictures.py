"""Pictures: opened as a model takes them, and changed at random where a model is trained on them."""

import importlib.util
import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from datasets import DatasetDict

from hfprune.errors import MissingDependencyError

if TYPE_CHECKING:
    from PIL.Image import Image

#: What Pillow calls pictures of so many channels.
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
#: The least and the most width of a random crop, as a multiple of its height.
_RATIOS = (3 / 4, 4 / 3)


def check_pillow() -> None:
    """Find out before anything else whether pictures can be opened.

    Raises:
        MissingDependencyError: Pillow is not installed; the message has the command that installs it.
    """
    if importlib.util.find_spec("PIL") is None:
        raise MissingDependencyError(
            "pictures are opened by Pillow, which is not installed. Run: pip install 'hfprune[vision]'"
        )


def open_picture(stored: Mapping[str, Any], mode: str) -> "Image":
    """Decode a picture.

    Args:
        stored: A row's file: its `bytes`, or its `path` where there are none.
        mode: What Pillow calls the channels to convert it to, such as `RGB`.

    Returns:
        The picture, turned as its camera says it was held.

    Raises:
        ValueError: It cannot be decoded.

    Examples:
        >>> from PIL import Image
        >>> Image.new("L", (4, 3)).save("grey.png")
        >>> picture = open_picture({"path": "grey.png", "bytes": None}, "RGB")
        >>> picture.size, picture.mode
        ((4, 3), 'RGB')
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(_source_of(stored)) as opened:
            return ImageOps.exif_transpose(opened).convert(mode)
    # Pillow raises these over files that are no pictures, or that end too early
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"the picture {_name_of(stored)} cannot be opened: {error}.") from error


def check_pictures(data: DatasetDict, column: str) -> None:
    """Look at the beginning of every picture that is a file, so that a wrong one is found before a long training.

    Args:
        data: Splits with pictures that are not decoded.
        column: The column with them.

    Raises:
        ValueError: A file is no picture.
    """
    from PIL import Image

    for split, rows in data.items():
        for row, stored in enumerate(rows[column]):
            # those of a data set in Arrow files would have to be read whole
            if stored["bytes"] is not None:
                continue
            try:
                with Image.open(stored["path"]):
                    pass
            except (OSError, SyntaxError, ValueError) as error:
                raise ValueError(
                    f"row {row} (from 0) of the {split} split is no picture that can be opened: {error}. Mend the "
                    "file, or take it out."
                ) from error


def _source_of(stored: Mapping[str, Any]) -> Any:
    if stored["bytes"] is not None:
        return io.BytesIO(stored["bytes"])
    return stored["path"]


def _name_of(stored: Mapping[str, Any]) -> str:
    """What a message calls a file."""
    return repr(stored["path"]) if stored["path"] else "without a name"


def mirrored_or_not(picture: "Image") -> "Image":
    """Exchange left and right of a picture, with a probability of a half, drawn by the random state of PyTorch.

    Args:
        picture: The picture.

    Returns:
        The picture or its mirror image.
    """
    from PIL import ImageOps

    return ImageOps.mirror(picture) if _drawn(0, 1) < 0.5 else picture


def random_crop(picture: "Image", smallest: float) -> "Image":
    """Cut a random part out of a picture, drawn by the random state of PyTorch.

    Its area is drawn between the smallest and the whole, and its shape between 3 : 4 and 4 : 3, as Szegedy et al. 2015,
    "Going Deeper with Convolutions", did. The processor makes all parts the same size afterwards.

    Args:
        picture: The picture.
        smallest: The smallest area of a part, as a share of the picture's.

    Returns:
        The part.

    Examples:
        >>> from PIL import Image
        >>> _ = torch.manual_seed(0)
        >>> part = random_crop(Image.new("L", (40, 30)), 0.25)
        >>> 0.2 < part.size[0] * part.size[1] / (40 * 30) <= 1
        True
    """
    width, height = picture.size
    area = width * height * _drawn(smallest, 1)
    ratio = math.exp(_drawn(math.log(_RATIOS[0]), math.log(_RATIOS[1])))
    # a part that is wider or higher than the picture is cut to it
    part_width = min(width, max(1, round(math.sqrt(area * ratio))))
    part_height = min(height, max(1, round(math.sqrt(area / ratio))))
    left = int(torch.randint(width - part_width + 1, (), dtype=torch.long, device="cpu"))
    upper = int(torch.randint(height - part_height + 1, (), dtype=torch.long, device="cpu"))
    return picture.crop((left, upper, left + part_width, upper + part_height))


def _drawn(low: float, high: float) -> float:
    """A number between two, by the random state of PyTorch."""
    return float(torch.empty((), dtype=torch.float32, device="cpu").uniform_(low, high))
