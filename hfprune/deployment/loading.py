"""Models by the names that users give: pruned checkpoints with their plans, and any other models."""

from transformers import AutoConfig, PreTrainedModel

from hfprune.data.models import load_whole
from hfprune.data.packages import resolve_model
from hfprune.publishing.checkpoint import load
from hfprune.publishing.sources import is_pruned
from hfprune.publishing.verification import class_of


def load_model(name: str, *, revision: str | None = None) -> PreTrainedModel:
    """Load a pruned checkpoint with its plan, or any other model in the class that its config names.

    Args:
        name: Folder or repository, or the name of a model in an installed package.
        revision: Branch, tag or commit of a repository.

    Returns:
        The model.

    Raises:
        CheckpointError: The config names no class, or the checkpoint lacks weights.
    """
    source = resolve_model(name)
    # a pruned checkpoint that lost its plan must be refused, so the plan alone does not decide
    if is_pruned(source, revision=revision):
        return load(source, revision=revision)
    config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    return load_whole(class_of(config.architectures or [], name), source, name=name, revision=revision)
