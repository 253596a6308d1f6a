"""RecoveryArguments: `TrainingArguments`, and how much each part of the recovery loss weighs."""

from dataclasses import dataclass, field

from transformers import TrainingArguments


@dataclass
class RecoveryArguments(TrainingArguments):
    """`TrainingArguments` with L = task_weight · task + logits_weight · T² KL + hidden_states_weight · MSE.

    The last two need a teacher; without one they are left out and the task loss weighs 1 (plain fine-tuning).

    Attributes:
        task_weight: Weight of the loss against the labels.
        logits_weight: Weight of the softened KL divergence from the teacher's logits.
        hidden_states_weight: Weight of the mean squared error to the teacher's hidden states; 0 saves its memory.
        temperature: Softens both distributions in the KL divergence.
        freeze_embeddings: Leave the input embeddings as they are: less memory and time for little accuracy.
    """

    task_weight: float = field(default=0.1, metadata={"help": "Weight of the loss against the labels."})
    logits_weight: float = field(default=0.9, metadata={"help": "Weight of the KL divergence from the teacher."})
    hidden_states_weight: float = field(default=0.5, metadata={"help": "Weight of the MSE of hidden states."})
    temperature: float = field(default=2.0, metadata={"help": "Softens both distributions in the KL divergence."})
    freeze_embeddings: bool = field(default=False, metadata={"help": "Do not train the input embeddings."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("task_weight", "logits_weight", "hidden_states_weight"):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}.")
        if self.task_weight + self.logits_weight + self.hidden_states_weight == 0:
            raise ValueError(
                "task_weight, logits_weight and hidden_states_weight are all 0: there is nothing to train."
            )
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}; 2.0 is usual.")
