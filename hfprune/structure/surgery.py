"""Surgery: the one step that changes shapes. It keeps rows of producers and columns of consumers, as a new model."""

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from hfprune.errors import StructureError, UnsupportedArchitectureError
from hfprune.structure import modeling_pruned
from hfprune.structure.blocks import (
    Block,
    base_model_prefix,
    check_in_one_place,
    expanded,
    features_of,
    weight_dimensions,
)
from hfprune.structure.embedder import SentenceEmbedder, body_of
from hfprune.structure.pruned_layers import without_sizes
from hfprune.structure.stock import stock_config


def keep_units(
    model: PreTrainedModel, kept: Mapping[str, Sequence[int]], *, blocks: Sequence[Block]
) -> PreTrainedModel:
    """A smaller model that holds copies of the kept slices of the weights.

    It is built exactly as loading will build it (an empty skeleton of the recorded shapes, then strict loading), so
    what works here also reloads. Where the stock config can say the new shapes the result is of the stock class,
    otherwise of `Pruned<Base>`.

    Args:
        model: The model; it stays as it is.
        kept: By block name, the increasing indices of the units that stay. Blocks not named stay whole.
        blocks: The model's blocks, as `find_blocks` reads them.

    Returns:
        The new model, in the same dtype, device, training mode and `requires_grad` state.

    Raises:
        UnsupportedArchitectureError: The model's class is neither one of transformers' nor registered with an Auto
            class, so it could not be loaded again; or a block is left without units that cannot run without any.
        StructureError: The model was changed in a way that its config does not say, or is spread over devices.
        ValueError: The query heads that stay are not as many of every group.

    Examples:
        >>> from hfprune.structure import find_blocks, keep_units
        >>> kept = {"encoder.layer.0.attention": [0, 3], "encoder.layer.0.ffn": range(8)}
        >>> small = keep_units(dense, kept, blocks=find_blocks(dense))
        >>> type(small).__name__
        'PrunedBertForSequenceClassification'
        >>> for block in find_blocks(small):
        ...     print(block.name, block.units)
        encoder.layer.0.attention 2
        encoder.layer.0.ffn 8
        encoder.layer.1.attention 4
        encoder.layer.1.ffn 32
    """
    check_in_one_place(model)
    if isinstance(model, SentenceEmbedder):
        return model.around(keep_units(model.body, kept, blocks=blocks))
    small, state = skeleton(model, kept, blocks=blocks)
    fill(small, state, model)
    return small


def fill(small: PreTrainedModel, state: Mapping[str, Tensor], model: PreTrainedModel) -> None:
    """Load weights into an empty model, strictly, and copy all other state from the model that they come from.

    Args:
        small: An empty model, on the meta device.
        state: Its state dict.
        model: The model that the weights come from: it says which parameters are tied or frozen and which modules are
            in training mode, and gives its buffers and its generation config.

    Raises:
        StructureError: The state dict is not that of the empty model.
    """
    try:
        small.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise StructureError(
            f"{type(model).__name__} has parameters that its config does not describe, so a checkpoint of it could not "
            f"be loaded again: {error} Undo the change, or make it through the config (num_labels, vocab_size ...)."
        ) from error
    _share_weights(model, small)
    _copy_buffers(model, small)
    trainable = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in small.named_parameters():
        parameter.requires_grad_(trainable[name].requires_grad)
    for name, module in small.named_modules():
        module.training = model.get_submodule(name).training
    if getattr(model, "generation_config", None) is not None:
        small.generation_config = copy.deepcopy(model.generation_config)


