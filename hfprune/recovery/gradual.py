"""Gradual pruning: units are gated off one after the other while the model trains, and cut once at the end."""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfprune.config import CONFIG, PruningConfig
from hfprune.distributed import add_over_processes, from_main_process, is_main_process
from hfprune.measuring.size import measure_size
from hfprune.planning import PruningPlan
from hfprune.planning.schedule import sparsity_at
from hfprune.pruning.steps import apply_plan, check_target, cost_of_units, plan, width_multiple
from hfprune.publishing.record import record_of
from hfprune.scoring import Scores
from hfprune.structure.anatomy import Anatomy, anatomy_of
from hfprune.structure.arguments import TEXT, checked, finite, whole
from hfprune.structure.batches import count_samples
from hfprune.structure.blocks import Block, check_in_one_place
from hfprune.structure.examples import check_length
from hfprune.structure.gates import gate_columns
from hfprune.structure.running import input_hooks
from hfprune.structure.wrapping import unwrapped

logger = logging.getLogger(__name__)
STATE_FILE = "gradual_pruning.safetensors"
#: The factor by which sums of earlier gradients shrink whenever units are chosen anew.
DECAY = 0.5
#: How many standard errors the gain of a removed unit must be above 0 for it to come back.
CERTAINTY = 3.0
#: Fewer choices of units than these remove so much at once that a warning is due.
_FEW_CHOICES = 3
#: What a checkpoint says of the progress, beside gates and sums.
_PROGRESS = ("finished", "sparsity", "reached", "regrown")
#: What must be the same in a run that goes on from a checkpoint, in the order in which the checkpoint has it.
_TARGET_OF_CONFIG = (
    "sparsity",
    "budget",
    "sequence_length",
    "allocation",
    "attention_unit",
    "min_units",
    "round_to",
    "exclude",
    "portable",
)


