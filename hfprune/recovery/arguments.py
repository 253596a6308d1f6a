"""RecoveryArguments: `TrainingArguments`, and how much each part of the recovery loss weighs."""

from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from transformers import TrainingArguments

#: The parts of the loss that need a teacher, by the argument that weighs them.
TEACHER_WEIGHTS = ("logits_weight", "hidden_states_weight", "attention_outputs_weight")
#: Penalties on units, by the argument that weighs them.
PENALTIES = ("unit_l1", "unit_l2", "unit_group_lasso")
_WEIGHTS = ("task_weight", *TEACHER_WEIGHTS, *PENALTIES)


@dataclass
class RecoveryArguments(TrainingArguments):
    """`TrainingArguments`, the recovery loss, and what of the model learns how fast.

    L = task_weight · task + logits_weight · T² KL + hidden_states_weight · MSE + attention_outputs_weight · MSE
        + unit_l1 · Σ|w| / units + unit_l2 · Σw² / units + unit_group_lasso · Σ_u √p ‖w_u‖ / units

    The second to fourth need a teacher; without one they are left out and the task loss weighs 1 (plain fine-tuning).

    Attributes:
        task_weight: Weight of the loss against the labels.
        logits_weight: Weight of the softened KL divergence from the teacher's logits.
        hidden_states_weight: Weight of the mean squared error to the teacher's hidden states; 0 saves its memory.
        attention_outputs_weight: Weight of the mean squared error to what the teacher's attention blocks put out.
        temperature: Softens both distributions in the KL divergence.
        teacher_top_k: Above 0, the teacher runs once over the training texts and only its so many likeliest tokens at
            every place are kept, with what all others have together: less time and memory, and a KL divergence over
            k + 1 outcomes that is a little smaller (`add_teacher_logits`). For models that predict tokens.
        unit_l1: Weight of the L1 penalty on the weights of units, a mean over units.
        unit_l2: Weight of their L2 penalty.
        unit_group_lasso: Weight of the group lasso on units, which draws whole units towards 0.
        token_dropout: Share of the tokens (special ones apart) that are replaced by tokens drawn from the same training
            batch, more of them in some texts than in others: more texts to follow the teacher on, which sees the same
            ones. Give the labels little weight then.
        trainable: What learns: `all`; `input_output`, the embeddings, the first and the last layer, and the head; or
            shell-style patterns of parameter names.
        disable_dropout: Train without the model's own dropout, as TRL does: it is noise where a teacher says what is
            right, and helps where labels do.
        freeze_embeddings: Leave the input embeddings as they are: less memory and time for little accuracy.
        base_model_lr_factor: The base model learns at `learning_rate` times this, the head at `learning_rate`.
        lr_steps: Stepwise decay in place of `lr_scheduler_type`: after each of these fractions of the training the
            learning rate is multiplied by `lr_step_factor`. Warm-up stays.
        lr_step_factor: See `lr_steps`.
        lora_rank: Above 0 only low-rank adapters of this rank learn, at every projection of the blocks, and a head
            that does not share the embeddings; merged at the end of training (Hu et al. 2021, "LoRA"). Needs peft.
        lora_alpha: Adapters are scaled by `lora_alpha / lora_rank`.
        lora_dropout: Dropout before the adapters.
    """

    task_weight: float = field(default=0.1, metadata={"help": "Weight of the loss against the labels."})
    logits_weight: float = field(default=0.9, metadata={"help": "Weight of the KL divergence from the teacher."})
    hidden_states_weight: float = field(default=0.5, metadata={"help": "Weight of the MSE of hidden states."})
    attention_outputs_weight: float = field(default=0.0, metadata={"help": "Weight of the MSE of attention outputs."})
    temperature: float = field(default=2.0, metadata={"help": "Softens both distributions in the KL divergence."})
    teacher_top_k: int = field(
        default=0, metadata={"help": "Above 0: run the teacher once, and keep its so many likeliest tokens."}
    )
    unit_l1: float = field(default=0.0, metadata={"help": "Weight of the L1 penalty on units."})
    unit_l2: float = field(default=0.0, metadata={"help": "Weight of the L2 penalty on units."})
    unit_group_lasso: float = field(default=0.0, metadata={"help": "Weight of the group lasso on units."})
    token_dropout: float = field(default=0.0, metadata={"help": "Share of the tokens to swap for others of the batch."})
    trainable: list[str] = field(
        default_factory=lambda: ["all"], metadata={"help": "all, input_output, or patterns of parameter names."}
    )
    disable_dropout: bool = field(default=False, metadata={"help": "Train without the model's own dropout."})
    freeze_embeddings: bool = field(default=False, metadata={"help": "Do not train the input embeddings."})
    base_model_lr_factor: float = field(
        default=1.0, metadata={"help": "The base model learns at learning_rate times this, the head at learning_rate."}
    )
    lr_steps: list[float] = field(
        default_factory=list, metadata={"help": "Fractions of the training after which the learning rate drops."}
    )
    lr_step_factor: float = field(default=0.1, metadata={"help": "What it is multiplied by there."})
    lora_rank: int = field(default=0, metadata={"help": "Above 0: train adapters of this rank, and merge them."})
    lora_alpha: int = field(default=16, metadata={"help": "Adapters are scaled by lora_alpha / lora_rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapters."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.trainable, str):
            self.trainable = [self.trainable]
        for name in _WEIGHTS:
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}.")
        if self.task_weight + sum(getattr(self, name) for name in TEACHER_WEIGHTS) == 0:
            raise ValueError(f"task_weight, {', '.join(TEACHER_WEIGHTS)} are all 0: there is nothing to train.")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}; 2.0 is usual.")
        for name in ("token_dropout", "lora_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}. It is a fraction.")
        self._check_top_k()
        self._check_rates()
        self._check_lora()

    def _check_top_k(self) -> None:
        if self.teacher_top_k < 0:
            raise ValueError(f"teacher_top_k must not be negative, got {self.teacher_top_k}; 0 runs the teacher live.")
        names = ("hidden_states_weight", "attention_outputs_weight", "token_dropout")
        others = [f"{name}={getattr(self, name):g}" for name in names if getattr(self, name) > 0]
        if self.teacher_top_k and others:
            raise ValueError(
                f"teacher_top_k={self.teacher_top_k} keeps what the teacher predicts for whole texts, and "
                f"{', '.join(others)} needs it to run in every step: set that to 0, or teacher_top_k."
            )

    def _check_rates(self) -> None:
        if any(not 0 < step < 1 for step in self.lr_steps) or sorted(self.lr_steps) != list(self.lr_steps):
            raise ValueError(
                f"lr_steps are increasing fractions of the training, between 0 and 1, got {self.lr_steps}: [0.5, 0.75] "
                "drops the learning rate after half and after three quarters of the steps."
            )
        for name in ("lr_step_factor", "base_model_lr_factor"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")

    def _check_lora(self) -> None:
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank must not be negative, got {self.lora_rank}; 0 trains without adapters.")
        if self.lora_rank == 0:
            return
        others = [name for name in PENALTIES if getattr(self, name) > 0]
        if self.trainable != ["all"]:
            others.append("trainable")
        if self.disable_dropout and self.lora_dropout > 0:
            raise ValueError(f"disable_dropout is for lora_dropout={self.lora_dropout:g} too: drop one of the two.")
        if others:
            raise ValueError(
                f"lora_rank={self.lora_rank} trains adapters only, so {', '.join(others)} would have no effect. Drop "
                "one of the two."
            )


_SETTINGS = (
    "learning_rate",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "task_weight",
    "logits_weight",
    "hidden_states_weight",
    "temperature",
    "freeze_embeddings",
    "bf16",
    "seed",
)


#: Fields that any Trainer has.
_TRAINING = {own.name for own in fields(TrainingArguments)}


def recovery_settings(args: RecoveryArguments, *, steps: int, seconds: float) -> dict[str, Any]:
    """The hyper-parameters of a recovery, for the record.

    Args:
        args: The arguments of the recovery.
        steps: Training steps that were made.
        seconds: How long they took.

    Returns:
        Plain values: the usual ones, and those of RecoveryArguments that are not the default.
    """
    values = {name: getattr(args, name) for name in _SETTINGS}
    values["lr_scheduler_type"] = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    for own in fields(RecoveryArguments):
        default = own.default if own.default_factory is MISSING else own.default_factory()
        if own.name not in values and own.name not in _TRAINING and getattr(args, own.name) != default:
            values[own.name] = getattr(args, own.name)
    return {**values, "steps": steps, "seconds": round(seconds, 1)}
