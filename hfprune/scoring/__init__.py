"""Which units matter: calibration batches, scorers and their scores."""

from hfprune.scoring.activation_scorers import ActivationStatistics, GramStatistics
from hfprune.scoring.calibration import CalibrationData, calibration_batches
from hfprune.scoring.gate_scorers import GateStatistics
from hfprune.scoring.registry import (
    Scorer,
    ScoringRun,
    Statistic,
    get_scorer,
    known_scorers,
    known_statistics,
    register_scorer,
    register_statistic,
)
from hfprune.scoring.rows import Collator
from hfprune.scoring.scorers import one_shot_form, score, scorers_in
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
    "ScoringRun",
    "Statistic",
    "WeightGradientStatistics",
    "WeightStatistics",
    "calibration_batches",
    "get_scorer",
    "known_scorers",
    "known_statistics",
    "one_shot_form",
    "register_scorer",
    "register_statistic",
    "score",
    "scorers_in",
]