class GradualPruning(TrainerCallback):
    """Prunes while `RecoveryTrainer` trains, along a schedule, with gates at 0 instead of smaller tensors.

    Every `every` steps the units are scored by the gate gradients γ of the training batches since then (no extra
    passes). A unit that is open scores what the loss would lose without it, ½ mean γ² (`fisher`). A unit that was
    removed scores what the loss would gain with it back, −mean γ − ½ mean γ², less three standard errors of that mean.
    The plan for the sparsity of that moment is made from these scores, so a removed unit comes back (regrowth) where
    it surely helps more than one that is open. When the target is reached the plan stays; the rest of the training
    recovers. At the end surgery is done once, and `trainer.model` is the small model, with its plan and record.

    Zhu & Gupta 2017, "To prune, or not to prune", for the schedule; Molchanov et al. 2019 for gradients while training.

    Checkpoints hold the gates and scores, so a run that was interrupted goes on to the same plan with
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

    Examples:
        >>> import copy
        >>> import hfprune
        >>> gradual = hfprune.GradualPruning(config, every=1)
        >>> args = hfprune.RecoveryArguments("recovery", max_steps=8, use_cpu=True, report_to="none", disable_tqdm=True)
        >>> trainer = hfprune.RecoveryTrainer(
        ...     copy.deepcopy(dense),
        ...     args,
        ...     teacher=dense,
        ...     train_dataset=dataset,
        ...     processing_class=tokenizer,
        ...     callbacks=[gradual],
        ... )
        >>> result = trainer.train()  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        >>> trainer.model.pruning_plan.sparsity("macs") >= 0.5
        True
    """

    @checked(config=CONFIG, schedule=TEXT, start=finite(), end=finite(), every=whole())
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
        # raises if there is none of that name
        sparsity_at(schedule, 0.0, start=0.0, target=0.5)
        self.config = config or PruningConfig()
        self.schedule = schedule
        self.start = start
        self.end = end
        self.every = every
        self.finished = False
        #: What the schedule asks for at this moment, and what the gates have reached.
        self.sparsity = 0.0
        self.reached = 0.0
        #: How many units the last choice brought back.
        self.regrown = 0
        #: The sparsity that the model had when the gates were put on.
        self._from = 0.0
        self._anatomy: Anatomy | None = None
        self._gates: dict[str, Tensor] = {}
        #: By block, `(3, units)`: how many samples were seen since a unit was opened or closed, Σγ and Σγ².
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

    @property
    def _blocks(self) -> Sequence[Block]:
        """The blocks of the model that the gates are on."""
        if self._anatomy is None:
            return ()
        return self._anatomy.blocks

    def attach(self, model: PreTrainedModel) -> None:
        """Put gates on a model, all open; nothing if they are there.

        Args:
            model: The model that will train.

        Raises:
            BudgetError: The sparsity cannot be reached under the constraints, or the model has it already.
        """
        if self.attached:
            return
        model = unwrapped(model)
        check_in_one_place(model)
        check_length(model, self.config.sequence_length)
        # gates change no shape, so what is read here holds until the model is cut
        anatomy = anatomy_of(model, self.config.attention_unit)
        self._from = check_target(anatomy, self.config)
        self.sparsity = self._from
        self.reached = self._from
        self._anatomy = anatomy
        self.finished = False
        for block in anatomy.blocks:
            # the consumer of an emptied block has no weight
            weight = getattr(model.base_model.get_submodule(block.consumer), "weight", None)
            device = model.device if weight is None else weight.device
            self._gates[block.name] = torch.ones(block.units, dtype=torch.float32, device=device)
            self._sums[block.name] = torch.zeros(3, block.units, dtype=torch.float64, device="cpu")
        changes = {block: self._gate(block) for block in anatomy.blocks if block.units}
        self._hooks.enter_context(input_hooks(model, changes))
        counter = model.register_forward_pre_hook(self._count, with_kwargs=True)
        self._hooks.callback(counter.remove)

    def detach(self) -> None:
        """Take the gates off, and forget what they were."""
        self._hooks.close()
        self._gates = {}
        self._sums = {}
        self._anatomy = None

    def _count(self, _: object, __: object, inputs: dict[str, Any]) -> None:
        """Before every forward pass: note its samples, and drop what an earlier backward pass left unfinished."""
        self._samples = count_samples(inputs)
        self._of_uses = {}

    def _gate(self, block: Block) -> Callable[[Tensor], Tensor]:
        """The function through which the input of a block's consumer passes."""

        def add(gamma: Tensor) -> None:
            self._add(block, gamma)

        def change(x: Tensor) -> Tensor:
            gate = self._gates[block.name].to(x.dtype).repeat_interleave(block.width)
            if self.finished or not torch.is_grad_enabled():
                return x * gate
            anchor = torch.ones((), dtype=torch.float32, device=x.device, requires_grad=True)
            return gate_columns(x, gate, anchor=anchor, samples=self._samples, take=add)

        return change

    def _add(self, block: Block, gamma: Tensor) -> None:
        """Add the gradients of a batch by its gates, `(samples, columns)`, once those of all uses have come."""
        of_uses = self._of_uses.setdefault(block.name, [])
        of_uses.append(gamma)
        if len(of_uses) < block.uses:
            return
        total = torch.stack(self._of_uses.pop(block.name)).sum(0)
        # the loss is a mean over the samples of the step, and γ is a derivative of the loss of one sample
        samples_of_loss = self.step_samples or len(total)
        by_unit = total.reshape(len(total), block.units, -1).sum(-1) * samples_of_loss
        counts = torch.ones_like(by_unit).sum(0)
        sums = torch.stack([counts, by_unit.sum(0), by_unit.square().sum(0)])
        # a step that overflows is skipped by the optimizer too
        if bool(torch.isfinite(sums).all()):
            self._sums[block.name] += sums.cpu()

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
        # gates of a checkpoint were put on before training began; any others are of an earlier run
        if not self._resumed:
            self.detach()
        self._resumed = False
        self.attach(kwargs["model"])
        choices = (self.end - self.start) * state.max_steps / self.every
        if choices < _FEW_CHOICES:
            logger.warning(
                "gradual pruning will choose units %d times only, every %d of %d steps, so much goes at once. Lower "
                "`every`, or train longer.",
                max(1, round(choices)),
                self.every,
                state.max_steps,
            )

    def on_step_end(self, _: TrainingArguments, state: TrainerState, __: TrainerControl, **___: Any) -> None:
        """Choose the units anew, every so many steps until the target is reached."""
        if self.finished:
            return
        first = self.start * state.max_steps
        last = self.end * state.max_steps
        if state.global_step >= last:
            self._choose(progress=1.0)
            self.finished = True
            logger.info("gradual pruning: %.1f %% of prunable %s gone", 100 * self.sparsity, self.config.budget)
            return
        has_begun = state.global_step >= max(first, 1)
        if has_begun and state.global_step % self.every == 0:
            self._choose(progress=(state.global_step - first) / (last - first))

    def _choose(self, progress: float) -> None:
        """Choose the units for a moment of the schedule, from 0 to 1, and set the gates. All processes must call it."""
        add_over_processes(self._sums.values())
        self.sparsity = sparsity_at(self.schedule, progress, start=self._from, target=self.config.sparsity)
        chosen = self._plan()
        self.reached = 1 - (1 - self._from) * (1 - self._sparsity_of(chosen))
        self.regrown = 0
        for block in self._blocks:
            self._set_gate(block, chosen.kept[block.name])

    def _set_gate(self, block: Block, kept: Sequence[int]) -> None:
        """Open the gates of the units that are kept, and close the others."""
        gate = self._gates[block.name]
        sums = self._sums[block.name]
        new = torch.zeros_like(gate)
        new[torch.tensor(kept, dtype=torch.long, device=gate.device)] = 1
        from_main_process([new])
        changed = (new != gate).cpu()
        self.regrown += int((new > gate).sum())
        # every process has the sums of all now, and they are added up again next time
        if is_main_process():
            sums *= DECAY
        else:
            sums.zero_()
        # γ of an open unit says nothing of a closed one, and the other way round
        sums[:, changed] = 0
        gate.copy_(new)

    def _plan(self) -> PruningPlan:
        """The plan for the sparsity of this moment."""
        assert self._anatomy is not None
        by_block = {block.name: self._scores(block) for block in self._blocks}
        scores = Scores(by_block=by_block, scorer="gradual", samples=self._seen())
        return plan(self._anatomy, scores, self.config, sparsity=max(self.sparsity, 0.0))

    def _scores(self, block: Block) -> Tensor:
        """`(units,)` scores: what an open unit is worth, and what a closed one would surely gain."""
        count, total, square = self._sums[block.name]
        count = count.clamp(min=1e-12)
        mean = total / count
        loss_without = square / count / 2
        # Σγ² instead of the smaller variance: a unit comes back rather too seldom than too often
        standard_error = square.sqrt() / count
        gain_with = (-mean - loss_without - CERTAINTY * standard_error).clamp(min=0)
        is_open = self._gates[block.name].cpu() > 0
        return torch.where(is_open, loss_without, gain_with).float()

    def _sparsity_of(self, chosen: PruningPlan) -> float:
        """The fraction of the present model's prunable cost that a plan removes."""
        assert self._anatomy is not None
        # by the blocks: a plan does not record the cost in every budget
        before = cost_of_units(self._anatomy, self.config, self._anatomy.units)
        if not before:
            return 0.0
        return 1 - cost_of_units(self._anatomy, self.config, chosen.units_after) / before

    def _seen(self) -> int:
        """The largest count of samples of any unit: counts decay at every choice, and restart when a gate changes."""
        longest = 0
        for sums in self._sums.values():
            if sums.numel():
                longest = max(longest, int(sums[0].max()))
        return longest

    def cut(self, model: PreTrainedModel) -> PreTrainedModel:
        """Do the surgery, once the target is reached.

        Args:
            model: The model that was trained; its gates are taken off.

        Returns:
            The small model, with plan and record.
        """
        assert self._anatomy is not None
        # the same model, perhaps out of its wrappers
        anatomy = replace(self._anatomy, model=model)
        kept = {}
        for name, gate in self._gates.items():
            kept[name] = torch.nonzero(gate).flatten().tolist()
        samples = self._seen()
        self.detach()
        before = measure_size(anatomy, sequence_length=self.config.sequence_length)
        chosen = PruningPlan.keep(
            anatomy.blocks,
            kept,
            model_type=anatomy.model_type,
            sequence_length=self.config.sequence_length,
        )
        if self.config.table is not None:
            chosen = replace(chosen, predicted=self.config.table.predict(chosen.units_after))
        small = apply_plan(anatomy, chosen)
        asked = self.config.to_dict()
        asked["round_to"] = width_multiple(anatomy, self.config)
        asked |= {"scorer": "gradual", "rounds": None, **self._schedule(), "reconstruct": False}
        entry = {"sparsity": self.config.sparsity, "samples": samples, "plan_digest": small.pruning_plan.digest}
        small.pruning_record = record_of(anatomy, before, anatomy_of(small, self.config.attention_unit), asked, [entry])
        return small

    def logs(self) -> dict[str, float]:
        """What to log: the fraction of the budget that is gated off, and how many units came back last time."""
        return {"sparsity": self.reached, "regrown_units": float(self.regrown)}

    def save(self, folder: Path) -> None:
        """Write gates and sums into a checkpoint; `gather` must have been called.

        Args:
            folder: The checkpoint.
        """
        progress = {name: getattr(self, name) for name in _PROGRESS}
        about = {**progress, "from": self._from, "target": self._target()}
        tensors = {}
        for name, gate in self._gates.items():
            tensors[f"gate.{name}"] = gate.cpu()
            tensors[f"sums.{name}"] = self._sums[name]
        save_file(tensors, folder / STATE_FILE, metadata={"hfprune": json.dumps(about)})

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
                # the main process keeps the sums of all, see `gather`
                self._sums[name].copy_(file.get_tensor(f"sums.{name}") * is_main_process())
        for name in _PROGRESS:
            setattr(self, name, about[name])
        self._from = about["from"]

    def _target(self) -> dict[str, Any]:
        """What this run goes to, and how."""
        config = {name: getattr(self.config, name) for name in _TARGET_OF_CONFIG}
        # checkpoints of other budgets stay as they were
        if self.config.table is not None:
            config["latency_table"] = self.config.table.summary["digest"]
        return {**config, **self._schedule()}

    def _schedule(self) -> dict[str, Any]:
        return {"schedule": self.schedule, "start": self.start, "end": self.end, "every": self.every}
