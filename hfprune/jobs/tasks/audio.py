"""Audio classification: a class for every sound."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForAudioClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES

from hfprune.data.media import SOUNDS
from hfprune.data.sounds import check_sounds, open_sound
from hfprune.jobs.settings import LABEL_MAP_HELP, DataArguments, ModelArguments
from hfprune.jobs.tasks.classes import LABELS, labels_of, numbered_files
from hfprune.jobs.tasks.registry import register_task
from hfprune.jobs.tasks.samples import sample_metrics_for
from hfprune.jobs.tasks.task import Task, without_rows
from hfprune.measuring.metrics import compute_metrics_for, default_metrics
from hfprune.structure.batches import Batch

#: Names of the classes; many end as those of classifiers of texts do.
_CLASSIFIERS = rf"({'|'.join(map(str, MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES.values()))})$"


@dataclass
class AudioArguments(DataArguments):
    """Sounds with one label each.

    `--help` of a script describes every field.
    """

    example_file: ClassVar[str] = "sounds/train"

    dataset: str | None = field(
        default=None,
        metadata={"help": "A folder with a sub-folder a class, or with train/ and test/ of such; or Hub name."},
    )
    train_file: str | None = field(
        default=None, metadata={"help": "A folder with a sub-folder a class; or csv, jsonl ... with names of files."}
    )
    audio_column: str = field(default="audio", metadata={"help": "Column with the sounds, or with their files."})
    label_column: str = field(default="label", metadata={"help": "Column with the labels; floats: a regression."})
    label_map: str | None = field(default=None, metadata={"help": LABEL_MAP_HELP})
    max_seconds: float = field(default=20.0, metadata={"help": "Longer sounds are cut to so many seconds."})


@register_task("audio_classification", arguments=AudioArguments, architectures=_CLASSIFIERS)
def audio_classification(model: ModelArguments, data: AudioArguments, *, seed: int) -> Task:
    """Load sounds with labels. The model's feature extractor makes a batch of them when it is needed.

    Labels are numbered as in text classification. Sounds of several channels become their mean, and are resampled to
    the rate of the feature extractor. Layers that a model such as wav2vec2 skips at random while it trains (layerdrop)
    are not skipped, as student and teacher would then differ in their number of hidden states.

    Args:
        model: The model.
        data: The data: folders with a sub-folder for each class, tables with names of files, or a data set with a
            column of sounds.
        seed: Draws the splits that the data lacks.

    Returns:
        The task.

    Raises:
        CheckpointError: The model is a pruned checkpoint that `hfprune.load` would refuse.
        MissingDependencyError: A file is no wav file, and soundfile is not installed.
        OSError: The model has no feature extractor beside it.
        ValueError: Data, columns, classes or metrics do not fit, or a file is no sound.

    Examples:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from scipy.io import wavfile
        >>> from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification
        >>> from hfprune.jobs.tasks import AudioArguments, ModelArguments, audio_classification
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 1}
        >>> sizes |= {"conv_dim": [8], "conv_kernel": [10], "conv_stride": [5], "num_feat_extract_layers": 1}
        >>> sizes |= {"num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8}
        >>> names = {0: "high", 1: "low"}
        >>> Wav2Vec2ForSequenceClassification(Wav2Vec2Config(id2label=names, **sizes)).save_pretrained("dense")
        >>> _ = Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained("dense")
        >>> for number in range(20):
        ...     folder = Path("sounds", names[number % 2])
        ...     folder.mkdir(parents=True, exist_ok=True)
        ...     wave = np.sin(np.arange(800) * (1 - 0.9 * (number % 2)) + number)
        ...     wavfile.write(folder / f"{number}.wav", 8000, (10_000 * wave).astype(np.int16))
        >>> task = audio_classification(ModelArguments("dense"), AudioArguments(dataset="sounds"), seed=0)
        >>> task.data.num_rows, task.metrics
        ({'train': 16, 'validation': 2, 'test': 2}, ['accuracy'])
        >>> task.collator([task.data["test"][0]])["input_values"].shape
        torch.Size([1, 800])
    """
    check_seconds(data.max_seconds)
    source = model.checked_source()
    labelled = numbered_files(
        SOUNDS,
        data,
        model,
        source,
        column=data.audio_column,
        label_column=data.label_column,
        label_map=data.label_map,
        seed=seed,
    )
    check_sounds(labelled.data, data.audio_column)
    extractor = AutoFeatureExtractor.from_pretrained(source, **model.loading)
    metrics = data.metrics or default_metrics(regression=labelled.regression)
    collator = _Collator(Sounds(extractor, data.audio_column, data.max_seconds))
    return Task(
        auto_class=AutoModelForAudioClassification,
        source=source,
        labels=labelled.labels | without_layerdrop(source, model.loading),
        data=labelled.data,
        processor=extractor,
        collator=collator,
        calibration_collator=collator,
        metrics=metrics,
        compute_metrics=without_rows(compute_metrics_for(metrics, regression=labelled.regression)),
        sample_metrics=sample_metrics_for(regression=labelled.regression),
        collator_reads_columns=True,
    )


def check_seconds(seconds: float) -> None:
    """Refuse a longest sound that has no length.

    Args:
        seconds: The seconds of the longest sound.

    Raises:
        ValueError: They are not above 0.
    """
    if not seconds > 0:
        raise ValueError(f"max_seconds must be above 0, got {seconds}.")


def without_layerdrop(source: str, loading: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `from_pretrained` that have a model use all its layers while it trains.

    Args:
        source: Where the model is loaded from.
        loading: Arguments of `from_pretrained`.

    Returns:
        The arguments; none for a model that uses them anyway.
    """
    config = AutoConfig.from_pretrained(source, **loading)
    return {"layerdrop": 0.0} if getattr(config, "layerdrop", 0.0) else {}


@dataclass(frozen=True)
class Sounds:
    """Makes the input of a model of rows with sounds.

    Attributes:
        extractor: The model's feature extractor.
        column: The column with the sounds.
        max_seconds: Longer sounds are cut.
    """

    extractor: Any
    column: str
    max_seconds: float

    def inputs(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """The arguments of a model, but for labels.

        Args:
            rows: The rows.

        Returns:
            What the feature extractor makes; sounds are padded to one length, as it pads them.
        """
        rate = self.extractor.sampling_rate
        sounds: list[NDArray[np.float32]] = []
        for row in rows:
            sounds.append(open_sound(row[self.column], rate)[: int(self.max_seconds * rate)])
        options: dict[str, Any] = {"sampling_rate": rate, "return_tensors": "pt"}
        padding = inspect.signature(type(self.extractor).__call__).parameters.get("padding")
        # those of spectrograms of one length pad to that length without being told
        if padding is not None and padding.default is False:
            options["padding"] = True
        return dict(self.extractor(sounds, **options))


@dataclass(frozen=True)
class _Collator:
    """Makes a batch of rows with sounds and labels.

    Attributes:
        sounds: Makes the input.
    """

    sounds: Sounds

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        batch = self.sounds.inputs(rows)
        # calibration may leave them out
        if LABELS in rows[0]:
            batch[LABELS] = labels_of(rows)
        return batch
