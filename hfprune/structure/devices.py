"""Where a model runs and where its weights are: in one place, or spread or offloaded by accelerate's hooks.

`device_map` of `from_pretrained` and `accelerate.dispatch_model`, `cpu_offload` and `disk_offload` hang a hook on every
module. It moves the module's inputs to the device where it runs, and brings offloaded weights, which are on `meta`
otherwise, there until it has run.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from accelerate.utils import align_module_device, has_offloaded_params
from torch import nn
from transformers import PreTrainedModel

from hfprune.errors import StructureError

_META = torch.device("meta")


def running_device(module: nn.Module) -> torch.device:
    """Where a module runs: where its hook moves it, or where its first parameter is."""
    place = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return next(module.parameters()).device if place is None else torch.device(place)


def input_embeddings(model: PreTrainedModel) -> nn.Module | None:
    """The module that embeds the inputs; None for a model (of speech) that transformers cannot say it of."""
    try:
        module: nn.Module = model.get_input_embeddings()
    except NotImplementedError:
        return None
    return module


def check_tokens(model: PreTrainedModel, largest: int) -> None:
    """Refuse token ids that the model has no embedding for.

    Args:
        model: The model.
        largest: The largest id.

    Raises:
        ValueError: The model has fewer rows of embeddings.
    """
    rows = getattr(input_embeddings(model), "num_embeddings", None)
    if rows is not None and largest >= rows:
        raise ValueError(
            f"a text has the token id {largest}, and the model has {rows} rows of embeddings. Take the model's own "
            "tokenizer, or call model.resize_token_embeddings(len(tokenizer)) first."
        )


def input_device(model: PreTrainedModel) -> torch.device:
    """Where a model, or a base model called alone, wants its inputs: where its embeddings run."""
    embeddings = input_embeddings(model)
    device = model.device if embeddings is None else running_device(embeddings)
    return model.device if device == _META else device


@contextmanager
def loaded(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Weights of modules can be read inside the `with`, also where they are offloaded."""
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(align_module_device(module))
        yield


def offloaded(model: nn.Module) -> list[str]:
    """Paths of the modules whose weights are offloaded: on `meta`, until the module runs."""
    return [path for path, module in model.named_modules() if has_offloaded_params(module)]


def check_can_run(model: PreTrainedModel) -> None:
    """Refuse a model with weights that nothing would bring to where they are needed.

    Args:
        model: The model, in one place, spread over devices or offloaded.

    Raises:
        StructureError: Some of its weights are on `meta`, and no hook loads them.
    """
    loadable = set(offloaded(model))
    lost = [
        name
        for name, parameter in model.named_parameters()
        if parameter.device == _META and name.rpartition(".")[0] not in loadable
    ]
    if lost:
        devices = sorted({str(parameter.device) for parameter in model.parameters()})
        raise StructureError(
            f"the model's weights are on {', '.join(devices)}, and nothing brings {lost[0]} ({len(lost)} such) from "
            "meta to where it is needed. Load it without device_map, or let from_pretrained place all of it: "
            "device_map='auto', offload_folder=..."
        )
