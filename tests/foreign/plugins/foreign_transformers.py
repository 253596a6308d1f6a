"""A plugin for pytest in a checkout of transformers: the model classes under test become pruned ones.

In every test module, the classes of the model type are replaced by `Pruned<Class>`: among the module's names, and in
the lists of classes that the mixins go through. A pruned class that gets a config without a table of shapes makes one
of uneven widths for it, so all tests that build, save, load, train and generate run on pruned models.
"""

import copy
import inspect
import json
import os
import sys
import types
from typing import Any

import pytest
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models import auto

from hfprune.structure import find_blocks, modeling_pruned, surgery

#: The model type whose classes are replaced; without it the tests run on the dense classes.
TYPE = "FOREIGN_PRUNED_TYPE"
#: Mixins that test several devices. Their modules need helpers that not every checkout has.
SEVERAL_DEVICES = {
    "test_fsdp_mixin": "FSDPTesterMixin",
    "test_tensor_parallel_mixin": "TensorParallelTesterMixin",
    "test_expert_parallel_mixin": "ExpertParallelTesterMixin",
}
PARTS = (modeling_pruned.PrunedModel, modeling_pruned.PrunedConfig)
#: Attributes of a config that shapes do not follow from.
WITHOUT_SHAPES = ("pruning_config", "transformers_weights", "per_layer_config")


def uneven_widths(blocks) -> dict[str, list[int]]:
    """Which units stay: another number in every block, and never the first ones only.

    Args:
        blocks: The blocks of a model.

    Returns:
        By block name, indices of units.
    """
    kept = {}
    attentions = 0
    for index, block in enumerate(blocks):
        if block.kind == "ffn":
            stay = block.units - 3 - 2 * index
        else:
            # with two heads a layer, every other layer keeps both
            stay = block.units - 1 - attentions if attentions % 2 == 0 else block.units
            attentions += 1
        stay = max(1, stay)
        kept[block.name] = list(range(block.units - stay, block.units))
    return kept


def pruned_fields(model_class: type[PreTrainedModel], config: PretrainedConfig) -> dict[str, Any]:
    """What the config of a pruned model says beyond that of the dense one.

    Args:
        model_class: The stock class.
        config: A config of the pruned class, without a table.

    Returns:
        The fields.
    """
    stock = _stock_config(config)
    with torch.device("meta"):
        dense = model_class(stock)
    # tests build models under other default devices
    with torch.device("cpu"):
        blocks = find_blocks(dense)
        small, _ = surgery.skeleton(dense, uneven_widths(blocks), blocks=blocks)
    return {"pruning_config": small.config.pruning_config}


def _stock_config(config: PretrainedConfig) -> PretrainedConfig:
    stock_class = modeling_pruned.base_class(type(config))
    fields = {name: value for name, value in config.to_dict().items() if name not in WITHOUT_SHAPES}
    fields["model_type"] = stock_class.model_type
    stock = stock_class.from_dict(fields)
    stock._attn_implementation = config._attn_implementation
    return stock


def _fingerprint(config: PretrainedConfig) -> str:
    fields = {name: value for name, value in config.to_dict().items() if isinstance(value, int)}
    return json.dumps(fields, sort_keys=True)


class UnevenWidths:
    """Gives configs the table of shapes that pruned classes need, and another one when a test changes their sizes."""

    def __init__(self) -> None:
        self.fields: dict[tuple[str, str], dict[str, Any]] = {}
        self.is_making = False
        self.plain_init = modeling_pruned.PrunedModel.__init__

    def prepare(self, model_class: type, config: Any) -> None:
        if self.is_making or not isinstance(config, modeling_pruned.PrunedConfig):
            return
        stock_class = modeling_pruned.base_class(model_class)
        key = (stock_class.__name__, _fingerprint(config))
        # a table that this plugin has not made comes from a checkpoint
        mine = any(fields["pruning_config"] == config.pruning_config for fields in self.fields.values())
        if config.pruning_config is not None and not mine:
            return
        if key not in self.fields:
            self.fields[key] = self.made(stock_class, config)
        for name, value in copy.deepcopy(self.fields[key]).items():
            setattr(config, name, value)

    def made(self, stock_class: type[PreTrainedModel], config: Any) -> dict[str, Any]:
        self.is_making = True
        try:
            return pruned_fields(stock_class, config)
        finally:
            self.is_making = False

    def install(self) -> None:
        def init(model: Any, config: Any, *args: Any, **kwargs: Any) -> None:
            self.prepare(type(model), config)
            self.plain_init(model, config, *args, **kwargs)

        modeling_pruned.PrunedModel.__init__ = init
        # the pruned class also where the stock config could say the shapes, as it can of one layer
        surgery.stock_config = lambda *_: None


