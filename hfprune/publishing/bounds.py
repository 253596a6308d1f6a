"""What a stranger's config may ask for: nothing that its weights do not have, and no change but those of pruning.

The header of the weights is read first; what it says bounds what the config can make transformers build.
"""

import inspect
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import CONFIG_MAPPING, PretrainedConfig

from hfprune.errors import CheckpointError
from hfprune.publishing.contents import CONFIG_FILE
from hfprune.structure.architectures import base_model_type
from hfprune.structure.blocks import Block

#: Sizes up to this cost nothing worth the name, even where the weights have none as large: a config also says sizes of
#: the dense model, and of parts that this model lacks.
_SMALL = 65_536
#: Fields that count layers. Every layer has weights.
_LAYERS = re.compile(r"n_layers?|(num_)?((encoder|decoder|hidden)_)*layers")
#: Fields with numbers that count nothing that is built.
_NO_SIZES = re.compile(r".*(theta|token_id|sampling_rate|transformers_version)s?")
#: Fields that count positions. Rotary embeddings build nothing of that size.
_POSITIONS = re.compile(r".*position.*|.*window.*|n_ctx|.*seq.*len.*|max_length")
#: Fields that every config takes, though no class declares them.
_OF_EVERY_CONFIG = frozenset({"num_labels"})
#: Fields of every config whose numbers are those of tasks, not of what is built.
_COUNT_NOTHING = frozenset({"id2label", "label2id", "task_specific_params"})
#: Where transformers looks for the config of a part, whatever the class declares.
_PARTS = frozenset({"decoder", "encoder", "generator", "text_config", "text_encoder"})
#: Modules that a model may have for every tensor, and besides: activations, dropouts and containers have no tensors.
_MODULES_PER_TENSOR = 20
_MODULES_BESIDES = 200

Shapes = Mapping[str, tuple[int, ...]]


def check_sizes(config: Mapping[str, Any], stored: Shapes) -> None:
    """Refuse a config that asks for sizes or numbers of layers that the weights do not have.

    Args:
        config: The content of config.json, of which no object was made yet.
        stored: The shapes in the weight files, by name.

    Raises:
        CheckpointError: With the first such field.
    """
    largest = max((size for shape in stored.values() for size in shape if 0 not in shape), default=0)
    for field, number in _numbers(config, "", _class_of(config)):
        name = field.rpartition(".")[2]
        if _LAYERS.fullmatch(name) and number > len(stored):
            raise CheckpointError(
                f"{CONFIG_FILE} asks for {number} layers ({field}), of {len(stored)} tensors in the weights. The "
                "config is damaged, or not to be trusted."
            )
        # nothing has a negative size, but a mask may have such a value
        if number > max(largest, _SMALL):
            raise CheckpointError(
                f"{CONFIG_FILE} sets {field} to {number:.6g}, but no tensor of the weights is longer than {largest}. "
                "The config is damaged, or not to be trusted."
            )
    _check_repeats(config, len(stored))


def _check_repeats(config: Mapping[str, Any], tensors: int) -> None:
    """Refuse lists of layers, written out or as patterns with a number of repeats, for more layers than tensors."""
    # GPT-Neo: [[["global", "local"], 12]]
    patterns = config.get("attention_types")
    if isinstance(patterns, list):
        layers = 0
        for pattern in patterns:
            # whatever else is there makes no config, which is found later
            if isinstance(pattern, list) and len(pattern) == 2 and isinstance(pattern[0], list):
                repeats = pattern[1] if isinstance(pattern[1], int) else 0
                layers += len(pattern[0]) * max(repeats, 0)
        _check_count("attention_types", layers, tensors)
    table = config.get("pruning_config")
    given = table.get("layers") if isinstance(table, dict) else None
    if given is None:
        return
    if not isinstance(given, list) or not all(isinstance(sizes, dict) for sizes in given):
        raise CheckpointError(
            f"pruning_config must give the sizes of every layer as a list of names and numbers, got {given!r:.100}. "
            "The config is damaged, or not to be trusted."
        )
    _check_count("pruning_config.layers", len(given), tensors)


