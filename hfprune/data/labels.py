"""Classes of a data set in the numbering of a model, and the description of labels that a new model needs.

Which class is which is never guessed. It is known where the data names its classes as the model does, where the data
has numbers, or where the user says it with a label map.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Value
from transformers import PretrainedConfig

from hfprune.structure.arguments import TEXT, checked
from hfprune.structure.predictions import predicts_number

#: From a class of the data to a number or a name of the model.
LabelMap = Mapping[str, int | str]

#: Stands in the description of data whose classes came without numbers and were numbered in alphabetical order.
_NUMBERED_HERE = "hfprune numbered the classes in alphabetical order"
#: Classes that are numbers by another name: the truth values.
_TRUTH_VALUES = {"False": 0, "True": 1}
#: The most classes that a message lists.
_LISTED = 12


def mark_numbered_here(data: DatasetDict) -> None:
    """Note in data that its classes had names only, and that the order of their numbers means nothing.

    Args:
        data: The splits.
    """
    for rows in data.values():
        rows.info.description = _NUMBERED_HERE


def is_numbered_here(rows: Dataset) -> bool:
    """Whether `mark_numbered_here` noted that in rows.

    Args:
        rows: A split.

    Returns:
        Whether it did.
    """
    return bool(rows.info.description == _NUMBERED_HERE)


@checked(label_column=TEXT)
def align_labels(
    data: DatasetDict, config: PretrainedConfig, label_column: str = "label", *, label_map: LabelMap | None = None
) -> DatasetDict:
    """Number the classes of a data set as a fine-tuned model does.

    Args:
        data: Splits with a label column.
        config: The model's config; `id2label` has its classes.
        label_column: The column with the labels.
        label_map: For every class of the data a number or a name of the model, where the names of the two do not tell.

    Returns:
        The same data; labels are numbers of the model.

    Raises:
        ValueError: Which class of the data is which of the model cannot be told; or one of them has numbers to predict
            and the other classes; or the model gives several classes to a text; or a row has no label.

    Examples:
        >>> from datasets import Dataset, DatasetDict
        >>> from transformers import BertConfig
        >>> from hfprune.data.labels import align_labels
        >>> rows = Dataset.from_dict({"label": ["good", "poor"]}).class_encode_column("label")
        >>> unnamed = BertConfig(num_labels=2)
        >>> align_labels(DatasetDict(train=rows), unnamed, label_map={"good": 1, "poor": 0})["train"]["label"][:]
        [1, 0]
    """
    feature = data["train"].features[label_column]
    if config.problem_type == "multi_label_classification":
        raise ValueError(
            f"the model gives any number of its {config.num_labels} classes to a text (multi_label_classification), "
            "and the data has one class a text. Write lists of classes into the label column, or name several columns "
            "of 0 and 1 (label_columns in the script)."
        )
    if predicts_number(config):
        if config.num_labels > 1:
            raise ValueError(
                f"the model gives {config.num_labels} numbers to a text (regression), and the data has one label a "
                "text. Measure it with your own code; hfprune.prune takes its data."
            )
        return _as_targets(data, label_column, label_map)
    if not isinstance(feature, ClassLabel):
        raise ValueError(
            f"the labels are numbers such as 0.5, but the model has {config.num_labels} classes. Write classes, or "
            "whole numbers, into the label column."
        )
    have_numbers = not is_numbered_here(data["train"])
    number_of = numbers_of(config, feature.names, label_map=label_map, have_numbers=have_numbers)
    return _renumbered(data, config, label_column, number_of)


def _as_targets(data: DatasetDict, column: str, label_map: LabelMap | None) -> DatasetDict:
    """Labels as the numbers that a model of one output predicts."""
    feature = data["train"].features[column]
    if label_map:
        raise ValueError("the model predicts a number, not a class: leave the label map out.")
    if not isinstance(feature, ClassLabel):
        return data
    targets = []
    for name in feature.names:
        try:
            targets.append(float(name))
        except ValueError:
            raise ValueError(
                f"the model predicts a number, and the data has the classes {_listed(feature.names)}. Write numbers "
                "into the label column, or take a model with classes."
            ) from None
    features = data["train"].features.copy()
    features[column] = Value("float32")

    def encode(rows: Mapping[str, list[Any]]) -> dict[str, list[float]]:
        return {column: [targets[value] for value in rows[column]]}

    return data.map(encode, batched=True, features=features, desc="Reading the numbers")


def _renumbered(data: DatasetDict, config: PretrainedConfig, column: str, number_of: Mapping[str, int]) -> DatasetDict:
    """Data with the numbers of a model in place of its own."""
    for split, rows in data.items():
        lowest = min(rows[column][:], default=0)
        if lowest < 0:
            raise ValueError(f"the {split} split has rows without a label ({lowest}). Leave them out.")
    numbers = list(number_of.values())
    if numbers == list(range(len(numbers))):
        return data

    def encode(rows: Mapping[str, list[Any]]) -> dict[str, list[int]]:
        return {column: [numbers[value] for value in rows[column]]}

    features = data["train"].features.copy()
    features[column] = _feature_of(config, number_of)
    return data.map(encode, batched=True, features=features, desc="Numbering the classes")


def _feature_of(config: PretrainedConfig, number_of: Mapping[str, int]) -> ClassLabel | Value:
    """The type of a column with the model's numbers; a class that both have is called as in the data."""
    name_in_data = {number: name for name, number in number_of.items()}
    names = []
    for number, model_name in enumerate(_names_of(config)):
        names.append(name_in_data.get(number, model_name))
    if len(set(names)) < len(names):
        return Value("int64")
    return ClassLabel(names=names)


