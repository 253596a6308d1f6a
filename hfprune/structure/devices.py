"""Where a model runs and where its weights are: in one place, or spread or offloaded by accelerate's hooks.

`device_map` of `from_pretrained` and `accelerate.dispatch_model`, `cpu_offload` and `disk_offload` hang a hook on every
module. The hook moves the module's inputs to the device where the module runs. Offloaded weights are on `meta`; the
hook brings them to that device for as long as the module runs.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from accelerate.utils import align_module_device, has_offloaded_params
from torch import nn
from transformers import PreTrainedModel

from hfprune.errors import StructureError
from hfprune.structure.wrapping import inner

#: Where tensors have a shape and no values.
_META = torch.device("meta")


def running_device(module: nn.Module) -> torch.device:
    """Where a module runs: where its hook moves its inputs, or where its first parameter is.

    >>> running_device(nn.Linear(2, 2))
    device(type='cpu')
    """
    hook = getattr(module, "_hf_hook", None)
    # some of accelerate's hooks have no such attribute, or None in it
    execution_device = getattr(hook, "execution_device", None)
    if execution_device is None:
        return next(module.parameters()).device
    # accelerate takes an index or a name as well
    return torch.device(execution_device)


def input_embeddings(model: PreTrainedModel) -> nn.Module | None:
    """The module that embeds the inputs; None for a model, such as one of speech, for which transformers names none."""
    model = inner(model)
    try:
        module: nn.Module = model.get_input_embeddings()
    except NotImplementedError:
        return None
    return module


def check_tokens(model: PreTrainedModel, largest: int) -> None:
    """Refuse texts with token ids beyond the rows of the model's embeddings.

    Args:
        model: The model.
        largest: The largest id in the texts.

    Raises:
        ValueError: The model has no row for that id.

    Examples:
        >>> from transformers import BertConfig, BertModel
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 32}
        >>> model = BertModel(BertConfig(num_hidden_layers=1, **sizes))
        >>> check_tokens(model, largest=31)
        >>> check_tokens(model, largest=32)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: a text has the token id 32, and the model has 32 rows of embeddings. ...
    """
    # only an Embedding has rows; a model of pictures or speech has some other module there, or none
    rows = getattr(input_embeddings(model), "num_embeddings", None)
    if rows is not None and largest >= rows:
        raise ValueError(
            f"a text has the token id {largest}, and the model has {rows} rows of embeddings. Take the model's own "
            "tokenizer, or call model.resize_token_embeddings(len(tokenizer)) first."
        )


def input_device(model: PreTrainedModel) -> torch.device:
    """Where a model, or a base model called alone, takes its inputs: where its embeddings run."""
    model = inner(model)
    embeddings = input_embeddings(model)
    device: torch.device = model.device
    if embeddings is not None:
        of_embeddings = running_device(embeddings)
        # embeddings of several modules may have no hook of their own, and offloaded weights do not say where they run
        if of_embeddings != _META:
            device = of_embeddings
    return device


@contextmanager
def plain_tensors() -> Iterator[None]:
    """New tensors are float32 on the CPU inside the `with`, whatever the user has set as default.

    For code that is not ours: a collator, or the constructor of a model. Our own code says dtype and device.

    Yields:
        Nothing.

    Examples:
        >>> with torch.device("meta"), plain_tensors():
        ...     torch.ones(2)
        tensor([1., 1.])
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def loaded(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Bring offloaded weights to where their modules run, so that they can be read inside the `with`.

    Args:
        modules: Modules, offloaded or not.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(align_module_device(module))
        yield


def offloaded(model: nn.Module) -> list[str]:
    """Paths of the modules whose weights are offloaded: they are on `meta` until the module runs."""
    return [path for path, module in model.named_modules() if has_offloaded_params(module)]


def refuse_inference_weights(model: nn.Module) -> None:
    """Refuse weights that no gradient can pass, and that cannot be frozen for a while.

    Args:
        model: The model.

    Raises:
        StructureError: A weight was made inside `torch.inference_mode`.
    """
    # inside that mode they are like all others
    if torch.is_inference_mode_enabled():
        return
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise StructureError(
            "the model's weights were made inside torch.inference_mode: no gradient can pass them, and they cannot be "
            "frozen. Load or build the model outside of it; torch.no_grad would do."
        )


def refuse_quantized(model: nn.Module) -> None:
    """Refuse weights of 8 or 4 bits, of which no unit can be scored or cut.

    Args:
        model: The model.

    Raises:
        StructureError: The model was quantised while it was loaded, or before.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        raise StructureError(
            f"the weights of this {type(model).__name__} are quantised ({type(quantizer).__name__}), and cannot be "
            "pruned. Load the checkpoint from before without quantization_config, prune it, and then quantise it: "
            "hfprune.quantize."
        )


def check_can_run(model: PreTrainedModel) -> None:
    """Refuse a model with weights on `meta` that no hook would load before they are needed.

    Args:
        model: The model, in one place, spread over devices or offloaded.

    Raises:
        StructureError: Some of its weights are on `meta`, and no hook loads them; or they are inference tensors.
    """
    refuse_inference_weights(model)
    loadable = set(offloaded(model))
    lost = []
    for name, parameter in model.named_parameters():
        module = name.rpartition(".")[0]
        if parameter.device == _META and module not in loadable:
            lost.append(name)
    if lost:
        devices = sorted({str(parameter.device) for parameter in model.parameters()})
        raise StructureError(
            f"the model's weights are on {', '.join(devices)}, and nothing brings {lost[0]} ({len(lost)} such) from "
            "meta to where it is needed. Load it without device_map, or let from_pretrained place all of it: "
            "device_map='auto', offload_folder=..."
        )
