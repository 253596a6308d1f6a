"""Push a finished checkpoint folder to the Hub."""

from pathlib import Path

from huggingface_hub import HfApi

from hfprune.errors import HfpruneError


def check_login(token: str | None = None) -> None:
    """Find out before a long run whether its result could be pushed.

    Args:
        token: A token, by default the one that is stored.

    Raises:
        HfpruneError: The Hub cannot be reached, or does not know the token.
    """
    try:
        HfApi(token=token).whoami()
    except OSError as error:
        raise HfpruneError(
            f"push_to_hub was asked for, but the Hub does not let us in: {error} Log in with `hf auth login`, pass "
            "--hub_token, or leave push_to_hub out."
        ) from error


def push_folder(
    folder: Path, repo: str, *, private: bool | None = None, token: str | None = None, revision: str | None = None
) -> str:
    """Upload a checkpoint folder as it is, in one commit; the repository is made if it is not there.

    Args:
        folder: What `hfprune.save` wrote.
        repo: The repository's name, with or without its owner.
        private: Whether a new repository is private; None: as the owner's default is.
        token: A token, by default the one that is stored.
        revision: A branch, by default the main one.

    Returns:
        The address of the repository.
    """
    api = HfApi(token=token)
    made = api.create_repo(repo, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(made.repo_id, branch=revision, exist_ok=True)
    api.upload_folder(repo_id=made.repo_id, folder_path=folder, revision=revision, commit_message="Pruned with hfprune")
    return str(made)
