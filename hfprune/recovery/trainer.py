"""RecoveryTrainer: `Trainer` that fine-tunes a pruned model, optionally against its dense teacher."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from hfprune.recovery.arguments import RecoveryArguments
from hfprune.recovery.distillation import hidden_states_loss, logits_loss
from hfprune.scoring.objectives import predicts_next_token, without_padding
from hfprune.structure.gates import refuse_head_mask
from hfprune.structure.modeling_pruned import PrunedModel, write_attachments, write_loader

_LOGITS = ("logits", "start_logits", "end_logits")
_HIDDEN_STATES = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")


class RecoveryTrainer(Trainer):
    """Everything `Trainer` does, with the loss of `RecoveryArguments` while training.

    Evaluation and prediction see the task loss only. Under gradient accumulation the loss of each micro-batch counts
    for its share of the labels, so the gradient is that of the whole batch (stock Trainer 5.23 multiplies it by the
    number of steps for most encoders). The parts of the loss are logged as `loss_task`, `loss_logits` and
    `loss_hidden_states`. Checkpoints carry the pruning plan and record.

    Args:
        model: The pruned model.
        args: `RecoveryArguments`; plain `TrainingArguments` are refused.
        teacher: The dense model, usually. It is put into evaluation mode, gets no gradients and is never saved.
        **kwargs: As for `Trainer`.

    Raises:
        TypeError: `args` are not `RecoveryArguments`.
        ValueError: The teacher is the model itself, or an option is set that would have no effect here.
    """

    loss_is_scaled_for_ga = False  # compute_loss returns a mean; Trainer divides it by the accumulation steps

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: RecoveryArguments | None = None,
        *,
        teacher: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, RecoveryArguments):
            raise TypeError(
                f"args must be RecoveryArguments, got {type(args).__name__}. They are TrainingArguments with the "
                "weights of the recovery loss: RecoveryArguments(output_dir=..., ...)."
            )
        for name, set_ in (
            ("compute_loss_func", kwargs.get("compute_loss_func") is not None),
            ("label_smoothing_factor", args.label_smoothing_factor != 0),
        ):
            if set_:
                raise ValueError(
                    f"{name} is not used by RecoveryTrainer, whose loss RecoveryArguments describe. Leave it out."
                )
        if teacher is not None and teacher is model:
            raise ValueError("the teacher is the model itself; pass the dense model that was pruned.")
        if model is not None and args.freeze_embeddings:
            model.get_input_embeddings().requires_grad_(False)
        super().__init__(model, args, **kwargs)
        unwrapped = self.accelerator.unwrap_model(self.model)
        self._loss_shifts_labels = predicts_next_token(unwrapped)  # Trainer misses the LMHeadModels
        self._loss_sums: dict[str, Tensor] = {}
        self._loss_count = 0
        self.teacher = teacher
        if teacher is not None:
            teacher.eval()
            if not hasattr(teacher, "hf_device_map"):
                teacher.to(args.device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The recovery loss of a micro-batch while training, the task loss otherwise.

        Args:
            model: The model, as prepared by accelerate.
            inputs: The micro-batch.
            return_outputs: Whether to return the model's outputs too.
            num_items_in_batch: Labels in all micro-batches of this step, where Trainer can count them.

        Returns:
            The loss, or the loss and the outputs.
        """
        refuse_head_mask(inputs)
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-any-return]
        hidden = self.teacher is not None and self.args.hidden_states_weight > 0
        extra = {"output_hidden_states": True} if hidden else {}
        outputs = model(**inputs, **extra)
        weights = {"task": self.args.task_weight if self.teacher is not None else 1.0}
        parts = {}
        if outputs.get("loss") is not None:
            # a micro-batch without a label has a mean loss of 0 / 0, and its share is 0
            parts["task"] = torch.nan_to_num(outputs["loss"]) if self._labels(inputs) == 0 else outputs["loss"]
        if self.teacher is not None:
            with torch.no_grad(), self.accelerator.autocast():
                target = self.teacher(**{k: v for k, v in inputs.items() if k != "labels"} | extra)
            parts |= self._distillation(inputs, outputs, target)
            weights |= {"logits": self.args.logits_weight, "hidden_states": self.args.hidden_states_weight}
        parts = {name: value for name, value in parts.items() if weights[name] > 0}
        if not parts:
            raise ValueError(
                f"there is nothing to learn from: the batch has {', '.join(inputs)} but no labels that give a loss, "
                "and there is no teacher with a positive weight. Pass labels, or teacher=."
            )
        for name, value in parts.items():
            self._loss_sums[name] = self._loss_sums.get(name, 0.0) + value.detach()
        self._loss_count += 1
        loss = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
        loss = loss * self._share(inputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _distillation(self, inputs: dict[str, Any], outputs: Any, target: Any) -> dict[str, Tensor]:
        config = self.accelerator.unwrap_model(self.model).config
        problem = config.problem_type or "single_label_classification"
        if outputs.get("logits") is not None and outputs["logits"].shape[-1] == 1:
            problem = "regression"
        parts = {}
        if self.args.logits_weight > 0:
            mask, losses = self._token_mask(inputs), []
            for name in (name for name in _LOGITS if outputs.get(name) is not None):
                mine, theirs = outputs[name], target[name]
                if name != "logits":
                    mine, theirs = without_padding(mine, inputs), without_padding(theirs, inputs)
                losses.append(logits_loss(mine, theirs, temperature=self.args.temperature, problem=problem, mask=mask))
            parts["logits"] = torch.stack(losses).mean()
        if self.args.hidden_states_weight > 0:
            losses = [
                # the first entry is the embeddings', which pruning does not touch
                hidden_states_loss(
                    outputs[name][1:],
                    target[name][1:],
                    mask=None if name == "decoder_hidden_states" else inputs.get("attention_mask"),
                )
                for name in _HIDDEN_STATES
                if outputs.get(name) is not None
            ]
            parts["hidden_states"] = torch.stack(losses).mean()
        return parts

    def _token_mask(self, inputs: dict[str, Any]) -> Tensor | None:
        """Which tokens' predictions count: the labelled ones, else those that are not padding."""
        labels: Tensor | None = inputs.get("labels")
        if labels is None or labels.ndim != 2 or labels.is_floating_point():
            return inputs.get("attention_mask")
        if not self._loss_shifts_labels:
            return labels != -100
        mask = torch.zeros_like(labels, dtype=torch.bool)
        mask[:, :-1] = labels[:, 1:] != -100
        return mask

    def _labels(self, inputs: dict[str, Any]) -> Tensor | None:
        """How many labels a micro-batch has; None where it has no `labels`."""
        labels: Tensor | None = inputs.get("labels")
        if labels is None:
            return None
        return ((labels[..., 1:] if self._loss_shifts_labels else labels) != -100).sum()

    def _share(self, inputs: dict[str, Any], total: Tensor | int | None) -> Tensor | float:
        """Makes the mean over a micro-batch count for its share of the labels of the whole step."""
        labels = self._labels(inputs)
        if total is None or labels is None:
            return 1.0
        processes = self.args.world_size if self.args.average_tokens_across_devices else 1
        factor: int = self.current_gradient_accumulation_steps * processes
        return labels * factor / total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log like Trainer, with the mean of each part of the loss since the last time."""
        if "loss" in logs and self._loss_count:
            logs |= {f"loss_{name}": (total / self._loss_count).item() for name, total in self._loss_sums.items()}
            self._loss_sums, self._loss_count = {}, 0
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            write_attachments(self.accelerator.unwrap_model(self.model), folder)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no card: `hfprune.save` draws it from the record, and Trainer's would replace it."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.is_world_process_zero():
            model = self.accelerator.unwrap_model(self.model)
            write_attachments(model, Path(self.args.output_dir))
            if isinstance(model, PrunedModel):
                write_loader(Path(self.args.output_dir))
        super()._push_from_checkpoint(checkpoint_folder)
