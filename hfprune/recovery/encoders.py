"""Recovery of an encoder of sentence-transformers: the models in it, its texts as rows, and how they are padded."""

from typing import Any

from hfprune.encoders import opened

#: Arguments of a trainer with data.
_DATA = ("train_dataset", "eval_dataset")


def opened_arguments(model: Any, teacher: Any, kwargs: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """The arguments of a trainer, with the models of transformers in encoders in the place of these.

    Args:
        model: The model that learns, or an encoder.
        teacher: Its teacher, or an encoder; None if there is none.
        kwargs: What else the trainer is given: with an encoder, texts may be the data.

    Returns:
        The same three. Models share their weights with the encoders, so training one trains the other.
    """
    encoder = opened(model)
    of_teacher = opened(teacher)
    plain_teacher = teacher if of_teacher is None else of_teacher.model
    if encoder is None or encoder.model is model:
        return model, plain_teacher, kwargs
    kwargs = dict(kwargs)
    kwargs.setdefault("data_collator", encoder.collator)
    kwargs.setdefault("processing_class", encoder.tokenizer)
    for name in _DATA:
        if kwargs.get(name) is not None:
            kwargs[name] = encoder.rows(kwargs[name])
    return encoder.model, plain_teacher, kwargs