def _check_count(field: str, layers: int, tensors: int) -> None:
    """Refuse more layers than tensors."""
    if layers > tensors:
        raise CheckpointError(
            f"{CONFIG_FILE} asks for {layers} layers ({field}), of {tensors} tensors in the weights. The config is "
            "damaged, or not to be trusted."
        )


def _numbers(
    values: Mapping[str, Any], path: str, config_class: type[PretrainedConfig] | None
) -> Iterator[tuple[str, int | float]]:
    """All numbers of a config that may be sizes, with the path of their field. The table of shapes is not among them.

    Args:
        values: Names and values.
        path: Where they stand in the config.
        config_class: The class whose fields they are; None if nobody knows.

    Yields:
        A path such as `text_config.vocab_size`, and a number.
    """
    # of rotary positions nothing of their number is built
    rotary = hasattr(config_class, "rope_parameters")
    declared = _declared(config_class)
    for name, value in values.items():
        # the table is held against the model itself, by `check_table` and while it is resized
        if (not path and name == "pruning_config") or _NO_SIZES.fullmatch(name):
            continue
        if _POSITIONS.fullmatch(name) and rotary:
            continue
        where = f"{path}{name}"
        if isinstance(value, dict) and _is_config(name, value, config_class):
            # a part of a model, such as its decoder, has a type of its own
            yield from _numbers(value, f"{where}.", _class_of(value) or _part_of(config_class, name))
        elif declared is not None and name not in declared:
            # a note of the user's, which no model reads
            continue
        elif isinstance(value, dict):
            yield from _numbers(value, f"{where}.", None)
        else:
            for number in _flat(value):
                yield where, number


def _class_of(config: Mapping[str, Any]) -> type[PretrainedConfig] | None:
    """The stock config class of the type that a config names, of which no object is made; None if there is none."""
    stock = base_model_type(str(config.get("model_type")))
    if stock not in CONFIG_MAPPING:
        return None
    found: type[PretrainedConfig] = CONFIG_MAPPING[stock]
    return found


def _part_of(config_class: type[PretrainedConfig] | None, name: str) -> type[PretrainedConfig] | None:
    """The class of a part of a model, by the name of the part's field."""
    part = getattr(config_class, "sub_configs", {}).get(name)
    # some say that any class may be there
    return part if isinstance(part, type) and part is not PretrainedConfig else None


def _is_config(name: str, value: Mapping[str, Any], config_class: type[PretrainedConfig] | None) -> bool:
    """Whether a field holds the config of a part of the model."""
    return "model_type" in value or name in _PARTS or name in getattr(config_class, "sub_configs", {})


def _declared(config_class: type[PretrainedConfig] | None) -> set[str] | None:
    """The fields of a config class, by which a model is built; None if nobody knows the class."""
    if config_class is None:
        return None
    names = set(_OF_EVERY_CONFIG) | set(config_class.attribute_map)
    for cls in config_class.__mro__:
        names.update(inspect.get_annotations(cls))
        own = vars(cls).get("__init__")
        if inspect.isfunction(own):
            names.update(inspect.signature(own).parameters)
            names.update(name for name, value in vars(cls).items() if isinstance(value, property))
    return names - _COUNT_NOTHING


def _flat(value: Any) -> Iterator[int | float]:
    """The numbers in a value, or in lists within lists."""
    if isinstance(value, list):
        for item in value:
            # names and numbers in dictionaries within lists are those of tasks, such as `id2label` of a head
            yield from _flat(list(item.values()) if isinstance(item, dict) else item)
    elif isinstance(value, (int, float)):
        yield value