def numbers_of(
    config: PretrainedConfig,
    names: Sequence[str],
    *,
    label_map: LabelMap | None = None,
    have_numbers: bool = False,
) -> dict[str, int]:
    """The numbers that a fine-tuned model gives to the classes of a data set.

    In this order: as the label map says; by the names of the model; as numbers of the model, where all classes of the
    data are called by such (0, 1 ..., or False and True); as the data numbers them, where it has numbers of its own and
    the model has no names.

    Args:
        config: The model's config; `id2label` has its classes, which have no names if these are LABEL_0, LABEL_1 ...
        names: The classes of the data, in the order of their numbers if they have some.
        label_map: For every class of the data a number or a name of the model. A name of the model counts before a
            number that is written as text.
        have_numbers: Whether the data came with numbers of its classes.

    Returns:
        From name to number.

    Raises:
        ValueError: Which class is which cannot be told; the message has the label map to write.

    Examples:
        >>> config = PretrainedConfig(id2label={0: "negative", 1: "positive"})
        >>> numbers_of(config, ["positive", "negative"])
        {'positive': 1, 'negative': 0}
        >>> numbers_of(config, ["good", "poor"], label_map={"good": "positive", "poor": 0})
        {'good': 1, 'poor': 0}
        >>> numbers_of(PretrainedConfig(num_labels=3), ["0", "2"])
        {'0': 0, '2': 2}
    """
    model_names = _names_of(config)
    if label_map:
        return _mapped(model_names, names, label_map)
    by_name = _by_name(model_names, names)
    by_number = _by_number(names, len(model_names))
    if by_name is not None and by_number is not None and by_name != by_number:
        raise ValueError(
            f"the classes {_listed(names)} of the data are names of classes of the model and numbers of others. Say "
            f"which you mean: {_template(names)}, with numbers of the model as {_json_of(by_name)} for its names or "
            f"{_json_of(by_number)} for its numbers."
        )
    if by_name is not None:
        return by_name
    if by_number is not None:
        return by_number
    if not _are_default_names(model_names):
        raise ValueError(
            f"the model knows the classes {_listed(model_names)}, the data has {_listed(names)}. Say which is which: "
            f"{_template(names)}, with numbers or names of the model; or fine-tune the model on this data "
            "(dense_epochs in the script)."
        )
    if have_numbers and len(names) == len(model_names):
        return _numbered(names)
    raise ValueError(
        f"the data has the classes {_listed(names)}, and the model has {len(model_names)} classes without names "
        f"({_listed(model_names)}): which is which cannot be told. Say it: {_template(names)}, with numbers of the "
        "model; or write the names into id2label of the model's config."
    )


