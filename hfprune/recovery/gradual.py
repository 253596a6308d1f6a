"""Gradual pruning: units are gated off one after the other while the model trains, and cut once at the end."""

import json
import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfprune.config import PruningConfig
from hfprune.distributed import add_over_processes, from_main_process, is_main_process
from hfprune.measuring.size import check_length, measure_size
from hfprune.planning import PruningPlan
from hfprune.planning.schedule import sparsity_at
from hfprune.pruning.steps import apply_plan, check_target, plan, sparsity_of
from hfprune.publishing.record import record_of
from hfprune.scoring import Scores
from hfprune.structure.anatomy import find_blocks
from hfprune.structure.architectures import base_model_type
from hfprune.structure.batches import count_samples
from hfprune.structure.blocks import Block, check_in_one_place
from hfprune.structure.gates import gate_columns
from hfprune.structure.running import input_hooks

logger = logging.getLogger(__name__)
STATE_FILE = "gradual_pruning.safetensors"
#: What is left of earlier gradients whenever units are chosen anew.
DECAY = 0.5
#: How many standard errors the gain of a removed unit must be above 0 for it to come back.
CERTAINTY = 3.0


class GradualPruning(TrainerCallback):
    """Prunes while `RecoveryTrainer` trains, along a schedule, with gates at 0 instead of smaller tensors.

    Every `every` steps the units are scored by the gate gradients γ of the training batches since then (no extra
    passes): what the loss would lose with the unit gone, ½ mean γ² for one that is there (`fisher`), and what it would
    gain with it back for one that is gone, −mean γ − ½ mean γ² less three standard errors of that mean. The plan for
    the sparsity of that moment is made from these, so a removed unit comes back where that surely helps more than what
    is there (regrowth). When the target is
    reached the plan stays; the rest of the training recovers. At the end surgery is done once, and `trainer.model` is
    the small model, with its plan and record.

    Zhu & Gupta 2017, "To prune, or not to prune", for the schedule; Molchanov et al. 2019 for gradients while training.

        gradual = GradualPruning(PruningConfig(sparsity=0.7))
        trainer = RecoveryTrainer(copy.deepcopy(dense), args, teacher=dense, callbacks=[gradual])
        trainer.train()
        hfprune.save(trainer.model, "small")

    Checkpoints hold the gates and scores, so a run that is cut goes on to the same plan with
    `trainer.train(resume_from_checkpoint=...)`. Evaluations before the target is reached do not count for the best
    checkpoint, nor for the patience of early stopping.

    Args:
        config: What to reach: sparsity, budget, allocation and constraints. Its scorer, rounds and schedule do not
            count here.
        schedule: `cubic`, `linear`, `geometric` or `steps`, see `sparsity_at`.
        start: Fraction of the training steps before the first unit goes.
        end: Fraction of the training steps after which the target is reached.
        every: Steps between two choices of units.

    Raises:
        ValueError: A fraction or a name that makes no sense.
    """

    def __init__(
        self,
        config: PruningConfig | None = None,
        *,
        schedule: str = "cubic",
        start: float = 0.0,
        end: float = 0.6,
        every: int = 10,
    ) -> None:
        if not 0 <= start < end <= 1:
            raise ValueError(
                f"start and end are fractions of the training steps with 0 <= start < end <= 1, got {start} and {end}."
            )
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}.")
        sparsity_at(schedule, 0.0, start=0.0, target=0.5)  # raises if there is none of that name
        self.config = config or PruningConfig()
        self.schedule, self.start, self.end, self.every = schedule, start, end, every
        self.finished = False
        self.sparsity = self.reached = 0.0
        self.regrown = 0
        self._blocks: list[Block] = []
        self._gates: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._hooks = ExitStack()
        self._samples = 0
        #: By block, γ of the uses that the backward pass has come to (ALBERT uses one layer many times).
        self._of_uses: dict[str, list[Tensor]] = {}
        self._resumed = False
        #: Samples in all micro-batches of the present step, which RecoveryTrainer says.
        self.step_samples: int | None = None
        #: Whether a RecoveryTrainer trains, which cuts the model at the end.
        self.has_trainer = False

    @property
    def attached(self) -> bool:
        """Whether the gates are on a model."""
        return bool(self._gates)

    def attach(self, model: PreTrainedModel) -> None:
        """Put gates on a model, all open; nothing if they are there.

        Args:
            model: The model that will train.

        Raises:
            BudgetError: The sparsity cannot be reached under the constraints, or the model has it already.
        """
        if self.attached:
            return
        check_in_one_place(model)
        check_length(model, self.config.sequence_length)
        check_target(model, self.config)
        self._blocks = find_blocks(model, self.config.attention_unit)
        self._from = self.sparsity = self.reached = sparsity_of(model, self.config)
        self.finished = False
        for block in self._blocks:
            device = model.base_model.get_submodule(block.consumer).weight.device
            self._gates[block.name] = torch.ones(block.units, device=device)
            # samples seen in the present state, Σγ and Σγ²
            self._sums[block.name] = torch.zeros(3, block.units, dtype=torch.float64)
        changes = {block: self._gate(block) for block in self._blocks if block.units}
        self._hooks.enter_context(input_hooks(model, changes))
        counter = model.register_forward_pre_hook(self._count, with_kwargs=True)
        self._hooks.callback(counter.remove)

    def detach(self) -> None:
        """Take the gates off; what they were is forgotten."""
        self._hooks.close()
        self._gates, self._sums, self._blocks = {}, {}, []

    def _count(self, _: object, __: object, inputs: dict[str, Any]) -> None:
        self._samples, self._of_uses = count_samples(inputs), {}

    def _gate(self, block: Block) -> Callable[[Tensor], Tensor]:
        def change(x: Tensor) -> Tensor:
            gate = self._gates[block.name].to(x.dtype).repeat_interleave(block.width)
            if self.finished or not torch.is_grad_enabled():
                return x * gate
            anchor = torch.ones((), device=x.device, requires_grad=True)
            return gate_columns(
                x, gate, anchor=anchor, samples=self._samples, take=lambda gamma: self._add(block, gamma)
            )

        return change

    def _add(self, block: Block, gamma: Tensor) -> None:
        """Take in the gradients of a batch by its gates, `(samples, columns)`, when those of every use are there."""
        of_uses = self._of_uses.setdefault(block.name, [])
        of_uses.append(gamma)
        if len(of_uses) < block.uses:
            return
        gamma = torch.stack(self._of_uses.pop(block.name)).sum(0)
        # the loss is a mean over the samples of the step
        by_unit = gamma.reshape(len(gamma), block.units, -1).sum(-1) * (self.step_samples or len(gamma))
        terms = torch.stack([torch.ones_like(by_unit).sum(0), by_unit.sum(0), by_unit.square().sum(0)])
        if bool(torch.isfinite(terms).all()):  # a step that overflows is skipped by the optimizer too
            self._sums[block.name] += terms.cpu()

    def gather(self) -> None:
        """Add up over processes what each has seen; the main process keeps it. All processes must call it."""
        add_over_processes(self._sums.values())
        if not is_main_process():
            for sums in self._sums.values():
                sums.zero_()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, _: TrainerControl, **kwargs: Any) -> None:
        """Put the gates on."""
        if not self.has_trainer:
            raise ValueError(
                "GradualPruning works with hfprune.RecoveryTrainer only, which cuts the model when training ends. "
                "Replace Trainer by it, and TrainingArguments by RecoveryArguments."
            )
        if args.fp16:
            raise ValueError("gradual pruning reads gradients, which fp16=True scales: train with bf16=True instead.")
        if not self._resumed:
            self.detach()
        self._resumed = False
        self.attach(kwargs["model"])
        choices = (self.end - self.start) * state.max_steps / self.every
        if choices < 3:
            logger.warning(
                "gradual pruning will choose units %d times only, every %d of %d steps, so much goes at once. Lower "
                "`every`, or train longer.",
                max(1, round(choices)),
                self.every,
                state.max_steps,
            )

    def on_step_end(self, _: TrainingArguments, state: TrainerState, __: TrainerControl, **kwargs: Any) -> None:
        """Choose the units anew, every so many steps until the target is reached."""
        if self.finished:
            return
        first, last = self.start * state.max_steps, self.end * state.max_steps
        reached = state.global_step >= last
        if not reached and (state.global_step < max(first, 1) or state.global_step % self.every):
            return
        progress = 1.0 if reached else (state.global_step - first) / (last - first)
        self._choose(kwargs["model"], progress)
        self.finished = reached
        if reached:
            logger.info("gradual pruning: %.1f %% of prunable %s gone", 100 * self.sparsity, self.config.budget)

    def _choose(self, model: PreTrainedModel, progress: float) -> None:
        """Make the plan of a moment, and set the gates by it."""
        add_over_processes(self._sums.values())
        self.sparsity = sparsity_at(self.schedule, progress, start=self._from, target=self.config.sparsity)
        chosen = self._plan(model)
        self.reached = 1 - (1 - self._from) * (1 - chosen.sparsity(self.config.budget))
        self.regrown = 0
        for block in self._blocks:
            gate, sums = self._gates[block.name], self._sums[block.name]
            new = torch.zeros_like(gate)
            new[torch.tensor(chosen.kept[block.name], dtype=torch.long, device=gate.device)] = 1
            from_main_process([new])
            changed = (new != gate).cpu()
            self.regrown += int((new > gate).sum())
            sums *= DECAY if is_main_process() else 0
            sums[:, changed] = 0  # γ of a unit that is there says nothing of one that is gone, and the reverse
            gate.copy_(new)

    def _plan(self, model: PreTrainedModel) -> PruningPlan:
        scores = {}
        for block in self._blocks:
            count, total, square = self._sums[block.name]
            count = count.clamp(min=1e-12)
            mean, half, error = total / count, square / count / 2, square.sqrt() / count
            gain = (-mean - half - CERTAINTY * error).clamp(min=0)
            scores[block.name] = torch.where(self._gates[block.name].cpu() > 0, half, gain).float()
        found = Scores(by_block=scores, scorer="gradual", samples=self._seen())
        return plan(model, found, self.config, sparsity=max(self.sparsity, 0.0))

    def _seen(self) -> int:
        """Samples that the longest-standing unit has gradients of, lately."""
        return max((int(sums[0].max()) for sums in self._sums.values() if sums.numel()), default=0)

    def cut(self, model: PreTrainedModel) -> PreTrainedModel:
        """Do the surgery, once the target is reached.

        Args:
            model: The model that was trained; its gates are taken off.

        Returns:
            The small model, with plan and record.
        """
        kept = {name: torch.nonzero(gate).flatten().tolist() for name, gate in self._gates.items()}
        blocks, samples = self._blocks, self._seen()
        self.detach()
        before = measure_size(
            model, sequence_length=self.config.sequence_length, attention_unit=self.config.attention_unit
        )
        chosen = PruningPlan.keep(
            blocks,
            kept,
            model_type=base_model_type(model.config.model_type),
            sequence_length=self.config.sequence_length,
        )
        small = apply_plan(model, chosen)
        steps = {"schedule": self.schedule, "start": self.start, "end": self.end, "every": self.every}
        asked = {**self.config.to_dict(), "scorer": "gradual", "rounds": None, **steps, "reconstruct": False}
        digest = small.pruning_plan.digest
        done = [{"sparsity": self.config.sparsity, "samples": samples, "plan_digest": digest}]
        small.pruning_record = record_of(model, before, small, asked, done)
        return small

    def logs(self) -> dict[str, float]:
        """What to log: the fraction of the budget that is gated off, and how many units came back lately."""
        return {"sparsity": self.reached, "regrown_units": float(self.regrown)}

    def save(self, folder: Path) -> None:
        """Write gates and sums into a checkpoint; `gather` must have been called.

        Args:
            folder: The checkpoint.
        """
        progress = {name: getattr(self, name) for name in ("finished", "sparsity", "reached", "regrown")}
        about = {**progress, "from": self._from, "target": self._target()}
        gates = {f"gate.{name}": gate.cpu() for name, gate in self._gates.items()}
        sums = {f"sums.{name}": value for name, value in self._sums.items()}
        save_file({**gates, **sums}, folder / STATE_FILE, metadata={"hfprune": json.dumps(about)})

    def load(self, folder: Path, model: PreTrainedModel) -> None:
        """Go on from a checkpoint.

        Args:
            folder: The checkpoint.
            model: The model that will train.

        Raises:
            ValueError: The checkpoint is not of gradual pruning, or of one with another target.
        """
        if not (folder / STATE_FILE).is_file():
            raise ValueError(
                f"{folder} has no {STATE_FILE}: it was not written by a trainer with GradualPruning. Resume from a "
                "checkpoint of such a run, or start anew."
            )
        with safe_open(folder / STATE_FILE, framework="pt") as file:
            about = json.loads(file.metadata()["hfprune"])
        if about["target"] != self._target():
            raise ValueError(
                f"{folder} is of a gradual pruning to {about['target']}, and this one goes to {self._target()}. Resume "
                "with the same settings, or start anew."
            )
        self.detach()
        self.attach(model)
        self._resumed = True
        with safe_open(folder / STATE_FILE, framework="pt") as file:
            for name, gate in self._gates.items():
                gate.copy_(file.get_tensor(f"gate.{name}"))
                self._sums[name].copy_(file.get_tensor(f"sums.{name}") * is_main_process())
        for name in ("finished", "sparsity", "reached", "regrown"):
            setattr(self, name, about[name])
        self._from = about["from"]

    def _target(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("schedule", "start", "end", "every")}
        names = ("sparsity", "budget", "sequence_length", "allocation", "attention_unit", "min_units", "round_to")
        config = {name: getattr(self.config, name) for name in (*names, "exclude", "portable")}
        return {**config, **own}