def swapped(value: Any, model_type: str) -> Any:
    """A class of the model type as its pruned class, also inside of tuples, lists and dictionaries."""
    if type(value) in (tuple, list):
        return type(value)([swapped(item, model_type) for item in value])
    # and not the Auto classes' own mappings
    if type(value) is dict:
        return {key: swapped(item, model_type) for key, item in value.items()}
    if not isinstance(value, type) or issubclass(value, PARTS):
        return value
    is_config = issubclass(value, PretrainedConfig) and value.model_type == model_type
    is_model = issubclass(value, PreTrainedModel) and getattr(value.config_class, "model_type", None) == model_type
    # the base class of all heads is not built by itself
    if is_config or (is_model and not value.__name__.endswith("PreTrainedModel")):
        return modeling_pruned.pruned_class(value)
    return value


def swap_classes(module: types.ModuleType, model_type: str) -> None:
    """Replace the classes of the model type in a test module.

    Args:
        module: The module.
        model_type: The model type.
    """
    for name, value in list(vars(module).items()):
        if isinstance(value, type) and value.__module__ == module.__name__:
            _swap_attributes(value, model_type)
        else:
            setattr(module, name, swapped(value, model_type))


def _swap_attributes(cls: Any, model_type: str) -> None:
    # a tester infers the other classes from the module of its first one
    if getattr(cls, "base_model_class", None) is not None and hasattr(cls, "_verify_and_infer_model_attributes"):
        cls._verify_and_infer_model_attributes()
        cls._verify_and_infer_model_attributes = classmethod(lambda _: None)
    for name, value in list(vars(cls).items()):
        if isinstance(value, (type, tuple, list, dict)):
            setattr(cls, name, swapped(value, model_type))


def name_classes() -> None:
    """Let the lists of class names, by which tests know what inputs a class needs, have those of pruned classes too."""
    plain = auto.get_values

    def get_values(mapping: Any) -> list[Any]:
        values = plain(mapping)
        return values + [f"Pruned{name}" for name in values if isinstance(name, str)]

    auto.get_values = get_values


def file_of_stock_classes() -> None:
    """Tests read in the file of a class how old a model is, and leave out the old ones."""
    plain = inspect.getfile

    def getfile(thing: Any) -> str:
        is_pruned = isinstance(thing, type) and issubclass(thing, PARTS)
        return plain(modeling_pruned.base_class(thing) if is_pruned else thing)

    inspect.getfile = getfile


class PrunedClasses:
    """Replaces classes as soon as a test module is there, before its tests are collected."""

    def __init__(self, model_type: str) -> None:
        self.model_type = model_type
        self.seen: set[str] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_pycollect_makeitem(self, collector: Any) -> None:
        module = collector.module
        if module.__name__ not in self.seen:
            self.seen.add(module.__name__)
            swap_classes(module, self.model_type)


def leave_out_several_devices() -> None:
    """Empty mixins in the place of those that test several devices."""
    for module_name, mixin in SEVERAL_DEVICES.items():
        module = types.ModuleType(f"tests.{module_name}")
        setattr(module, mixin, type(mixin, (), {}))
        sys.modules[module.__name__] = module


def pytest_configure(config) -> None:
    """Register the plugin."""
    leave_out_several_devices()
    model_type = os.environ.get(TYPE)
    if model_type:
        UnevenWidths().install()
        name_classes()
        file_of_stock_classes()
        config.pluginmanager.register(PrunedClasses(model_type), "foreign-pruned-classes")
