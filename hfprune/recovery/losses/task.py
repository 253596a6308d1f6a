"""The loss against the labels: the one that the model itself computes."""

from hfprune.recovery.losses.registry import OVER_LABELS, LossInputs, Term, register_loss


# without a teacher recovery is plain fine-tuning, whatever share the labels have beside a teacher
@register_loss("task", weight_field="task_weight", needs=["labels"], weight_without_teacher=1.0)
def task_loss(inputs: LossInputs) -> list[Term]:
    """The student's own loss; no term where the batch has no labels that give one."""
    loss = inputs.outputs.get("loss")
    if loss is None:
        return []
    return [Term(loss, mean_over=OVER_LABELS)]
