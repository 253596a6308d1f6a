"""The places of a model where an entry of the table expects its blocks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hfprune.errors import StructureError
from hfprune.structure.blocks import QUERIES
from hfprune.structure.specs import Architecture, AttentionUnit, BlockSpec, specs_of
from hfprune.structure.wrapping import argument_names


@dataclass(frozen=True, kw_only=True)
class Site:
    """A place where an entry expects a block.

    Attributes:
        config: Of the model.
        dtype: Of the model.
        layer: The layer that holds the block.
        path: Path of the layer, from the base model.
        name: The block's name in the layer.
        spec: The entry of the block.
        uses: How often the layer runs in one pass.
        cached: Whether its keys and values are kept while the model generates.
        by_query: Whether single query heads are the units.
    """

    config: PretrainedConfig
    dtype: torch.dtype
    layer: nn.Module
    path: str
    name: str
    spec: BlockSpec
    uses: int
    cached: bool
    by_query: bool

    @property
    def unsupported(self) -> str:
        """The first module of the layer that the entry does not handle; empty if there is none."""
        names = {name for name, _ in self.layer.named_modules()}
        return next((path for path in self.spec.absent if path in names), "")

    def inside(self, path: str) -> str:
        """A path in the layer, from the base model; the layer's own for an empty path."""
        return f"{self.path}.{path}".rstrip(".")

    def inside_if_any(self, path: str | None) -> str | None:
        """The same; None for None."""
        if path is None:
            return None
        return self.inside(path)


def sites_of(model: PreTrainedModel, entry: Architecture, attention_unit: AttentionUnit) -> Iterator[Site]:
    """Every place of a model where its entry expects a block, in the order in which they run.

    Args:
        model: The model.
        entry: Where its blocks are.
        attention_unit: What units of attention with shared key/value heads are.

    Yields:
        The places.

    Raises:
        StructureError: Layers are shared in a way that hfprune does not count.
    """
    for stack, layer_specs in entry.stacks.items():
        layers, uses = _layers(model, stack, entry)
        cached = _is_cached(model, stack)
        for path, layer in layers:
            for name, choices in specs_of(layer_specs).items():
                if _is_lacking(layer, choices):
                    continue
                spec = _fitting(layer, choices)
                by_query = attention_unit == "query" and spec.grouped
                # plans and checkpoints tell query heads by the name of their block
                if by_query:
                    name = QUERIES
                yield Site(
                    config=model.config,
                    dtype=model.dtype,
                    layer=layer,
                    path=path,
                    name=name,
                    spec=spec,
                    uses=uses,
                    cached=cached,
                    by_query=by_query,
                )


def _layers(model: PreTrainedModel, stack: str, entry: Architecture) -> tuple[list[tuple[str, nn.Module]], int]:
    """The layers of a stack with their paths, and how often each runs; none if the model lacks the stack."""
    found: list[tuple[str, nn.Module]] = [("", model.base_model)]
    outermost = 0
    for part in stack.split(".*."):
        inside: list[tuple[str, nn.Module]] = []
        for path, module in found:
            try:
                layers = module.get_submodule(part)
            except AttributeError:
                return [], 1
            if isinstance(layers, nn.ModuleList):
                inside += [(f"{path}.{part}.{index}".lstrip("."), layer) for index, layer in enumerate(layers)]
        found = inside
        outermost = outermost or len(inside)
    if not entry.runs:
        return found, 1
    runs: int = getattr(model.config, entry.runs)
    if runs % outermost:
        raise StructureError(
            f"{entry.runs}={runs} is no multiple of the {outermost} groups of layers that {type(model).__name__} "
            "shares among them: how often each runs differs, which hfprune does not count."
        )
    return found, runs // outermost


def _is_cached(model: PreTrainedModel, stack: str) -> bool:
    """Whether attention in a stack of layers keeps keys and values while the model generates."""
    config = model.config
    if "past_key_values" not in argument_names(model.base_model):
        return False
    if config.is_encoder_decoder:
        return stack.startswith("decoder.")
    # BERT and its kin are decoders only if the config says so
    can_be_either = hasattr(config, "add_cross_attention")
    return not can_be_either or getattr(config, "is_decoder", True)


def _fitting(layer: nn.Module, choices: Sequence[BlockSpec]) -> BlockSpec:
    """The first spec whose projections the layer has; the first of all if none fits."""
    for spec in choices:
        if all(has_module(layer, path) for path in (*spec.producers, spec.consumer)):
            return spec
    return choices[0]


def _is_lacking(layer: nn.Module, choices: Sequence[BlockSpec]) -> bool:
    """Whether a layer has none of the projections of a block that it may lack."""
    for spec in choices:
        if not spec.optional or any(has_module(layer, path) for path in (*spec.producers, spec.consumer)):
            return False
    return True


def has_module(layer: nn.Module, path: str) -> bool:
    """Whether a layer has a module there, also one that an emptied block left, which `named_modules` does not list."""
    try:
        layer.get_submodule(path)
    except AttributeError:
        return False
    return True
