"""RecoveryArguments: `TrainingArguments`, and how much each part of the recovery loss weighs."""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from transformers import Seq2SeqTrainingArguments

from hfprune.recovery.losses.registry import Need, Weighted, get_loss, known_losses, known_penalties
from hfprune.structure.arguments import FLAG, NUMBERS, TEXTS, finite, whole

#: The kinds of values that fields must have; their limits have checks of their own.
_FIELDS = {
    "task_weight": finite(),
    "logits_weight": finite(),
    "hidden_states_weight": finite(),
    "attention_outputs_weight": finite(),
    "temperature": finite(),
    "teacher_top_k": whole(),
    "unit_l1": finite(),
    "unit_l2": finite(),
    "unit_group_lasso": finite(),
    "token_dropout": finite(),
    "trainable": TEXTS,
    "disable_dropout": FLAG,
    "freeze_embeddings": FLAG,
    "base_model_lr_factor": finite(),
    "lr_steps": NUMBERS,
    "lr_step_factor": finite(),
    "lora_rank": whole(),
    "lora_alpha": whole(),
    "lora_dropout": finite(),
}


@dataclass
class RecoveryArguments(Seq2SeqTrainingArguments):
    """`Seq2SeqTrainingArguments`, the weights of the recovery loss, and which parameters learn how fast.

    The loss is

        L = task_weight · task + logits_weight · T² KL + hidden_states_weight · MSE + attention_outputs_weight · MSE
            + unit_l1 · Σ|w| / units + unit_l2 · Σw² / units + unit_group_lasso · Σ_u √p ‖w_u‖ / units

    with the temperature T, and for every unit u its p weights w_u. The second to fourth need a teacher; without one
    they are left out and the task loss weighs 1 (plain fine-tuning). Losses of your own
    (`hfprune.recovery.losses.register_loss`) are added with the weights in `loss_weights`.

    Attributes:
        task_weight: Weight of the loss against the labels.
        logits_weight: Weight of the softened KL divergence from the teacher's logits; of models of sentence embeddings,
            of the distance from the teacher's embeddings, and from the similarities between those of a batch.
        hidden_states_weight: Weight of the mean squared error to the teacher's hidden states; 0 saves its memory.
        attention_outputs_weight: Weight of the mean squared error to what the teacher's attention blocks put out.
        temperature: Softens both distributions in the KL divergence.
        teacher_top_k: Above 0, the teacher runs only once over the training texts. At every place its k likeliest
            tokens are kept, and the probability of all others together. This takes less time and memory, and gives a KL
            divergence over k + 1 outcomes that is a little smaller (`add_teacher_logits`). For models that predict
            tokens.
        unit_l1: Weight of the L1 penalty on the weights of units, a mean over units.
        unit_l2: Weight of their L2 penalty.
        unit_group_lasso: Weight of the group lasso on units, which draws whole units towards 0.
        loss_weights: By name, the weights of losses and penalties that you registered yourself: a dictionary, or on a
            command line JSON, such as `{"agreement": 0.2}`. A registered loss that is not named weighs 0. Built-in
            losses have the fields above.
        token_dropout: Share of the tokens (special ones apart) that are replaced by tokens drawn from the same training
            batch, in some texts more of them than in others. So there are more texts to follow the teacher on, which
            sees the same ones. Give the labels little weight then.
        trainable: What learns: `all`; `input_output`, the embeddings, the first and the last layer, and the head; or
            shell-style patterns of parameter names.
        disable_dropout: Train without the model's own dropout, as TRL does. Dropout helps to learn from labels; beside
            a teacher it only adds noise.
        freeze_embeddings: Do not train the input embeddings: less memory and time for little accuracy.
        base_model_lr_factor: The base model learns at `learning_rate` times this, the head at `learning_rate`.
        lr_steps: Stepwise decay in place of `lr_scheduler_type`: after each of these fractions of the training the
            learning rate is multiplied by `lr_step_factor`. Warm-up stays.
        lr_step_factor: See `lr_steps`.
        lora_rank: Above 0, the model's own weights are frozen, and low-rank adapters of this rank learn at every
            projection of the blocks, beside the head, unless it shares the embeddings. Adapters are merged at the end
            of training (Hu et al. 2021, "LoRA"). Needs peft.
        lora_alpha: Adapters are scaled by `lora_alpha / lora_rank`.
        lora_dropout: Dropout before the adapters.

    Examples:
        >>> from hfprune import RecoveryArguments
        >>> args = RecoveryArguments("recovery", logits_weight=1.0, hidden_states_weight=0.0, use_cpu=True)
        >>> args.task_weight, args.temperature
        (0.1, 2.0)
        >>> args.needs("teacher_logits"), args.needs("hidden_states")
        (True, False)
    """

    task_weight: float = field(default=0.1, metadata={"help": "Weight of the loss against the labels."})
    logits_weight: float = field(default=0.9, metadata={"help": "Weight of the KL divergence from the teacher."})
    hidden_states_weight: float = field(default=0.5, metadata={"help": "Weight of the MSE of hidden states."})
    attention_outputs_weight: float = field(default=0.0, metadata={"help": "Weight of the MSE of attention outputs."})
    temperature: float = field(default=2.0, metadata={"help": "Softens both distributions in the KL divergence."})
    teacher_top_k: int = field(
        default=0, metadata={"help": "Above 0: run the teacher once, and keep as many of its likeliest tokens."}
    )
    unit_l1: float = field(default=0.0, metadata={"help": "Weight of the L1 penalty on units."})
    unit_l2: float = field(default=0.0, metadata={"help": "Weight of the L2 penalty on units."})
    unit_group_lasso: float = field(default=0.0, metadata={"help": "Weight of the group lasso on units."})
    # HfArgumentParser takes a union with str for text, which __post_init__ reads
    loss_weights: dict[str, float] | str | None = field(
        default_factory=dict, metadata={"help": "Weights of losses of your own, by name, as JSON."}
    )
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
    lr_step_factor: float = field(default=0.1, metadata={"help": "The factor of lr_steps."})
    lora_rank: int = field(default=0, metadata={"help": "Above 0: train adapters of this rank, and merge them."})
    lora_alpha: int = field(default=16, metadata={"help": "Adapters are scaled by lora_alpha / lora_rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapters."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.trainable, str):
            self.trainable = [self.trainable]
        for name, expected in _FIELDS.items():
            expected.check(name, getattr(self, name))
        self.loss_weights = _loss_weights(self.loss_weights)
        self._check_finite()
        self._check_weights()
        self._check_fractions()
        self._check_top_k()
        self._check_rates()
        self._check_lora()

    def weight_of(self, loss: Weighted) -> float:
        """The weight of a registered loss or penalty.

        Args:
            loss: The loss or penalty.

        Returns:
            What its field or `loss_weights` says; 0 if neither does.
        """
        if loss.weight_field:
            weight: float = getattr(self, loss.weight_field)
            return weight
        assert isinstance(self.loss_weights, dict)
        return self.loss_weights.get(loss.name, 0.0)

    def needs(self, need: Need) -> bool:
        """Whether a loss that has a weight needs something, such as `teacher_logits`.

        Args:
            need: What it may need.

        Returns:
            Whether it does.
        """
        return any(need in loss.needs and self.weight_of(loss) > 0 for loss in known_losses().values())

    def _check_finite(self) -> None:
        """Refuse NaN and infinity, in the arguments of any Trainer too."""
        assert isinstance(self.loss_weights, dict)
        numbers = {f"loss_weights[{name!r}]": weight for name, weight in self.loss_weights.items()}
        for setting in fields(self):
            numbers[setting.name] = getattr(self, setting.name)
        for name, value in numbers.items():
            if not isinstance(value, float) or math.isfinite(value):
                continue
            # an infinite norm is how Trainer is told not to clip gradients
            if name == "max_grad_norm" and value > 0:
                continue
            raise ValueError(
                f"{name} must be a finite number, got {value}: every weight that learns would become NaN. Leave it out "
                "for the default."
            )

    def _check_weights(self) -> None:
        losses = list(known_losses().values())
        for loss in (*losses, *known_penalties().values()):
            weight = self.weight_of(loss)
            if weight < 0:
                raise ValueError(f"{loss.setting} must not be negative, got {weight}.")
        # penalties do not count: alone they would only shrink the weights
        if not any(map(self.weight_of, losses)):
            names = ", ".join(loss.setting for loss in losses)
            raise ValueError(f"{names} are all 0: there is nothing to train.")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}; 2.0 is usual.")

    def _check_fractions(self) -> None:
        for name in ("token_dropout", "lora_dropout"):
            fraction = getattr(self, name)
            if not 0 <= fraction < 1:
                raise ValueError(f"{name} must be in [0, 1), got {fraction}. It is a fraction.")

    def _check_top_k(self) -> None:
        if self.teacher_top_k < 0:
            raise ValueError(f"teacher_top_k must not be negative, got {self.teacher_top_k}; 0 runs the teacher live.")
        live = []
        for loss in known_losses().values():
            weight = self.weight_of(loss)
            if "teacher" in loss.needs and weight > 0:
                live.append(f"{loss.setting}={weight:g}")
        if self.token_dropout > 0:
            live.append(f"token_dropout={self.token_dropout:g}")
        if self.teacher_top_k and live:
            raise ValueError(
                f"teacher_top_k={self.teacher_top_k} keeps what the teacher predicts for whole texts, and "
                f"{', '.join(live)} needs it to run in every step: set that to 0, or teacher_top_k."
            )

    def _check_rates(self) -> None:
        in_range = all(0 < step < 1 for step in self.lr_steps)
        if not in_range or sorted(self.lr_steps) != list(self.lr_steps):
            raise ValueError(
                f"lr_steps are increasing fractions of the training, between 0 and 1, got {self.lr_steps}: [0.5, 0.75] "
                "drops the learning rate after half and after three quarters of the steps."
            )
        for name in ("lr_step_factor", "base_model_lr_factor"):
            factor = getattr(self, name)
            if factor <= 0:
                raise ValueError(f"{name} must be positive, got {factor}.")

    def _check_lora(self) -> None:
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank must not be negative, got {self.lora_rank}; 0 trains without adapters.")
        if self.lora_rank == 0:
            return
        # adapters freeze the weights that these work on
        without_effect = [loss.setting for loss in known_penalties().values() if self.weight_of(loss) > 0]
        if self.trainable != ["all"]:
            without_effect.append("trainable")
        if self.disable_dropout and self.lora_dropout > 0:
            raise ValueError(f"disable_dropout is for lora_dropout={self.lora_dropout:g} too: drop one of the two.")
        if without_effect:
            raise ValueError(
                f"lora_rank={self.lora_rank} trains adapters only, so {', '.join(without_effect)} would have no "
                "effect. Drop one of the two."
            )


