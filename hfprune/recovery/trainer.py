"""RecoveryTrainer: `Trainer` that fine-tunes a pruned model, optionally against its dense teacher."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import PreTrainedModel, Seq2SeqTrainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from hfprune.publishing.callback import keep_files
from hfprune.publishing.card import write_card
from hfprune.recovery.arguments import RecoveryArguments
from hfprune.recovery.checks import check_one_gpu, check_together, check_trainer, gradual_in
from hfprune.recovery.columns import TEACHER_COLUMNS
from hfprune.recovery.encoders import opened_arguments
from hfprune.recovery.forward import call_arguments
from hfprune.recovery.gradual import GradualPruning
from hfprune.recovery.learning import (
    choose_trainable,
    in_float32,
    learning_names,
    restore_state,
    slow_base_model,
    state_of,
    stepwise,
    without_dropout,
)
from hfprune.recovery.lora import has_adapters, merged, with_adapters
from hfprune.recovery.loss import BatchLoss, RecoveryLoss, mean_of, token_counts, weighted_sum
from hfprune.recovery.losses.registry import OVER_LABELS, get_loss
from hfprune.recovery.teacher import teacher_once
from hfprune.recovery.token_dropout import swap_tokens
from hfprune.structure.batches import Batch, count_samples, refuse_head_mask
from hfprune.structure.class_labels import fitting_labels
from hfprune.structure.modeling_pruned import write_attachments
from hfprune.structure.running import same_generation, same_use_cache
from hfprune.structure.wrapping import argument_names, inner, label_arguments

logger = logging.getLogger(__name__)


class RecoveryTrainer(Seq2SeqTrainer):
    """Does everything that `Trainer` and `Seq2SeqTrainer` do, with the loss of `RecoveryArguments` while training.

    Evaluation and prediction see the task loss only. Under gradient accumulation the loss of each micro-batch counts
    for its share of the labels (of the samples where there are none), so the gradient is that of the whole batch
    (stock Trainer 5.23 multiplies it by the number of steps for most encoders). The parts of the loss are logged as
    `loss_task`, `loss_logits` and so on. Checkpoints carry the pruning plan and record. With `GradualPruning` among the
    callbacks `model` is pruned while it trains, and `trainer.model` is the small one afterwards; with `lora_rank`
    adapters train, and are merged at the end. A model in float16 or bfloat16 is in float32 while it trains, and is
    rounded once at the end (`bf16=True` computes in bfloat16); under FSDP and DeepSpeed their own precision counts.

    Scoring, pruning and repair have a model alone for their time, so that threads can share it. Training does not wait
    for them, nor they for it: it takes too long, and changes the weights meanwhile. Give each training a model of its
    own. Its teacher stays as it is, but while it trains no other thread may score or repair that teacher: take a copy.

    Args:
        model: The pruned model. A `SentenceTransformer` or `CrossEncoder` learns in place; `trainer.model` is the model
            in it, and its data may be texts, or pairs of texts.
        args: `RecoveryArguments`; plain `TrainingArguments` are refused.
        teacher: The dense model, usually. It is put into evaluation mode, gets no gradients and is never saved. Without
            one a column `teacher_logits` of the data counts, see `add_teacher_logits`.
        **kwargs: As for `Trainer`.

    Raises:
        TypeError: `args` are not `RecoveryArguments`.
        ValueError: The teacher is the model itself, or an option is set that would have no effect here.

    Examples:
        >>> import hfprune
        >>> small = hfprune.prune(dense, dataset, config, collator=collator)
        >>> args = hfprune.RecoveryArguments("recovery", max_steps=2, use_cpu=True, report_to="none", disable_tqdm=True)
        >>> trainer = hfprune.RecoveryTrainer(
        ...     small, args, teacher=dense, train_dataset=dataset, processing_class=tokenizer
        ... )
        >>> result = trainer.train()  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        >>> result.global_step
        2
        >>> trainer.model.pruning_record.recovery is not None
        True
    """

    # compute_loss returns a mean, which Trainer divides by the accumulation steps
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: Any,
        args: RecoveryArguments,
        *,
        teacher: Any = None,
        **kwargs: Any,
    ) -> None:
        model, teacher, kwargs = opened_arguments(inner(model), inner(teacher), kwargs)
        check_trainer(model, args, teacher, kwargs)
        # raises now what it would raise when training begins
        learning_names(model, args.trainable, freeze_embeddings=args.freeze_embeddings)
        teacher, kwargs = teacher_once(args, teacher, kwargs)
        self.teacher = teacher
        self._loss = RecoveryLoss(args, model, teacher)
        self._forget_sums()
        self._before = state_of(model)
        prepared: Any = model
        if args.lora_rank > 0:
            prepared = with_adapters(model, rank=args.lora_rank, alpha=args.lora_alpha, dropout=args.lora_dropout)
        try:
            # Trainer writes use_cache=False into the config, which would be saved; the loss says so in every call
            with same_use_cache(model):
                super().__init__(prepared, args, **kwargs)
            check_one_gpu(args)
        except BaseException:
            if has_adapters(prepared):
                prepared.unload()
            restore_state(model, self._before)
            raise
        # Trainer finds none where the model's class has a `forward` of `*args, **kwargs`
        self.label_names: list[str] = self.label_names or label_arguments(model)
        if teacher is not None:
            teacher.eval()
            # accelerate has placed the parts of a model that is spread over devices
            if not hasattr(teacher, "hf_device_map"):
                teacher.to(args.device)

    def _forget_sums(self) -> None:
        """Begin to add up anew: the parts of the loss since the last log, and the tokens of a step."""
        self._loss_sums: dict[str, Tensor] = {}
        self._loss_count = 0
        self._step_tokens: dict[str, Tensor | None] = {}

    @property
    def gradual(self) -> GradualPruning | None:
        """The gradual pruning among the callbacks, if there is one."""
        return gradual_in(self.callback_handler.callbacks)

    def _unwrapped(self) -> Any:
        """The model without what accelerate put around it, but with adapters if there are any."""
        return self.accelerator.unwrap_model(self.model)

    def _plain_model(self) -> PreTrainedModel:
        """The model without what accelerate and peft put around it."""
        unwrapped = self._unwrapped()
        plain: PreTrainedModel = unwrapped.get_base_model() if has_adapters(unwrapped) else unwrapped
        return plain

    @property
    def _is_sharded(self) -> bool:
        """Whether FSDP or DeepSpeed hold the weights, which then have dtypes of their own."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train as `Trainer` does; then merge adapters, or cut the units that gradual pruning gated off.

        Args:
            resume_from_checkpoint: As for `Trainer`.
            **kwargs: As for `Trainer`.

        Returns:
            What `Trainer.train` returns.
        """
        self._prepare_model()
        try:
            with self._as_it_trains():
                result = super().train(resume_from_checkpoint, **kwargs)
            # before the cut, so that the record has sizes in the dtype that stays
            if self.gradual is not None and self.gradual.finished:
                restore_state(self._plain_model(), self._before, dtypes=not self._is_sharded)
            self._cut_or_merge()
        finally:
            self._leave_model()
        return result

    def _prepare_model(self) -> None:
        """Freeze the parameters that do not learn, and tell gradual pruning who trains."""
        adapted = has_adapters(self._unwrapped())
        if self.args.lora_rank > 0 and not adapted:
            raise RuntimeError("the adapters were merged when train ended. Make a new RecoveryTrainer to train again.")
        # callbacks may have been added since the trainer was made
        check_together(self.args, self.gradual)
        if self.gradual is not None:
            self.gradual.has_trainer = True
        if not adapted:
            choose_trainable(self._plain_model(), self.args.trainable, freeze_embeddings=self.args.freeze_embeddings)

    @contextmanager
    def _as_it_trains(self) -> Iterator[None]:
        """The model in the precision, and with the dropout, that it trains with, inside the `with`."""
        with ExitStack() as stack:
            if self.args.disable_dropout:
                stack.enter_context(without_dropout(self._plain_model()))
            if not self._is_sharded:
                stack.enter_context(in_float32(self._unwrapped()))
            yield

    def _leave_model(self) -> None:
        """After training, or an error: no gates, no adapters, and parameters as they were before."""
        if self.gradual is not None:
            self.gradual.detach()
            self.gradual.has_trainer = False
        unwrapped = self._unwrapped()
        # they were merged, unless an error came
        if has_adapters(unwrapped):
            self._replace_model(unwrapped.unload())
        if restore_state(self._plain_model(), self._before, dtypes=not self._is_sharded):
            # DistributedDataParallel goes by the tensors that it was made for
            self.model_wrapped = self.model
        self._forget_sums()

    def _cut_or_merge(self) -> None:
        """Make the final model of the one that was trained."""
        unwrapped = self._unwrapped()
        gradual = self.gradual
        if gradual is not None and gradual.finished:
            self._replace_model(gradual.cut(unwrapped))
            self.remove_callback(gradual)
        elif gradual is not None:
            logger.warning(
                "training ended at step %d, before gradual pruning reached its target: the model is not cut, and its "
                "gates are off. Go on with train(resume_from_checkpoint=...).",
                self.state.global_step,
            )
        elif has_adapters(unwrapped):
            self._replace_model(merged(unwrapped))

    def _replace_model(self, model: PreTrainedModel) -> None:
        """Go on with another model, and forget the optimizer and all else that holds parameters of the old one."""
        self.model = model
        self.model_wrapped = model
        self.callback_handler.model = model
        self._loss = RecoveryLoss(self.args, model, self.teacher)
        self.optimizer: Any = None
        self.lr_scheduler: Any = None
        self.accelerator.free_memory()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As `Trainer`, with another learning rate for the base model if `base_model_lr_factor` says so.

        Args:
            model: As for `Trainer`.

        Returns:
            The optimizer.
        """
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if is_new and self.args.base_model_lr_factor != 1:
            slow_base_model(optimizer, self._plain_model(), self.args.base_model_lr_factor)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """As `Trainer`, or stepwise decay if `lr_steps` are given.

        Args:
            num_training_steps: Steps in all.
            optimizer: As for `Trainer`.

        Returns:
            The scheduler.
        """
        if not self.args.lr_steps or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        scheduler = stepwise(
            optimizer or self.optimizer,
            warmup_steps=self.args.get_warmup_steps(num_training_steps),
            steps=num_training_steps,
            drops=self.args.lr_steps,
            factor=self.args.lr_step_factor,
        )
        self.lr_scheduler = scheduler
        # so that Trainer makes a new one when it trains again
        self._created_lr_scheduler = True
        return scheduler

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
        student = self._plain_model()
        if not model.training:
            arguments = call_arguments(student, fitting_labels(student, inputs))
            return super().compute_loss(model, arguments, return_outputs, num_items_in_batch)  # type: ignore[no-any-return]
        if self.args.token_dropout > 0:
            special = self.processing_class.all_special_ids
            ids = swap_tokens(inputs["input_ids"], self.args.token_dropout, keep=special)
            inputs = {**inputs, "input_ids": ids}
        batch_loss = self._loss.terms(model, student, inputs, self.accelerator.autocast())
        loss = weighted_sum(batch_loss, self._shares(inputs, num_items_in_batch))
        penalties = self._loss.penalties(student)
        for name, value in penalties.items():
            loss = loss + self.args.weight_of(get_loss(name)) * value
        self._add_to_sums(batch_loss, penalties)
        if return_outputs:
            return loss, batch_loss.outputs
        return loss

    def _add_to_sums(self, batch_loss: BatchLoss, penalties: dict[str, Tensor]) -> None:
        """Add the parts of the loss of a micro-batch to what is logged next."""
        values = {}
        for name, terms in batch_loss.terms.items():
            values[name] = mean_of(terms)
        values |= penalties
        for name, value in values.items():
            self._loss_sums[name] = self._loss_sums.get(name, 0.0) + value.detach()
        self._loss_count += 1

    def _shares(self, inputs: Batch, step_labels: Tensor | int | None) -> dict[str, Tensor | float]:
        """Factors by `Term.mean_over`: each scales a mean over the micro-batch to its share of the whole step."""
        shares: dict[str, Tensor | float] = {}
        for name, count in token_counts(inputs).items():
            shares[name] = self._share(count, self._step_tokens.get(name))
        shares[OVER_LABELS] = self._share(self._labels(inputs), step_labels)
        return shares

    def _share(self, count: Tensor | int | None, total: Tensor | int | None) -> Tensor | float:
        """The factor for one kind of count, of the micro-batch and of the whole step; 1 if one of them is unknown."""
        if total is None or count is None:
            return 1.0
        # Trainer divides by the number of micro-batches, and gradients are averaged over processes
        processes = self.args.world_size if self.args.average_tokens_across_devices else 1
        factor: int = self.current_gradient_accumulation_steps * processes
        if isinstance(total, Tensor):
            # whole numbers divided by whole numbers would have the default dtype
            total = total.to(torch.float32)
            return count * factor / total.clamp(min=1)
        return count * factor / max(total, 1)

    def _labels(self, inputs: Batch) -> Tensor | int:
        """How many labels a micro-batch has; where nothing is named `labels`, its samples."""
        labels = self._loss.count_labels(inputs)
        if labels is None:
            return count_samples(inputs)
        return labels

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """As `Trainer`, and counts labels and tokens of the step as the loss does.

        Args:
            epoch_iterator: As for `Trainer`.
            num_batches: As for `Trainer`.
            device: As for `Trainer`.

        Returns:
            What `Trainer.get_batch_samples` returns.
        """
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        tokens: dict[str, list[Tensor | int | None]] = {}
        for batch in batches:
            for name, count in token_counts(batch).items():
                tokens.setdefault(name, []).append(count)
        self._step_tokens = {name: self._total(counts, device) for name, counts in tokens.items()}
        labels = self._total(list(map(self._labels, batches)), device)
        if self.gradual is not None:
            self.gradual.step_samples = sum(map(count_samples, batches))
        # there is no batch where the data has ended
        if labels is None:
            return batches, items
        return batches, labels

    def _total(self, counts: Sequence[Tensor | int | None], device: torch.device) -> Tensor | None:
        """The sum of counts of micro-batches, over all processes where Trainer averages over them.

        None if a count is unknown, and where there is no micro-batch.
        """
        tensors = []
        for count in counts:
            if count is None:
                return None
            if not isinstance(count, Tensor):
                count = torch.tensor(count, dtype=torch.long, device="cpu")
            tensors.append(count)
        if not tensors:
            return None
        total = torch.stack(tensors).sum().to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total).sum()
        return total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log like Trainer, with the mean of each part of the loss since the last time, and the sparsity."""
        logs |= self._sparsity()
        if "loss" in logs and self._loss_count:
            for name, total in self._loss_sums.items():
                logs[f"loss_{name}"] = (total / self._loss_count).item()
            self._loss_sums = {}
            self._loss_count = 0
        super().log(logs, start_time)

    def _sparsity(self) -> dict[str, float]:
        """The fraction of the dense model's prunable cost that is gone at this moment."""
        if self.gradual is not None and self.gradual.attached:
            return self.gradual.logs()
        plan = getattr(self._plain_model(), "pruning_plan", None)
        if plan is None:
            return {}
        return {"sparsity": plan.sparsity("macs")}

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        prepared = dict(super()._prepare_inputs(inputs))
        # evaluation calls the model with all columns, and no model takes these
        if not self.model.training:
            for name in TEACHER_COLUMNS:
                prepared.pop(name, None)
        return prepared

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer`: of several processes every row counts once.

        Args:
            *args: As for `Trainer`.
            **kwargs: As for `Trainer`.

        Returns:
            What `Trainer.evaluation_loop` returns.
        """
        # Seq2SeqTrainer counts the rows again that fill up the last batch
        gather = self.accelerator.gather_for_metrics
        self.gather_function = partial(gather, use_gather_object=self.args.eval_use_gather_object)
        with same_generation(self._plain_model()):
            return super().evaluation_loop(*args, **kwargs)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[Any] | None:
        sampler: Sampler[Any] | None = super()._get_eval_sampler(eval_dataset)
        # grouped by length, as training may be, predictions would not be in the order of the rows that they are for
        if isinstance(sampler, LengthGroupedSampler):
            return SequentialSampler(eval_dataset)
        return sampler

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        # Trainer drops the columns that the model does not take
        columns: list[str] = self._signature_columns
        # it does not see what a `forward` of `*args, **kwargs` hands on
        for name in (*sorted(argument_names(self._plain_model())), *TEACHER_COLUMNS):
            if name not in columns:
                columns.append(name)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        # with more units than the final model has, it would be the best for good
        if self.gradual is not None and not self.gradual.finished:
            return False
        return bool(super()._determine_best_metric(metrics, trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.gradual is not None:
            self.gradual.gather()
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.gradual is not None:
            self.gradual.load(Path(resume_from_checkpoint), self._plain_model())

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            write_attachments(self._plain_model(), folder)
            if self.gradual is not None and self.gradual.attached:
                self.gradual.save(folder)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write the card of hfprune in place of Trainer's, once the model has a record to draw it from."""
        model = self._plain_model()
        if self.is_world_process_zero() and getattr(model, "pruning_record", None) is not None:
            name = self.hub_model_id or Path(self.args.output_dir).resolve().name
            write_card(model, Path(self.args.output_dir), location=name)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # so that what is pushed has plan, record and loader beside the weights
        if self.is_world_process_zero():
            keep_files(self._plain_model(), Path(self.args.output_dir))
        super()._push_from_checkpoint(checkpoint_folder)