def skeleton(
    model: PreTrainedModel, kept: Mapping[str, Sequence[int]], *, blocks: Sequence[Block]
) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """An empty model of the smaller shapes, on the meta device, and the weights that belong into it.

    Args:
        model: The model. It may be on the meta device itself; so are the sliced weights then.
        kept: As for `keep_units`.
        blocks: As for `keep_units`.

    Returns:
        The empty model, and its state dict.

    Raises:
        UnsupportedArchitectureError: As for `keep_units`.
        ValueError: As for `keep_units`.
    """
    names = [block.name for block in blocks]
    for name in kept:
        if name not in names:
            raise ValueError(f"kept names {name!r}, which is no block of the model. Blocks: {', '.join(names)}.")
    indices: dict[str, Tensor] = {}
    for block in blocks:
        units = list(kept.get(block.name, range(block.units)))
        _check_indices(block, units)
        indices[block.name] = torch.as_tensor(units, dtype=torch.long, device="cpu")
        _check_kept(block, indices[block.name], model.config.model_type)
    state = _sliced_state(model, blocks, indices)
    return _skeleton(model, blocks, indices, state), state


def _check_indices(block: Block, units: Sequence[int]) -> None:
    """Refuse indices that are no whole numbers of units of the block, or do not increase."""
    are_whole = all(hasattr(unit, "__index__") and not isinstance(unit, bool) for unit in units)
    if are_whole and all(first < second for first, second in pairwise([-1, *units, block.units])):
        return
    raise ValueError(
        f"kept must give increasing whole numbers from 0 to {block.units - 1} for {block.name!r}, got {units[:8]}."
    )