def _by_name(model_names: Sequence[str], names: Sequence[str]) -> dict[str, int] | None:
    """The numbers of classes that the model knows by name; None if it does not know them all."""
    number_of = _numbered(model_names)
    if not set(names) <= number_of.keys():
        return None
    return {name: number_of[name] for name in names}


def _by_number(names: Sequence[str], classes: int) -> dict[str, int] | None:
    """The numbers of classes that are called by numbers of the model; None if one of them is not."""
    if set(names) <= _TRUTH_VALUES.keys() and classes == 2:
        return {name: _TRUTH_VALUES[name] for name in names}
    if not set(names) <= set(map(str, range(classes))):
        return None
    # "2" keeps its number where no row is of class "1"
    return {name: int(name) for name in names}


def _mapped(model_names: Sequence[str], names: Sequence[str], label_map: LabelMap) -> dict[str, int]:
    """The numbers that a label map gives to the classes of the data."""
    missing = [name for name in names if name not in label_map]
    if missing:
        raise ValueError(
            f"the label map has {_listed(list(label_map))}, but not {_listed(missing)} of the data. Add what these are "
            "in the model."
        )
    return {name: _target(model_names, name, label_map[name]) for name in names}


def _target(model_names: Sequence[str], name: str, target: int | str) -> int:
    """The number of the model that one entry of a label map means."""
    if isinstance(target, str) and target in model_names:
        return list(model_names).index(target)
    as_text = str(target).strip()
    if as_text.isascii() and as_text.isdigit() and int(as_text) < len(model_names):
        return int(as_text)
    raise ValueError(
        f"the label map says {name}={target}, but the model has no such class. Its classes are "
        f"{_listed(model_names)}, with the numbers 0 to {len(model_names) - 1}."
    )


def parse_label_map(text: str | None) -> dict[str, int | str] | None:
    """Read a label map as it stands on a command line.

    >>> parse_label_map("good=1, poor=0")
    {'good': '1', 'poor': '0'}
    >>> parse_label_map('{"yes, of course": 1, "no": 0}')
    {'yes, of course': 1, 'no': 0}

    Args:
        text: Pairs of a class of the data and a number or name of the model, or the same as JSON; None for no map.

    Returns:
        The map, or None.

    Raises:
        ValueError: It is neither, is empty, or names a class twice.
    """
    if text is None:
        return None
    is_json = text.lstrip().startswith("{")
    pairs = _json_pairs(text) if is_json else [_pair(word) for word in text.split(",")]
    label_map = dict(pairs)
    if not pairs or len(label_map) < len(pairs):
        raise ValueError(f"the label map {text!r} must name every class of the data once.")
    return label_map


def _pair(word: str) -> tuple[str, int | str]:
    """A class of the data and a class of the model; a class may hold an equals sign itself."""
    name, equals, target = word.rpartition("=")
    if not equals or not name.strip() or not target.strip():
        raise ValueError(
            f"a label map reads good=1,poor=0, got {word!r} in it. Classes with commas go into JSON: "
            '{"good, and cheap": 1, "poor": 0}.'
        )
    return name.strip(), target.strip()


def _json_pairs(text: str) -> list[tuple[str, int | str]]:
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except json.JSONDecodeError as error:
        raise ValueError(f"the label map {text!r} begins as JSON and is none: {error}.") from None
    for _, target in pairs:
        # True is an int to Python, and a list stands for a nested object here
        if isinstance(target, bool) or not isinstance(target, int | str):
            raise ValueError(f"the label map {text!r} must give a number or a name of the model, got {target!r}.")
    return list(pairs)


