"""Which units matter: calibration batches, scorers and their scores."""

from hfprune.scoring.calibration import CalibrationData, Collator, calibration_batches
from hfprune.scoring.scorers import Scorer, Statistics, get_scorer, known_scorers, register_scorer, score
from hfprune.scoring.scores import Scores

__all__ = [
    "CalibrationData",
    "Collator",
    "Scorer",
    "Scores",
    "Statistics",
    "calibration_batches",
    "get_scorer",
    "known_scorers",
    "register_scorer",
    "score",
]
