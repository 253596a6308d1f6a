"""How much can go? Many sizes of one model measured, and searched for the smallest that is good enough."""

from hfprune.sweeping.curve import Sweep
from hfprune.sweeping.evaluation import correctness
from hfprune.sweeping.points import Drop, SweepPoint
from hfprune.sweeping.run import sweep
from hfprune.sweeping.search import prune_within

__all__ = ["Drop", "Sweep", "SweepPoint", "correctness", "prune_within", "sweep"]
