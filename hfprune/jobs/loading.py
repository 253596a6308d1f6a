"""The model of a task as it is: a pruned checkpoint with its plan, or any other with all its weights."""

from transformers import PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from hfprune.deployment.loading import load_model
from hfprune.jobs.tasks.task import Task


def model_as_it_is(task: Task, *, revision: str | None = None) -> PreTrainedModel:
    """Load the model that a task was loaded for. No code of its repository is run.

    Args:
        task: The task.
        revision: Branch, tag or commit of the model's repository.

    Returns:
        The model: a pruned checkpoint with its plan, after a look at its digests, or any other.

    Raises:
        CheckpointError: The checkpoint lacks weights, or is one that `hfprune.load` refuses.
    """
    # the model of a SentenceTransformer has further modules behind what its config names
    if issubclass(task.auto_class, _BaseAutoModelClass):
        return load_model(task.source, revision=revision)
    return task.model(loading={"revision": revision, "trust_remote_code": False})
