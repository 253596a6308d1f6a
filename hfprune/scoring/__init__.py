"""Which units matter: calibration batches, scorers and their scores."""

from hfprune.scoring.activation_scorers import ActivationStatistics, GramStatistics
from hfprune.scoring.calibration import CalibrationData, Collator, calibration_batches
from hfprune.scoring.gate_scorers import GateStatistics
from hfprune.scoring.registry import Scorer, get_scorer, known_scorers, register_scorer
from hfprune.scoring.scorers import score, scorers_in
from hfprune.scoring.scores import Scores
from hfprune.scoring.weight_scorers import WeightGradientStatistics, WeightStatistics

__all__ = [
    "ActivationStatistics",
    "CalibrationData",
    "Collator",
    "GateStatistics",
    "GramStatistics",
    "Scorer",
    "Scores",
    "WeightGradientStatistics",
    "WeightStatistics",
    "calibration_batches",
    "get_scorer",
    "known_scorers",
    "register_scorer",
    "score",
    "scorers_in",
]
