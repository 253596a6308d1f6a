"""What a RecoveryTrainer cannot do, refused before anything is changed."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.recovery.arguments import RecoveryArguments
from hfprune.recovery.finite import check_finite_weights
from hfprune.recovery.gradual import GradualPruning
from hfprune.structure.devices import refuse_inference_weights
from hfprune.structure.running import refuse_tuples


def gradual_in(callbacks: Sequence[object]) -> GradualPruning | None:
    """The gradual pruning among a trainer's callbacks, if there is one.

    Args:
        callbacks: The callbacks.

    Returns:
        It, or None.

    Raises:
        ValueError: There are two.
    """
    schedules = [callback for callback in callbacks if isinstance(callback, GradualPruning)]
    if len(schedules) > 1:
        raise ValueError(f"{len(schedules)} callbacks are GradualPruning; a trainer follows one schedule. Pass one.")
    if not schedules:
        return None
    return schedules[0]


def check_trainer(model: Any, args: Any, teacher: PreTrainedModel | None, kwargs: dict[str, Any]) -> None:
    """Refuse, before anything is changed, what a RecoveryTrainer cannot do.

    Args:
        model: The model.
        args: The arguments.
        teacher: The teacher, if there is one.
        kwargs: What else the trainer is given.

    Raises:
        TypeError: Arguments or model are of another kind.
        ValueError: Settings that would have no effect, or do not go together; or weights that are NaN or infinite.
        StructureError: The model's weights were made inside `torch.inference_mode`, or a model returns tuples.
    """
    if not isinstance(args, RecoveryArguments):
        raise TypeError(
            f"args must be RecoveryArguments, got {type(args).__name__}. They are TrainingArguments with the "
            "weights of the recovery loss: RecoveryArguments(output_dir=..., ...)."
        )
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be the pruned model itself, got {type(model).__name__}; model_init is not used.")
    _check_loss_is_ours(args, kwargs)
    _check_dtype(args, model)
    if teacher is model:
        raise ValueError("the teacher is the model itself; pass the dense model that was pruned.")
    refuse_inference_weights(model)
    refuse_tuples(model)
    if teacher is not None:
        refuse_tuples(teacher)
    check_finite_weights(model, "model")
    if teacher is not None:
        check_finite_weights(teacher, "teacher")
    check_heads(args, model, teacher)
    check_vocabularies(args, model, teacher)
    if args.token_dropout > 0 and not hasattr(kwargs.get("processing_class"), "all_special_ids"):
        raise ValueError(
            f"token_dropout={args.token_dropout} needs to know the special tokens: pass processing_class=tokenizer."
        )
    _check_optimizers(args, kwargs)
    check_together(args, gradual_in(kwargs.get("callbacks") or []))


def _check_loss_is_ours(args: RecoveryArguments, kwargs: dict[str, Any]) -> None:
    """Refuse settings of Trainer's own loss."""
    without_effect = []
    if kwargs.get("compute_loss_func") is not None:
        without_effect.append("compute_loss_func")
    if args.label_smoothing_factor != 0:
        without_effect.append("label_smoothing_factor")
    if without_effect:
        raise ValueError(
            f"{without_effect[0]} is not used by RecoveryTrainer, whose loss RecoveryArguments describe. Leave it out."
        )


def _check_dtype(args: RecoveryArguments, model: PreTrainedModel) -> None:
    """Refuse flash attention in float32, in which a model in half precision is trained."""
    flash = "flash" in str(getattr(model.config, "_attn_implementation", ""))
    # adapters leave the model in its own dtype, and autocast computes in half precision
    trains_in_float32 = args.lora_rank == 0 and not args.bf16 and not args.fp16
    if flash and trains_in_float32 and model.dtype != torch.float32:
        raise ValueError(
            f"a model in {model.dtype} learns in float32, in which flash attention does not compute: set bf16=True."
        )


def _check_optimizers(args: RecoveryArguments, kwargs: dict[str, Any]) -> None:
    """Refuse learning rates of ours with an optimizer or a scheduler of the user's."""
    passed = kwargs.get("optimizers") or (None, None)
    sets_rates = args.lr_steps or args.base_model_lr_factor != 1
    if any(passed) and sets_rates:
        raise ValueError("lr_steps and base_model_lr_factor are not used with optimizers of your own. Leave them out.")


def check_one_gpu(args: RecoveryArguments) -> None:
    """Refuse several GPUs with a copy of the model each in one process.

    Args:
        args: The arguments, after `Trainer` has counted the GPUs: it counts one where a model is spread over several.

    Raises:
        ValueError: There are several.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"this process sees {args.n_gpu} GPUs, and Trainer would split every batch over copies of the model, whose "
            "losses cannot be put together. Start with `accelerate launch` or torchrun, a process for each GPU, or set "
            "CUDA_VISIBLE_DEVICES=0."
        )


def check_heads(args: RecoveryArguments, model: PreTrainedModel, teacher: PreTrainedModel | None) -> None:
    """Refuse a teacher without a head where logits are compared.

    Args:
        args: The arguments.
        model: The model.
        teacher: The teacher, if there is one.

    Raises:
        ValueError: The teacher has none.
    """
    if teacher is None or not args.needs("teacher_logits"):
        return
    # a model without a head is its own base model
    if teacher.base_model is teacher and model.base_model is not model:
        raise ValueError(
            f"the teacher, {type(teacher).__name__}, has no head, so it gives no logits to learn from, and the model "
            f"is a {type(model).__name__}. Load the dense model with the head that it was trained with, as the model "
            "was; or set logits_weight=0 to learn from its hidden states only."
        )


def check_vocabularies(args: RecoveryArguments, model: PreTrainedModel, teacher: PreTrainedModel | None) -> None:
    """Refuse a teacher with logits of another number of words, where they are compared.

    Args:
        args: The arguments.
        model: The model.
        teacher: The teacher, if there is one.

    Raises:
        ValueError: The numbers differ.
    """
    # the likeliest tokens are compared one by one, and checked by what they are
    if teacher is None or args.teacher_top_k or not args.needs("teacher_logits"):
        return
    words = _words(model)
    teacher_words = _words(teacher)
    if words is None or teacher_words is None or words == teacher_words:
        return
    larger = "teacher" if teacher_words > words else "model"
    raise ValueError(
        f"the teacher has logits of {teacher_words} words, the model of {words}. If both have the same tokenizer, cut "
        f"what is behind its tokens: {larger}.resize_token_embeddings({min(words, teacher_words)}); or set "
        "logits_weight=0."
    )


def _words(model: PreTrainedModel) -> int | None:
    """How many words a model has logits of; None for one that predicts no words."""
    weight = getattr(model.get_output_embeddings(), "weight", None)
    if not isinstance(weight, Tensor):
        return None
    return len(weight)


def check_together(args: RecoveryArguments, gradual: GradualPruning | None) -> None:
    """Refuse adapters with gradual pruning.

    Args:
        args: The arguments.
        gradual: The gradual pruning, if there is one.

    Raises:
        ValueError: Both are there.
    """
    if args.lora_rank > 0 and gradual is not None:
        raise ValueError("lora_rank and GradualPruning do not go together: cutting needs whole weights. Drop one.")
