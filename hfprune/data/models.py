"""Models as their checkpoints hold them: none with a weight that nobody trained."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hfprune.errors import CheckpointError

#: How the names of files with weights end.
_WEIGHTS = (".safetensors", ".bin")
#: The most weights that a message names.
_NAMED = 6


def load_whole(model_class: Any, source: str, *, name: str | None = None, **options: Any) -> PreTrainedModel:
    """Load a model, and refuse a checkpoint that lacks some of its weights.

    transformers fills such weights, usually those of a head, with random numbers and a warning. Whatever is measured
    then means nothing.

    Args:
        model_class: A model class or an Auto class.
        source: Folder or repository.
        name: What the user calls it, for the message.
        **options: As for `from_pretrained`.

    Returns:
        The model.

    Raises:
        CheckpointError: The checkpoint lacks weights; the message names them.

    Examples:
        >>> from transformers import AutoModelForSequenceClassification
        >>> from hfprune.data.models import load_whole
        >>> dense.base_model.save_pretrained("body")
        >>> load_whole(AutoModelForSequenceClassification, "body")
        Traceback (most recent call last):
        ...
        hfprune.errors.CheckpointError: body lacks 2 weights of a BertForSequenceClassification: ...
    """
    loaded = model_class.from_pretrained(source, output_loading_info=True, **options)
    model: PreTrainedModel = loaded[0]
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        listed = ", ".join(missing[:_NAMED])
        more = " ..." if len(missing) > _NAMED else ""
        raise CheckpointError(
            f"{name or source} lacks {len(missing)} weights of a {type(model).__name__}: {listed}{more}. They would be "
            "random numbers. Take the fine-tuned checkpoint, or fine-tune this one first (dense_epochs in the script)."
        )
    return model


def has_no_weights(source: str | Path) -> bool:
    """Whether a folder has the config of a model and no weights, so that the model can only be trained from scratch.

    Args:
        source: Folder or repository.

    Returns:
        Whether it is such a folder.

    Examples:
        >>> from hfprune.data.models import has_no_weights
        >>> dense.config.save_pretrained("new")
        >>> dense.save_pretrained("trained")
        >>> has_no_weights("new"), has_no_weights("trained"), has_no_weights("google-bert/bert-base-cased")
        (True, False, False)
    """
    folder = Path(source)
    if not (folder / "config.json").is_file():
        return False
    return not any(path.suffix in _WEIGHTS for path in folder.iterdir())
