"""The command `hfprune latency-table`: what the sublayers of a model take on this machine, by how wide they are."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hfprune.cli.options import ModelName, UnitChoice, errors_in_one_line


class DtypeChoice(StrEnum):
    """Types of weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class DeviceChoice(StrEnum):
    """Where a model may be timed."""

    cpu = "cpu"
    cuda = "cuda"


def latency_table(
    model: ModelName,
    backend: Annotated[str, typer.Option(help="How the model is run: eager, compile, onnx or openvino.")] = "eager",
    batch: Annotated[int, typer.Option(min=1, help="Sequences in a batch.")] = 1,
    length: Annotated[int, typer.Option(min=1, help="Tokens in a sequence.")] = 64,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of PyTorch; by default as many as it takes.")
    ] = None,
    device: Annotated[DeviceChoice, typer.Option(help="Where PyTorch runs the model.")] = DeviceChoice.cpu,
    dtype: Annotated[DtypeChoice | None, typer.Option(help="Type of the weights; by default as in the file.")] = None,
    attention_unit: Annotated[
        UnitChoice, typer.Option(help="Where key/value heads are shared: group, or query, as the model will be pruned.")
    ] = UnitChoice.group,
    runs: Annotated[int, typer.Option(min=1, help="Timed passes for every width; more where other work runs.")] = 20,
    output: Annotated[
        Path | None, typer.Option(help="JSON file to write, for `hfprune prune --latency-table`.")
    ] = None,
    again: Annotated[
        bool, typer.Option(help="Measure anew, though the cache has a table of the same conditions.")
    ] = False,
) -> None:
    """Time a model with its sublayers cut to many widths, and print what heads and neurons take on this machine.

    Tables are kept in the cache of Hugging Face (HF_HOME/hfprune). One of the same processor, threads, versions and
    model is not measured again.
    """
    with errors_in_one_line():
        from hfprune.cli.latency_tables import TableRequest, latency_table_of

        # before the model is loaded and timed, which takes minutes
        if output is not None and output.is_dir():
            raise ValueError(f"--output must be a file, got the folder {str(output)!r}: name a JSON file in it.")
        request = TableRequest(
            model=model,
            backend=backend,
            batch_size=batch,
            sequence_length=length,
            threads=threads,
            device=device.value,
            dtype=None if dtype is None else dtype.value,
            attention_unit=attention_unit.value,
            runs=runs,
            again=again,
        )
        table = latency_table_of(request)
        typer.echo(str(table))
        if output is not None:
            typer.echo(f"saved in {table.save(output)}")
