"""Push a model or a checkpoint folder to the Hub: everything, in one commit."""

import re
import tempfile
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfprune.distributed import is_main_process
from hfprune.publishing.card import card_of
from hfprune.publishing.charts import ACCURACY, KEPT_UNITS
from hfprune.publishing.checkpoint import save
from hfprune.publishing.hub import patiently
from hfprune.publishing.probe import PROBE_FILE
from hfprune.publishing.verification import check_loadable

#: Files of an earlier push that would be read together with the new ones.
_STALE = re.compile(
    r"model(-[\w-]+)?\.safetensors(\.index\.json)?|pytorch_model(-[\w-]+)?\.bin(\.index\.json)?"
    rf"|modeling_pruned\.py|{re.escape(PROBE_FILE)}|{re.escape(KEPT_UNITS)}|{re.escape(ACCURACY)}"
)


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

    An interrupted upload changes nothing that others see. Weights, loader, probe and pictures of an earlier push that
    are not part of this one go in the same commit; nothing else is touched. Of several processes only the main one
    pushes.

    Args:
        model: A pruned model, or the folder that `save` wrote, which is uploaded as it is (but for a card that was not
            edited, which then says how to load it from the Hub).
        repo_id: The repository, with or without its owner; it is made if it is not there.
        tokenizer: Of a model; a folder has its own.
        private: Whether a new repository is private; None: as the owner's default is.
        revision: A branch, which is made if it is not there, or a pull request (`refs/pr/1`); by default the main
            branch.
        create_pr: Open a pull request to the branch instead of changing it.
        commit_message: Its first line.
        token: A token, by default the one that is stored.

    Returns:
        The commit; `.repo_url` is the address of the repository, `.pr_url` that of the pull request. None in all
        processes but the main one.

    Raises:
        CheckpointError: The model was never pruned, or the folder could not be loaded again.
        ValueError: A tokenizer was given with a folder.
    """
    if not is_main_process():
        return None
    if isinstance(model, PreTrainedModel):
        with tempfile.TemporaryDirectory() as scratch:
            folder = save(model, Path(scratch) / repo_id.rpartition("/")[2], tokenizer=tokenizer)
            return _push(folder, repo_id, private, revision, create_pr, commit_message, token)
    if tokenizer is not None:
        raise ValueError("a folder is pushed as it is: save the tokenizer into it (hfprune.save(..., tokenizer=...)).")
    return _push(Path(model), repo_id, private, revision, create_pr, commit_message, token)


def _push(
    folder: Path,
    repo_id: str,
    private: bool | None,
    revision: str | None,
    create_pr: bool,
    message: str,
    token: str | bool | None,
) -> CommitInfo:
    folder = folder.resolve()  # "." has no name
    check_loadable(folder)
    api = HfApi(token=token)
    repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(repo, branch=revision, exist_ok=True)
    paths = [path for path in folder.iterdir() if path.is_file() and path.name[0] not in "._"]
    paths += folder.glob("additional_chat_templates/*.jinja")  # of a tokenizer that has several
    files = {path.relative_to(folder).as_posix(): path for path in sorted(paths)}
    contents: dict[str, Path | bytes] = {**files}
    card = files.get("README.md")
    if card is not None and card.read_text(encoding="utf-8") == card_of(folder, location=folder.name):
        contents["README.md"] = card_of(folder, location=repo).encode()
    there = api.list_repo_files(repo, revision=revision)
    stale = [name for name in there if _STALE.fullmatch(name) and name not in files]

    def commit() -> CommitInfo:
        added = [CommitOperationAdd(n, data if isinstance(data, bytes) else str(data)) for n, data in contents.items()]
        return api.create_commit(
            repo,
            [*added, *(CommitOperationDelete(name) for name in stale)],
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
        )

    return commit() if create_pr else patiently(commit)  # twice the same files are one commit, but two pull requests
