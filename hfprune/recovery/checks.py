"""What a RecoveryTrainer cannot do, refused before anything is changed."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.recovery.arguments import RecoveryArguments
from hfprune.recovery.gradual import GradualPruning


def gradual_in(callbacks: Sequence[object]) -> GradualPruning | None:
    """The gradual pruning among a trainer's callbacks, if there is one.

    Args:
        callbacks: The callbacks.

    Returns:
        It, or None.

    Raises:
        ValueError: There are two.
    """
    found = [callback for callback in callbacks if isinstance(callback, GradualPruning)]
    if len(found) > 1:
        raise ValueError(f"{len(found)} callbacks are GradualPruning; a trainer follows one schedule. Pass one.")
    return found[0] if found else None


def check_trainer(model: Any, args: Any, teacher: PreTrainedModel | None, kwargs: dict[str, Any]) -> None:
    """Refuse, before anything is changed, what a RecoveryTrainer cannot do.

    Args:
        model: The model.
        args: The arguments.
        teacher: The teacher, if there is one.
        kwargs: What else the trainer is given.

    Raises:
        TypeError: Arguments or model are of another kind.
        ValueError: Settings that would have no effect, or do not go together.
    """
    if not isinstance(args, RecoveryArguments):
        raise TypeError(
            f"args must be RecoveryArguments, got {type(args).__name__}. They are TrainingArguments with the "
            "weights of the recovery loss: RecoveryArguments(output_dir=..., ...)."
        )
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be the pruned model itself, got {type(model).__name__}; model_init is not used.")
    for name, is_set in (
        ("compute_loss_func", kwargs.get("compute_loss_func") is not None),
        ("label_smoothing_factor", args.label_smoothing_factor != 0),
    ):
        if is_set:
            raise ValueError(
                f"{name} is not used by RecoveryTrainer, whose loss RecoveryArguments describe. Leave it out."
            )
    flash = "flash" in str(getattr(model.config, "_attn_implementation", ""))
    if flash and model.dtype != torch.float32 and args.lora_rank == 0 and not (args.bf16 or args.fp16):
        raise ValueError(
            f"a model in {model.dtype} learns in float32, in which flash attention does not compute: set bf16=True."
        )
    if teacher is model:
        raise ValueError("the teacher is the model itself; pass the dense model that was pruned.")
    check_vocabularies(args, model, teacher)
    if args.token_dropout > 0 and not hasattr(kwargs.get("processing_class"), "all_special_ids"):
        raise ValueError(
            f"token_dropout={args.token_dropout} needs to know the special tokens: pass processing_class=tokenizer."
        )
    given = kwargs.get("optimizers") or (None, None)
    if any(given) and (args.lr_steps or args.base_model_lr_factor != 1):
        raise ValueError("lr_steps and base_model_lr_factor are not used with optimizers of your own. Leave them out.")
    check_together(args, gradual_in(kwargs.get("callbacks") or []))


def check_one_gpu(args: RecoveryArguments) -> None:
    """Refuse several GPUs with a copy of the model each in one process.

    Args:
        args: The arguments, as `Trainer` has found them: one GPU where it found a model that is spread over several.

    Raises:
        ValueError: There are several.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"this process sees {args.n_gpu} GPUs, and Trainer would split every batch over copies of the model, whose "
            "losses cannot be put together. Start with `accelerate launch` or torchrun, a process for each GPU, or set "
            "CUDA_VISIBLE_DEVICES=0."
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
    heads = [None if one is None else one.get_output_embeddings() for one in (model, teacher)]
    words = [len(weight) for head in heads if isinstance(weight := getattr(head, "weight", None), Tensor)]
    if len(words) == 2 and words[0] != words[1] and args.logits_weight > 0 and not args.teacher_top_k:
        larger = "teacher" if words[1] > words[0] else "model"
        raise ValueError(
            f"the teacher has logits of {words[1]} words, the model of {words[0]}. If both have the same tokenizer, "
            f"cut what is behind its tokens: {larger}.resize_token_embeddings({min(words)}); or set logits_weight=0."
        )


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
