"""Push a model or a checkpoint folder to the Hub, with all its files in one commit."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfprune.distributed import is_main_process
from hfprune.publishing.card import CARD_FILE, card_of, is_unedited
from hfprune.publishing.charts import ACCURACY, KEPT_UNITS
from hfprune.publishing.checkpoint import save
from hfprune.publishing.encoder_files import is_of_encoder
from hfprune.publishing.hub import patiently
from hfprune.publishing.probe import PROBE_FILE
from hfprune.publishing.verification import check_loadable
from hfprune.structure.arguments import FLAG, TEXT, checked, optional

#: Files of an earlier push that would be read together with the new ones.
_STALE = re.compile(
    r"model(-[\w-]+)?\.safetensors(\.index\.json)?|pytorch_model(-[\w-]+)?\.bin(\.index\.json)?"
    rf"|modeling_pruned\.py|{re.escape(PROBE_FILE)}|{re.escape(KEPT_UNITS)}|{re.escape(ACCURACY)}"
)


@checked(repo_id=TEXT, private=optional(FLAG), revision=optional(TEXT), create_pr=FLAG, commit_message=TEXT)
def push_to_hub(
    model: PreTrainedModel | str | Path,
    repo_id: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Pruned with hfprune",
    token: str | bool | None = None,
) -> CommitInfo | None:
    """Push weights, config, tokenizer, plan, record, card, pictures and loader in one commit.

    An interrupted upload changes nothing that others see. The same commit deletes weights, loader, probe and pictures
    of an earlier push that are not part of this one; it touches no other file. Of several processes only the main one
    pushes.

    Args:
        model: A pruned model, or the folder that `save` wrote. A folder is uploaded as it is, except its card: one that
            was not edited is drawn anew, so that it says how to load the model from the Hub.
        repo_id: The repository, with or without its owner; it is created if it does not exist.
        tokenizer: The tokenizer of a model; a folder has its own.
        private: Whether a new repository is private; None for the owner's default.
        revision: A branch, which is created if it does not exist, or a pull request (`refs/pr/1`); by default the main
            branch.
        create_pr: Open a pull request to the branch instead of changing it.
        commit_message: The first line of the commit's message.
        token: An access token, by default the stored one.

    Returns:
        The commit; `.repo_url` is the address of the repository, `.pr_url` that of the pull request. None in all
        processes but the main one.

    Raises:
        CheckpointError: The model was never pruned, or the folder could not be loaded again.
        ValueError: A tokenizer was given with a folder.

    Examples:
        It needs a Hub and a token that may write there, so a test runs this on a Hub of its own:

        >>> import hfprune
        >>> small = hfprune.prune(dense, dataset, config, collator=collator)  # doctest: +SKIP
        >>> commit = hfprune.push_to_hub(small, "me/small", tokenizer=tokenizer)  # doctest: +SKIP
        >>> hfprune.load("me/small").pruning_plan == small.pruning_plan  # doctest: +SKIP
        True
    """
    if not is_main_process():
        return None
    api = HfApi(token=token)
    if isinstance(model, nn.Module):
        with tempfile.TemporaryDirectory() as scratch:
            # the card names the folder that it was saved in
            folder = save(model, Path(scratch) / repo_id.rpartition("/")[2], tokenizer=tokenizer)
            return _push(api, folder, repo_id, private, revision, create_pr, commit_message)
    if tokenizer is not None:
        raise ValueError("a folder is pushed as it is: save the tokenizer into it (hfprune.save(..., tokenizer=...)).")
    return _push(api, Path(model), repo_id, private, revision, create_pr, commit_message)


def _push(
    api: HfApi,
    folder: Path,
    repo_id: str,
    private: bool | None,
    revision: str | None,
    create_pr: bool,
    message: str,
) -> CommitInfo:
    """Push a checkpoint folder; the arguments are those of `push_to_hub`."""
    # the path "." has no name, which the card needs
    folder = folder.resolve()
    check_loadable(folder)
    repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    # a pull request exists already, a branch may not
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(repo, branch=revision, exist_ok=True)
    files = _files_of(folder)
    contents: dict[str, Path | bytes] = {**files}
    if CARD_FILE in files and is_unedited(folder):
        contents[CARD_FILE] = card_of(folder, location=repo).encode()
    present = api.list_repo_files(repo, revision=revision)
    stale = [name for name in present if _STALE.fullmatch(name) and name not in files]

    def commit() -> CommitInfo:
        return api.create_commit(
            repo,
            _operations(contents, stale),
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
        )

    # the same files twice are one commit, but two pull requests
    if create_pr:
        return commit()
    return patiently(commit)


def _files_of(folder: Path) -> dict[str, Path]:
    """The files of a checkpoint folder to upload, by their name in the repository."""
    # hidden files, and those of Python, are no part of a checkpoint
    paths = [path for path in folder.iterdir() if path.is_file() and path.name[0] not in "._"]
    # a tokenizer with several chat templates keeps all but the default one in this folder
    paths += folder.glob("additional_chat_templates/*.jinja")
    # the modules behind the body of a SentenceTransformer
    paths += [path for path in folder.glob("*/*") if is_of_encoder(path.relative_to(folder).as_posix())]
    return {path.relative_to(folder).as_posix(): path for path in sorted(paths)}


def _operations(
    contents: Mapping[str, Path | bytes], stale: Sequence[str]
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """The operations of a commit. An upload notes in them what it has done, so every try needs new ones."""
    additions = [CommitOperationAdd(name, content) for name, content in contents.items()]
    deletions = [CommitOperationDelete(name) for name in stale]
    return [*additions, *deletions]