def _check_kept(block: Block, kept: Tensor, model_type: str) -> None:
    """Refuse to keep units that the block's modules cannot run with."""
    if len(kept) < block.least:
        raise UnsupportedArchitectureError(
            f"{block.name} of a {model_type} model cannot run without any unit, so the block cannot "
            f"be removed whole. Keep at least {block.least} of its units (min_units={block.least})."
        )
    size = max(block.units // block.groups, 1)
    of_groups = torch.bincount(kept // size, minlength=block.groups).tolist()
    if len(set(of_groups)) > 1:
        raise ValueError(
            f"{block.name} must keep as many query heads of every one of its {block.groups} groups, got "
            f"{of_groups[:8]}. Let hfprune.plan choose them, or prune whole groups (attention_unit='group')."
        )


def _sliced_state(model: PreTrainedModel, blocks: Sequence[Block], indices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with the kept slices only: copies, so that the model can change or go."""
    whole = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    prefix = base_model_prefix(model)
    sliced: dict[str, Tensor] = {}
    for block in blocks:
        for piece in block.slices:
            name = f"{prefix}{piece.path}"
            if not block.units:
                # an emptied block has no such parameter
                continue
            # a parameter that several blocks have slices of is cut by each of them
            before = sliced.get(name, whole[name])
            index = piece.index(indices[block.name], block.units)
            sliced[name] = before.index_select(piece.dimension, index.to(before.device))
    # the order of the model's own state dict, and copies of all that is not cut
    state: dict[str, Tensor] = {}
    for name, tensor in whole.items():
        part = sliced[name] if name in sliced else tensor.clone()
        # an emptied projection has no weight, not one without numbers
        if part.numel() or not tensor.numel():
            state[name] = part
    return state


def _skeleton(
    model: PreTrainedModel, blocks: Sequence[Block], indices: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> PreTrainedModel:
    """An empty model of the sliced shapes: of the stock class if the stock config can say them, else of the pruned."""
    stock_class = modeling_pruned.base_class(type(model))
    config = stock_config(model.config, blocks, [len(indices[block.name]) for block in blocks])
    if config is not None:
        small = empty(stock_class, config, model)
        shapes = {name: tensor.shape for name, tensor in small.state_dict().items()}
        # a config may say some of the sizes only, so what it builds is compared
        if all(shapes.get(name) == tensor.shape for name, tensor in state.items()):
            return small
    pruned_class = pruned_class_for(model)
    fields = copy.deepcopy(without_sizes(model.config).to_dict())
    fields["model_type"] = pruned_class.config_class.model_type
    fields["pruning_config"] = _table(model, blocks, indices, state)
    # that of a checkpoint which was loaded with its own code; saving writes a new one
    fields.pop("auto_map", None)
    return empty(pruned_class, pruned_class.config_class.from_dict(fields), model)


def pruned_class_for(model: PreTrainedModel) -> type[PreTrainedModel]:
    """`Pruned<Base>` for a model.

    Args:
        model: The model, of a stock class or pruned already.

    Returns:
        The class.

    Raises:
        UnsupportedArchitectureError: Loading would not find the class again.
    """
    stock = modeling_pruned.base_class(type(body_of(model)))
    # loading finds classes by their names, so the name must lead to this very class
    found_again = [modeling_pruned.stock_class(cls.__name__) is cls for cls in (stock, stock.config_class)]
    if not all(found_again):
        raise UnsupportedArchitectureError(
            f"{stock.__module__}.{stock.__name__} is not a class of transformers, nor registered with an Auto class: a "
            "pruned checkpoint of it could not be loaded again. Register it where it is defined, under a name of its "
            "own (AutoConfig.register(model_type, Config), AutoModelForX.register(Config, Model)), or prune the "
            "transformers model that it is made of."
        )
    pruned: type[PreTrainedModel] = modeling_pruned.pruned_class(stock)
    return pruned


def empty(cls: type[PreTrainedModel], config: PretrainedConfig, model: PreTrainedModel) -> PreTrainedModel:
    """A model without weights, on the meta device.

    Args:
        cls: The class to build.
        config: Its config; attention implementation, dtype and name are set as in the other model.
        model: The other model.

    Returns:
        The empty model.
    """
    config._attn_implementation = model.config._attn_implementation
    config.dtype = model.dtype
    config._name_or_path = model.config._name_or_path
    with torch.device("meta"):
        return cls(config)


def _table(
    model: PreTrainedModel, blocks: Sequence[Block], indices: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> dict[str, Any]:
    """The shape table that a pruned config carries and loading applies, by path from the base model."""
    attributes: dict[str, int] = {}
    bypassed: dict[str, str] = {}
    for block in blocks:
        kept = len(indices[block.name])
        for path, attribute, amount in block.sizes:
            attributes[f"{path}.{attribute}"] = amount.of(kept // block.groups)
        if not kept and block.bypass is not None:
            # a consumer inside the module that is left out would not run, so the bypass must run it
            bypassed[block.bypass] = ""
            if block.consumer.startswith(f"{block.bypass}."):
                bypassed[block.bypass] = block.consumer.removeprefix(f"{block.bypass}.")
    table = {
        "format_version": modeling_pruned.FORMAT_VERSION,
        "shapes": _shapes(model, blocks, indices),
        "attributes": attributes,
        "inputs": _head_inputs(model, blocks, indices),
        "bypassed": bypassed,
        "layers": sizes_of_layers(model, blocks, {name: len(index) for name, index in indices.items()}),
    }
    parameters = _parameters(model, blocks, state)
    # most types have none, and their tables stay as earlier versions wrote them
    if parameters:
        table["parameters"] = parameters
    return table


def sizes_of_layers(model: PreTrainedModel, blocks: Sequence[Block], units: Mapping[str, int]) -> list[dict[str, int]]:
    """The config fields that say the sizes of every layer, as transformers reads them to allocate caches.

    Args:
        model: The model.
        blocks: Its blocks.
        units: By block name, how many units there are to be.

    Returns:
        For every layer, in order, sizes by field of the config: of the decoder, if there is an encoder too. Nothing if
        the config does not count the layers one by one, as where layers are shared.
    """
    sizes: dict[str, dict[str, int]] = {}
    for block in blocks:
        of_encoder = model.config.is_encoder_decoder and not block.layer.startswith("decoder.")
        if of_encoder or block.name.endswith(".cross_attention"):
            continue
        count = units[block.name]
        fields = {name: amount.of(count // block.groups) for name, amount in block.config_fields}
        if block.kind == "attention":
            fields.update(_heads(block, count, model.dtype.itemsize))
        sizes.setdefault(block.layer, {}).update(fields)
    config = model.config.get_text_config(decoder=True)
    if len(sizes) != getattr(config, "num_hidden_layers", None):
        return []
    return list(sizes.values())


def _heads(block: Block, units: int, itemsize: int) -> dict[str, int]:
    """What config fields say of an attention block, by the names that transformers has for all model types."""
    if not units:
        # what stands for it keeps one number of a key and of a value for every token
        return {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 1}
    heads = units * block.heads
    shared = block.groups if block.unit == "query" else units
    # Falcon repeats keys and values for every query head before it caches them
    of_one_head = 2 * block.head_dim * itemsize
    if block.unit_cache_bytes == of_one_head * block.heads:
        shared = heads
    return {"num_attention_heads": heads, "num_key_value_heads": shared, "head_dim": block.head_dim}


def _shapes(
    model: PreTrainedModel, blocks: Sequence[Block], indices: Mapping[str, Tensor]
) -> dict[str, dict[str, int]]:
    """Input and output features of every projection whose weight is cut."""
    shapes: dict[str, dict[str, int]] = {}
    for block in blocks:
        for piece in block.slices:
            if piece.role == "other" or piece.parameter != "weight":
                continue
            module = model.base_model.get_submodule(piece.module)
            if piece.module not in shapes:
                in_features, out_features = features_of(module)
                shapes[piece.module] = {"in_features": in_features, "out_features": out_features}
            input_dimension, _ = weight_dimensions(module)
            side = "in_features" if piece.dimension == input_dimension else "out_features"
            shapes[piece.module][side] = sum(piece.rows) * len(indices[block.name])
    return shapes


def _parameters(model: PreTrainedModel, blocks: Sequence[Block], state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """The shape of every parameter beside the projections that is cut; `[0]` if nothing is left of it."""
    prefix = base_model_prefix(model)
    shapes: dict[str, list[int]] = {}
    for block in blocks:
        for piece in block.slices:
            if piece.role != "other":
                continue
            left = state.get(f"{prefix}{piece.path}")
            shapes[piece.path] = [0] if left is None else list(left.shape)
    return shapes


def _head_inputs(
    model: PreTrainedModel, blocks: Sequence[Block], indices: Mapping[str, Tensor]
) -> dict[str, dict[str, Any]]:
    """For every argument that holds one slice for each head: which slices belong to the heads that stay.

    The slices are counted over all heads of the dense model, which callers go on to make.
    """
    earlier = (getattr(model.config, "pruning_config", None) or {}).get("inputs", {})
    inputs: dict[str, dict[str, Any]] = {}
    for block in blocks:
        for path, argument, where in block.head_inputs:
            rule: dict[str, Any] = {"dim": where.dimension}
            if where.dimension is not None:
                heads = block.units * block.heads
                # what is pruned again has a selection already, which is narrowed here
                before = earlier.get(path, {}).get(argument, {"of": heads, "index": range(heads)})
                kept = expanded(indices[block.name], block.heads).tolist()
                rule.update(of=before["of"], index=[before["index"][head] for head in kept])
            if where.made_by:
                rule.update(made_by=where.made_by, returned=where.returned)
            inputs.setdefault(path, {})[argument] = rule
    return inputs


def _share_weights(model: PreTrainedModel, small: PreTrainedModel) -> None:
    """Tie the parameters of the small model that are tied in the model, whatever its config says of tying."""
    first_name: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        original = first_name.setdefault(id(parameter), name)
        # the second name of a parameter that had one before
        if original != name:
            owner, _, attribute = name.rpartition(".")
            setattr(small.get_submodule(owner), attribute, small.get_parameter(original))


def _copy_buffers(model: PreTrainedModel, small: PreTrainedModel) -> None:
    """Copy the buffers that state dicts leave out, such as rotary frequencies and position ids."""
    originals = dict(model.named_buffers())
    for name, buffer in list(small.named_buffers()):
        # one that is still empty was not in the state dict
        if buffer.is_meta:
            owner, _, attribute = name.rpartition(".")
            small.get_submodule(owner)._buffers[attribute] = originals[name].detach().clone()
