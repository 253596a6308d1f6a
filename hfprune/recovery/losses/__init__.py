"""The parts of the recovery objective: a file for each loss, one for the penalties, and the registry of both."""

# isort: off
# losses are summed in the order of their registration, which is the order of these imports
from hfprune.recovery.losses import task, logits, hidden_states, attention_outputs, penalties
# isort: on

from hfprune.recovery.losses.registry import (
    Loss,
    LossInputs,
    Penalty,
    Term,
    UnitWeights,
    get_loss,
    known_losses,
    known_penalties,
    register_loss,
    register_penalty,
)

__all__ = [
    "Loss",
    "LossInputs",
    "Penalty",
    "Term",
    "UnitWeights",
    "attention_outputs",
    "get_loss",
    "hidden_states",
    "known_losses",
    "known_penalties",
    "logits",
    "penalties",
    "register_loss",
    "register_penalty",
    "task",
]
