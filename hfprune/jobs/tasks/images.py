"""Image classification: a class for every picture."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from hfprune.data.media import PICTURES
from hfprune.data.pictures import (
    MODES,
    check_pictures,
    check_pillow,
    mirrored_or_not,
    open_picture,
    random_crop,
)
from hfprune.jobs.settings import LABEL_MAP_HELP, DataArguments, ModelArguments
from hfprune.jobs.tasks.classes import LABELS, labels_of, numbered_files
from hfprune.jobs.tasks.registry import register_task
from hfprune.jobs.tasks.samples import sample_metrics_for
from hfprune.jobs.tasks.task import Task, without_rows
from hfprune.measuring.metrics import compute_metrics_for, default_metrics
from hfprune.structure.batches import Batch

#: The column that says that a picture may be changed at random.
_CHANGES = "changes"


@dataclass
class ImageArguments(DataArguments):
    """Pictures with one label each.

    `--help` of a script describes every field.
    """

    example_file: ClassVar[str] = "pictures/train"

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "A folder with a sub-folder a class, or with train/ and test/ of such; digits, mnist; Hub name."
        },
    )
    train_file: str | None = field(
        default=None, metadata={"help": "A folder with a sub-folder a class; or csv, jsonl ... with names of files."}
    )
    image_column: str = field(default="image", metadata={"help": "Column with the pictures, or with their files."})
    label_column: str = field(default="label", metadata={"help": "Column with the labels; floats: a regression."})
    label_map: str | None = field(default=None, metadata={"help": LABEL_MAP_HELP})
    random_flip: bool = field(
        default=False, metadata={"help": "Train on the mirror images of half of the pictures, drawn at random."}
    )
    smallest_crop: float = field(
        default=1.0, metadata={"help": "Train on random parts, of at least this share of a picture; 1: on the whole."}
    )


@register_task("image_classification", arguments=ImageArguments, architectures=r"ForImageClassification")
def image_classification(model: ModelArguments, data: ImageArguments, *, seed: int) -> Task:
    """Load pictures with labels. The model's image processor makes a batch of them when it is needed.

    Labels are numbered as in text classification. Pictures are opened as transformers' pipeline opens them: turned as
    their camera says, and converted to the channels that the model takes.

    Args:
        model: The model.
        data: The data: folders with a sub-folder for each class, tables with names of files, or a data set with a
            column of pictures.
        seed: Draws the splits that the data lacks.

    Returns:
        The task.

    Raises:
        CheckpointError: The model is a pruned checkpoint that `hfprune.load` would refuse.
        MissingDependencyError: Pillow is not installed.
        OSError: The model has no image processor beside it.
        ValueError: Data, columns, classes or metrics do not fit, or a file is no picture.

    Examples:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil
        >>> from hfprune.jobs.tasks import ImageArguments, ModelArguments, image_classification
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 1}
        >>> names = {0: "dark", 1: "light"}
        >>> config = ViTConfig(image_size=8, patch_size=4, id2label=names, **sizes)
        >>> ViTForImageClassification(config).save_pretrained("dense")
        >>> _ = ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained("dense")
        >>> for number in range(20):
        ...     folder = Path("pictures", names[number % 2])
        ...     folder.mkdir(parents=True, exist_ok=True)
        ...     Image.new("L", (10, 10), 200 * (number % 2) + number).save(folder / f"{number}.png")
        >>> task = image_classification(ModelArguments("dense"), ImageArguments(dataset="pictures"), seed=0)
        >>> task.data.num_rows, task.metrics
        ({'train': 16, 'validation': 2, 'test': 2}, ['accuracy'])
        >>> task.collator([task.data["test"][0]])["pixel_values"].shape
        torch.Size([1, 3, 8, 8])
    """
    check_pillow()
    if not 0 < data.smallest_crop <= 1:
        raise ValueError(
            f"smallest_crop must be above 0 and at most 1, got {data.smallest_crop}: a share of a picture."
        )
    source = model.checked_source()
    labelled = numbered_files(
        PICTURES,
        data,
        model,
        source,
        column=data.image_column,
        label_column=data.label_column,
        label_map=data.label_map,
        seed=seed,
    )
    check_pictures(labelled.data, data.image_column)
    processor = AutoImageProcessor.from_pretrained(source, **model.loading)
    mode = _mode_of(source, model.loading)
    splits = labelled.data
    if data.random_flip or data.smallest_crop < 1:
        # validation and test lack this column, and the collator leaves their pictures as they are
        splits["train"] = splits["train"].add_column(_CHANGES, [True] * len(splits["train"]))
    metrics = data.metrics or default_metrics(regression=labelled.regression)
    collator = _Collator(processor, mode, data.image_column)
    return Task(
        auto_class=AutoModelForImageClassification,
        source=source,
        labels=labelled.labels,
        data=splits,
        processor=processor,
        collator=replace(collator, flip=data.random_flip, smallest_crop=data.smallest_crop),
        calibration_collator=collator,
        metrics=metrics,
        compute_metrics=without_rows(compute_metrics_for(metrics, regression=labelled.regression)),
        sample_metrics=sample_metrics_for(regression=labelled.regression),
        collator_reads_columns=True,
    )


def _mode_of(source: str, loading: Mapping[str, Any]) -> str:
    """What Pillow calls the channels that a model takes."""
    config = AutoConfig.from_pretrained(source, **loading)
    # the config of CLIP and SigLIP has one for pictures in it
    channels = getattr(getattr(config, "vision_config", config), "num_channels", 3)
    if channels not in MODES:
        raise ValueError(
            f"the model takes pictures of {channels} channels; files are read for those of 1 (grey), 3 (RGB) and 4 "
            "(RGBA). Prune it with hfprune.prune in Python, and batches of your own."
        )
    return MODES[channels]


@dataclass(frozen=True)
class _Collator:
    """Makes a batch of rows with pictures.

    Attributes:
        processor: The model's image processor.
        mode: What Pillow calls the channels that the model takes.
        column: The column with the pictures.
        flip: Whether to mirror pictures at random, of rows that may be changed.
        smallest_crop: The smallest share of a picture that a random part has, of rows that may be changed; 1: none is
            cut out.
    """

    processor: Any
    mode: str
    column: str
    flip: bool = False
    smallest_crop: float = 1.0

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        pictures = [self._picture(row) for row in rows]
        batch: Batch = dict(self.processor(images=pictures, return_tensors="pt"))
        # calibration may leave them out
        if LABELS in rows[0]:
            batch[LABELS] = labels_of(rows)
        return batch

    def _picture(self, row: Mapping[str, Any]) -> Any:
        picture = open_picture(row[self.column], self.mode)
        if row.get(_CHANGES):
            if self.smallest_crop < 1:
                picture = random_crop(picture, self.smallest_crop)
            if self.flip:
                picture = mirrored_or_not(picture)
        return picture
