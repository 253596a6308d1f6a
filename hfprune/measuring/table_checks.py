"""Whether a latency table is of a model, and of the processor that the model is on."""

import logging
import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hfprune.measuring.backends import known_backends
from hfprune.measuring.latency_table import LatencyTable, check_blocks, other_model
from hfprune.structure.anatomy import Anatomy
from hfprune.structure.wrapping import inner

logger = logging.getLogger(__name__)


def check_table(table: LatencyTable, anatomy: Anatomy) -> None:
    """Refuse a table of another model.

    Args:
        table: The table.
        anatomy: The model, dense or pruned.

    Raises:
        PlanMismatchError: It is of another type of model, of one with other blocks or other widths, or of one with
            another head.
    """
    model_type = anatomy.model_type
    dense_units = anatomy.dense_units
    if table.model_type != model_type:
        raise other_model(table, f"it is of a {table.model_type} model, this is a {model_type} model")
    check_blocks(table, dense_units)
    for name, units in dense_units.items():
        measured = table.by_block[name].units
        if measured != units:
            raise other_model(table, f"block {name!r} has {measured} units in it and {units} in the dense model")
    _check_head(table, anatomy.model)


def _check_head(table: LatencyTable, model: PreTrainedModel) -> None:
    """Refuse a table of another class or hidden size, whose head and embeddings take other times."""
    fingerprint = table.fingerprint or {}
    for name, present in shape_of_model(model).items():
        measured = fingerprint.get(name, present)
        if measured != present:
            raise other_model(table, f"its {name} is {measured}, and here it is {present}")


def shape_of_model(model: PreTrainedModel) -> dict[str, Any]:
    """What the time beside the blocks depends on, and a pruned model shares with the dense one.

    Args:
        model: The model, dense or pruned.

    Returns:
        The class of the dense model, and the hidden size where the config says one.
    """
    return {
        "class": type(model).__name__.removeprefix("Pruned"),
        "hidden size": getattr(model.config, "hidden_size", None),
    }


def difference_to_table(model: PreTrainedModel, table: LatencyTable) -> str:
    """What a table is of and a model is not.

    Args:
        model: The model.
        table: The table.

    Returns:
        The difference in words; empty if the model can be timed as the table was.
    """
    device = inner(model).device.type
    dtype = str(inner(model).dtype).removeprefix("torch.")
    if table.device != device:
        return f"{table.device}, and the model is on {device}"
    if table.dtype != dtype:
        return f"{table.dtype}, and the model is {dtype}"
    if table.backend not in known_backends():
        return f"the backend {table.backend!r}, which is not registered here"
    return ""


def warn_of_other_setting(model: PreTrainedModel, table: LatencyTable, sequence_length: int) -> None:
    """Warn, once for each difference, of a table whose milliseconds are of another processor or length.

    Args:
        model: The model.
        table: The table.
        sequence_length: Tokens in a sequence, as the user says them.
    """
    measured_on = (table.fingerprint or {}).get("device")
    # another type of device is another difference, see `difference_to_table`
    present = name_of_device(inner(model).device)
    if measured_on is not None and measured_on != present and table.device == inner(model).device.type:
        _warn_once(f"the latency table was measured on {measured_on!r}, and this is {present!r}: times may differ.")
    if table.sequence_length != sequence_length:
        _warn_once(
            f"the latency table is of {table.sequence_length} tokens, and sequence_length={sequence_length}: the "
            "milliseconds are those of the table's length."
        )


@cache
def _warn_once(message: str) -> None:
    """A search checks its config for every sparsity, and one warning is enough."""
    logger.warning(message)


def name_of_device(device: torch.device) -> str:
    """The processor that a model is on, as far as the machine says it.

    Args:
        device: The device.

    Returns:
        Its name.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}: {platform.machine()} {_processor()}".strip()


def _processor() -> str:
    """The name of the CPU, with what it can compute in one step; empty if the machine does not say it."""
    described = Path("/proc/cpuinfo")
    capability = torch.backends.cpu.get_cpu_capability()
    if not described.is_file():
        return f"{platform.processor()} {capability}"
    for line in described.read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()} {capability}"
    return capability
