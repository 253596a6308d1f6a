"""List in a checkpoint, in its record and its card, what was exported from it, or how it was quantised."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hfprune.errors import CheckpointError
from hfprune.publishing.card import CARD_FILE, card_of, is_unedited
from hfprune.publishing.contents import RECORD_FILE
from hfprune.publishing.exports import ExportEntry, name_of_export, weights_digest
from hfprune.publishing.record import record_in
from hfprune.publishing.replacement import rewritten
from hfprune.publishing.verification import remember_checked, was_checked
from hfprune.showing.files import write_whole


def weights_of(folder: Path) -> str:
    """The digest of a checkpoint's weights, by which its record knows what an export is of.

    Args:
        folder: The folder of a checkpoint that `hfprune.save` wrote.

    Returns:
        The digest.

    Raises:
        CheckpointError: The folder has no record, or one without the SHA-256 of its files.
    """
    if not (folder / RECORD_FILE).is_file():
        raise CheckpointError(
            f"{folder} has no {RECORD_FILE}, so an export cannot be listed there. Name the folder of a checkpoint that "
            "hfprune.save wrote, or export without the record."
        )
    record = record_in(folder)
    if not record.files:
        raise CheckpointError(
            f"the record in {folder} has no SHA-256 of the files beside it, so it cannot say which weights an export "
            "is of. Save the checkpoint again: hfprune.save(hfprune.load(folder), folder, overwrite=True)."
        )
    return weights_digest(record.files)


def list_export(folder: Path, entry: ExportEntry) -> Sequence[str]:
    """Write an export into the record of a checkpoint, and into its card where that was not edited.

    The other files stay the same. Both take the place of the old ones in one step, as `hfprune.save` does it.

    Args:
        folder: The folder of the checkpoint.
        entry: The export, as the schema of records has it.

    Returns:
        Where it is listed now: `record`, and `card` unless somebody edited the card.

    Raises:
        CheckpointError: The folder has other weights than the export was made of, or cannot be written to. Then it is
            as it was.
    """
    place = folder.resolve()
    listed = ["record"]
    with rewritten(place) as draft:
        # read under the lock, as another process may have listed an export a moment ago
        if weights_of(place) != entry["weights"]:
            raise CheckpointError(
                f"{place} got other weights while the export was made, so its record does not list the export."
            )
        known = was_checked(place)
        has_drawn_card = (place / CARD_FILE).is_file() and is_unedited(place)
        record = record_in(place)
        name = name_of_export(entry["target"], entry["quantization"])
        record = replace(record, exports={**record.exports, name: dict(entry)})
        write_whole(draft / RECORD_FILE, record.to_json().encode())
        if has_drawn_card:
            listed.append("card")
            write_whole(draft / CARD_FILE, card_of(draft, location=place.name).encode())
    if known:
        # no file that is read when the model is loaded has changed
        remember_checked(place)
    return tuple(listed)


def state_quantization(folder: Path, entry: ExportEntry, *, location: str) -> None:
    """Write into a new checkpoint, before it takes its place, how its weights were quantised.

    Args:
        folder: The folder of the checkpoint.
        entry: The comparison with the model before, as the schema of records has it for an export.
        location: The folder or repository that the card's code loads the model from.
    """
    record = record_in(folder)
    record = replace(record, quantization=dict(entry))
    write_whole(folder / RECORD_FILE, record.to_json().encode())
    write_whole(folder / CARD_FILE, card_of(folder, location=location).encode())