def ordered_classes(names: Sequence[str], label_map: LabelMap | None) -> list[str]:
    """The classes of the data in the order in which a new model shall number them.

    >>> ordered_classes(["good", "poor"], {"good": 1, "poor": 0})
    ['poor', 'good']

    Args:
        names: The classes, in the order that they have without a map.
        label_map: The number of every class.

    Returns:
        The names.

    Raises:
        ValueError: The map does not number the classes from 0 without a gap, each by its own number.
    """
    if not label_map:
        return list(names)
    numbered: dict[str, str] = {str(target): name for name, target in label_map.items()}
    expected = list(map(str, range(len(names))))
    if set(label_map) != set(names) or set(numbered) != set(expected):
        raise ValueError(
            f"a model that is fine-tuned here gets a class for every class of the data ({_listed(names)}), with the "
            f"numbers 0 to {len(names) - 1}; the label map says {_json_of(label_map)}."
        )
    return [numbered[number] for number in expected]


def _names_of(config: PretrainedConfig) -> list[str]:
    """The names of the classes in the order of their numbers, which a config from JSON may hold as strings."""
    name_of = {int(number): str(name) for number, name in config.id2label.items()}
    return [name_of[number] for number in sorted(name_of)]


def has_names(config: PretrainedConfig) -> bool:
    """Whether the classes of a model have names, other than those that transformers gives where nobody did.

    >>> has_names(PretrainedConfig(num_labels=2)), has_names(PretrainedConfig(id2label={0: "no", 1: "yes"}))
    (False, True)

    Args:
        config: The model's config.

    Returns:
        Whether they do.
    """
    return not _are_default_names(_names_of(config))


def _are_default_names(names: Sequence[str]) -> bool:
    """Whether a config only has the names that transformers gives to classes without names."""
    return all(name == f"LABEL_{number}" for number, name in enumerate(names))


def _listed(names: Sequence[str]) -> str:
    if len(names) <= _LISTED:
        return ", ".join(names)
    return f"{', '.join(names[:_LISTED])} ... ({len(names)} in all)"


def _template(names: Sequence[str]) -> str:
    """The option to write; what it gives is left open, as an example would be copied."""
    pairs = ",".join(f"{name}=?" for name in names[:_LISTED])
    more = ",..." if len(names) > _LISTED else ""
    return f"--label-map {pairs}{more} (label_map in Python and in a file of arguments)"


def _json_of(label_map: Mapping[str, int | str]) -> str:
    return json.dumps(dict(label_map), ensure_ascii=False)


def label_arguments(
    data: DatasetDict, label_column: str = "label", *, label_map: LabelMap | None = None
) -> dict[str, Any]:
    """The arguments of `from_pretrained` that describe the labels of a data set.

    Args:
        data: Splits with a label column.
        label_column: The column with the labels.
        label_map: The number that every class shall have, if not the data's.

    Returns:
        The number and names of the classes, or that it is a regression.

    Raises:
        ValueError: The label map does not number the classes of the data.
    """
    feature = data["train"].features[label_column]
    if not isinstance(feature, ClassLabel):
        if label_map:
            raise ValueError("the labels are numbers to predict, not classes: leave the label map out.")
        return {"num_labels": 1, "problem_type": "regression"}
    names = ordered_classes(feature.names, label_map)
    return {**named_labels(names), "problem_type": "single_label_classification"}


def named_labels(names: Sequence[str]) -> dict[str, Any]:
    """The arguments of `from_pretrained` that describe labels with these names.

    >>> named_labels(["no", "yes"])
    {'num_labels': 2, 'id2label': {0: 'no', 1: 'yes'}, 'label2id': {'no': 0, 'yes': 1}}
    """
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": _numbered(names),
    }


def _numbered(names: Sequence[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}
