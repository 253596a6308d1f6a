"""Exports and quantisation in the record of a checkpoint: of which weights they are, and how they are shown."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

#: An entry of `exports` in a record, as its schema says.
ExportEntry = Mapping[str, Any]
#: Outputs that are all close to 0 would make every difference a large one.
_LEAST_SCALE = 1e-3
_WEIGHTS = ".safetensors"


def weights_digest(files: Mapping[str, str]) -> str:
    """A digest of the weights of a checkpoint.

    Args:
        files: The SHA-256 of every file, by name, as a record has them.

    Returns:
        SHA-256 of the names and the SHA-256 of the files with weights.

    >>> weights_digest({"config.json": "00", "model.safetensors": "11"}) == weights_digest({"model.safetensors": "11"})
    True
    """
    parts = [f"{name} {digest}" for name, digest in sorted(files.items()) if name.endswith(_WEIGHTS)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def exports_of_weights(exports: Mapping[str, ExportEntry], files: Mapping[str, str]) -> dict[str, ExportEntry]:
    """The exports that were made of the weights in a folder: of others they say nothing.

    Args:
        exports: Those of a record.
        files: The SHA-256 of every file in the folder.

    Returns:
        Those that stay.
    """
    present = weights_digest(files)
    return {name: entry for name, entry in exports.items() if entry["weights"] == present}


def quantization_of_weights(quantization: ExportEntry, files: Mapping[str, str]) -> ExportEntry:
    """How the weights in a folder were quantised: other weights may not be quantised at all.

    Args:
        quantization: That of a record; empty if there is none.
        files: The SHA-256 of every file in the folder.

    Returns:
        The same, or empty.
    """
    if quantization and quantization["weights"] == weights_digest(files):
        return quantization
    return {}


def name_of_export(target: str, quantization: str | None) -> str:
    """The name of an export in a record: a second one of the same kind takes the place of the first.

    >>> name_of_export("onnx", "int8"), name_of_export("gguf", None)
    ('onnx int8', 'gguf')
    """
    return target if quantization is None else f"{target} {quantization}"


def export_rows(exports: Mapping[str, ExportEntry]) -> list[tuple[str, ...]]:
    """The exports of a record as rows of a table.

    Args:
        exports: By name.

    Returns:
        For each its name, its size, the number of samples that were compared, the largest difference with the largest
        output, the typical difference, the share of equal choices, and what was measured.
    """
    rows: list[tuple[str, ...]] = []
    for name, entry in exports.items():
        differences = entry["differences"]
        worst = max(differences, key=lambda found: found["largest"] / max(found["scale"], _LEAST_SCALE))
        typical = max(found["typical"] for found in differences)
        samples = sum(found["samples"] for found in differences)
        agreed = sum(found["agreement"] * found["samples"] for found in differences) / samples
        rows.append(
            (
                name,
                f"{entry['size_bytes'] / 1e6:.1f} MB",
                f"{samples:,}",
                f"{worst['largest']:.1e} of {worst['scale']:.3g}",
                f"{100 * typical:.1g} %",
                f"{100 * agreed:.1f} %",
                "; ".join(_measured(entry)),
            )
        )
    return rows


def _measured(entry: ExportEntry) -> Sequence[str]:
    """The metrics and the written text of an export, in words."""
    facts = []
    for metric, value in entry["metrics"].get("exported", {}).items():
        reference = entry["metrics"].get("pytorch", {}).get(metric)
        # the file of a record has null where a metric was NaN or infinite
        if value is None or reference is None:
            continue
        facts.append(f"{metric} {value:.4f}, in PyTorch {reference:.4f}")
    if facts and entry["calibrated_on"] == "data":
        facts.append("the same rows gave the ranges of activations")
    text = entry["text"]
    if text is not None:
        facts.append(f"greedy text: {text['equal']} of {text['tokens']} tokens as in PyTorch")
    return facts