def _loss_weights(value: Any) -> dict[str, float]:
    """Check `loss_weights`, and read it where it is JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"loss_weights is no JSON: {error}. Write it as '{{\"name\": 0.5}}'.") from error
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"loss_weights gives weights by name, such as {{'name': 0.5}}, got {value!r:.100}.")
    weights = {}
    for name, weight in value.items():
        try:
            loss = get_loss(name)
        except ValueError as error:
            raise ValueError(
                f"loss_weights: {error} Import the file that registers it before the arguments are made."
            ) from error
        if loss.weight_field:
            raise ValueError(f"loss_weights: {name!r} is built in. Set {loss.weight_field}={weight} instead.")
        weights[name] = float(weight)
    return weights


#: What a record says of every recovery; `recovery_settings` adds whatever else was set.
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


def recovery_settings(args: RecoveryArguments, *, steps: int, seconds: float) -> dict[str, Any]:
    """The hyper-parameters of a recovery, for the record.

    Args:
        args: The arguments of the recovery.
        steps: Training steps that were made.
        seconds: How long they took.

    Returns:
        Plain values, the usual ones and those of RecoveryArguments that are not the default.
    """
    settings = {name: getattr(args, name) for name in _SETTINGS}
    scheduler = args.lr_scheduler_type
    settings["lr_scheduler_type"] = str(getattr(scheduler, "value", scheduler))
    for setting in own_fields():
        value = getattr(args, setting.name)
        if setting.name not in settings and value != default_of(setting):
            settings[setting.name] = value
    return {**settings, "steps": steps, "seconds": round(seconds, 1)}


def own_fields() -> list["Field[Any]"]:
    """The fields of `RecoveryArguments` that transformers' own arguments do not have.

    Returns:
        The fields, in their order.
    """
    trainer = {setting.name for setting in fields(Seq2SeqTrainingArguments)}
    return [setting for setting in fields(RecoveryArguments) if setting.name not in trainer]


def default_of(setting: "Field[Any]") -> Any:
    """The value that a field has by default.

    Args:
        setting: The field.

    Returns:
        The value; MISSING if it must be given.
    """
    if setting.default_factory is MISSING:
        return setting.default
    return setting.default_factory()
