"""What an export gave: the files, and how far they are from the model in PyTorch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hfprune.deployment.proof import Difference, Text
from hfprune.showing.tables import Table

#: Grows when a reader of today would misread the file.
FORMAT_VERSION = 1
#: What the record of a checkpoint says of its exports, beside the weights that they are of.
_IN_A_RECORD = (
    "target",
    "quantization",
    "size_bytes",
    "differences",
    "text",
    "metrics",
    "calibrated_on",
    "versions",
)


@dataclass(frozen=True, kw_only=True)
class Export:
    """A model as a file of another runtime, and what the comparison with PyTorch gave.

    Attributes:
        path: The folder.
        target: The format.
        quantization: How the weights are quantised; None: not at all.
        model: The name of the model.
        plan_digest: The digest of its pruning plan; empty for a dense model.
        size_bytes: The size of the files that the target wrote, without config and tokenizer.
        weights_bytes: The size of the weights in PyTorch.
        differences: How far its outputs are from those of PyTorch in float32, by what was compared.
        rounding: How far its outputs are from those of PyTorch with the weights that the quantised file holds; None
            where they are not known, or nothing is quantised.
        text: The text that a decoder wrote, beside PyTorch's; None for other models, or a runtime that does not write.
        metrics: The metrics on the user's data, by `pytorch` and `exported`; empty without labelled data.
        calibrated_on: What the ranges of activations were measured on: `calibration`, or rows of the `data` that the
            metrics are of; None where a quantisation does not look at data.
        files: The names of all files in the folder. Only these are replaced if it is overwritten.
        versions: The versions of the packages that it was made with.
        seconds: How long writing and comparing took.
        listed: Where in the checkpoint it is listed: `record` and `card`; empty if that was not asked for.

    Examples:
        >>> import hfprune
        >>> exported = hfprune.export(dense, "torch", "exported")
        >>> for difference in exported.differences:
        ...     print(difference.name, difference.largest < 1e-5, difference.agreement)
        the probe True 1.0
        one sample True 1.0
        6 samples True 1.0
        one sample True 1.0
    """

    path: Path
    target: str
    quantization: str | None
    model: str
    plan_digest: str
    size_bytes: int
    weights_bytes: int
    differences: Sequence[Difference]
    rounding: Difference | None
    text: Text | None
    metrics: Mapping[str, Mapping[str, float]]
    calibrated_on: str | None
    files: Sequence[str]
    versions: Mapping[str, str]
    seconds: float
    listed: Sequence[str] = ()

    def __str__(self) -> str:
        return self.table().text()

    def _repr_html_(self) -> str:
        return self.table().html()

    def table(self) -> Table:
        """The differences as a table, with the sizes and the metrics below."""
        rows = []
        for difference in self.differences:
            rows.append(
                (
                    difference.name,
                    f"{difference.samples:,}",
                    f"{difference.tokens:,}",
                    f"{difference.largest:.1e}",
                    f"{difference.scale:.3g}",
                    f"{100 * difference.typical:.1g} %",
                    f"{100 * difference.agreement:.1f} %",
                )
            )
        head = ("compared on", "samples", "tokens", "largest difference", "largest output", "typical", "same choice")
        return Table(head=head, rows=tuple(rows), notes=tuple(self._notes()))

    def _notes(self) -> list[str]:
        quantized = f", {self.quantization}" if self.quantization else ""
        notes = [
            f"{self.target}{quantized}: {self.size_bytes / 1e6:.1f} MB; the weights in PyTorch: "
            f"{self.weights_bytes / 1e6:.1f} MB"
        ]
        if self.rounding is not None:
            notes.append(
                "beside PyTorch with the weights of the file: typical difference "
                f"{100 * self.rounding.typical:.1g} %, same choice {100 * self.rounding.agreement:.1f} %"
            )
        if self.text is not None:
            notes.append(f"greedy text: {self.text.equal} of {self.text.tokens} tokens as in PyTorch")
        for name, value in self.metrics.get("pytorch", {}).items():
            notes.append(f"{name}: PyTorch {value:.4f}, exported {self.metrics['exported'][name]:.4f}")
        if self.calibrated_on == "data":
            notes.append(
                "the ranges of activations were measured on rows of the same data, so the metrics may be too good; "
                "give other rows as calibration"
            )
        notes.append(f"written to {self.path} in {self.seconds:.0f} s")
        if self.listed:
            notes.append(f"listed in the {' and the '.join(self.listed)} of the checkpoint")
        if "record" in self.listed and "card" not in self.listed:
            notes.append("its card was edited, or drawn by another version of hfprune, and stays as it is")
        return notes

    def to_json(self) -> str:
        """What was written and compared, as JSON."""
        values = asdict(self)
        # they say where, and not what
        del values["path"], values["listed"]
        for difference, written in zip(self.differences, values["differences"], strict=True):
            written["relative"] = difference.relative
        return json.dumps({"format_version": FORMAT_VERSION, **values}, indent=1) + "\n"

    def entry(self, weights: str) -> dict[str, Any]:
        """What the record of a checkpoint says of it.

        Args:
            weights: The digest of the checkpoint's weights.

        Returns:
            Plain values, as the schema of records has them under `exports`.
        """
        values = asdict(self)
        return {**{name: values[name] for name in _IN_A_RECORD}, "weights": weights}