@contextmanager
def few_modules(stored: Shapes) -> Iterator[None]:
    """Within it, building more modules than a model of these weights can have is an error, whatever field asked.

    Args:
        stored: The shapes in the weight files, by name.

    Yields:
        Nothing.

    Raises:
        CheckpointError: Far more modules than tensors are built.
    """
    most = _MODULES_PER_TENSOR * len(stored) + _MODULES_BESIDES
    thread = threading.get_ident()
    built = 0

    def count(_: nn.Module, __: str, ___: nn.Module | None) -> None:
        nonlocal built
        # other threads may build models of their own
        if threading.get_ident() != thread:
            return
        built += 1
        if built > most:
            raise CheckpointError(
                f"{CONFIG_FILE} asks for more than {most} modules, of {len(stored)} tensors in the weights. The config "
                "is damaged, or not to be trusted."
            )

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def check_table(table: Mapping[str, Any], blocks: Iterable[Block]) -> None:
    """Refuse a shape table that changes anything but what the entry of the model type names.

    Args:
        table: `pruning_config` of the config.
        blocks: The blocks of the model.

    Raises:
        CheckpointError: With the first such change.
    """
    attributes: set[str] = set()
    projections: set[str] = set()
    parameters: set[str] = set()
    bypasses: set[str] = set()
    inputs: dict[tuple[str, str], dict[str, Any]] = {}
    for block in blocks:
        attributes.update(f"{path}.{attribute}" for path, attribute, _ in block.sizes)
        for piece in block.slices:
            if piece.role == "other":
                parameters.add(piece.path)
            else:
                projections.add(piece.module)
        if block.bypass is not None:
            bypasses.add(block.bypass)
        for path, argument, where in block.head_inputs:
            inputs[path, argument] = {
                "dim": where.dimension,
                "made_by": where.made_by or None,
                "returned": where.returned,
            }
    _check_named("attributes", table.get("attributes", {}), attributes)
    _check_named("shapes", table.get("shapes", {}), projections)
    _check_named("parameters", table.get("parameters", {}), parameters)
    _check_named("bypassed", table.get("bypassed", {}), bypasses)
    for path, rules in table.get("inputs", {}).items():
        for argument, rule in rules.items():
            _check_rule(path, argument, rule, inputs.get((path, argument)))


def check_layers(table: Mapping[str, Any], expected: Sequence[Mapping[str, int]]) -> None:
    """Refuse sizes of layers that are not those of the model. transformers allocates caches by them.

    Args:
        table: `pruning_config` of a config that `check_sizes` took. Earlier versions wrote no sizes of layers.
        expected: For every layer, what its blocks have, as `sizes_of_layers` gives it.

    Raises:
        CheckpointError: With the first layer of other sizes.
    """
    given = table.get("layers") or []
    if not given:
        return
    if len(given) != len(expected):
        raise CheckpointError(
            f"pruning_config must give the sizes of {len(expected)} layers, got {len(given)}. The config is damaged, "
            "or not to be trusted."
        )
    for number, (sizes, right) in enumerate(zip(given, expected, strict=True)):
        # 8.0 and True equal whole numbers, and no cache can have such sizes
        if sizes != right or any(type(size) is not int for size in sizes.values()):
            raise CheckpointError(
                f"pruning_config gives layer {number} the sizes {sizes!r:.150}, where its blocks have {dict(right)}. "
                "The config is damaged, or not to be trusted."
            )


def _check_named(kind: str, entries: Iterable[str], named: set[str]) -> None:
    """Refuse a path that is not among those of the model's blocks."""
    for path in entries:
        if path not in named:
            raise CheckpointError(
                f"pruning_config changes {path!r:.150} ({kind}), which is no part of what pruning cuts from this model "
                "type. The config is damaged, or not to be trusted."
            )


def _check_rule(path: str, argument: str, rule: Mapping[str, Any], entry: Mapping[str, Any] | None) -> None:
    """Refuse a rule for the slices of an argument that is not the one of the model type."""
    given = {name: rule.get(name) or None for name in ("made_by",)}
    given.update(dim=rule.get("dim"), returned=rule.get("returned"))
    if entry is None or given != entry:
        raise CheckpointError(
            f"pruning_config selects slices of the argument {argument!r:.50} of {path!r:.100} in a way that the entry "
            "of this model type does not name. The config is damaged, or not to be trusted."
        )
