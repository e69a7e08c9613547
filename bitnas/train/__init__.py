"""Training by recipe: a loop that survives being killed, by one process or several, and the settings it reads."""

from bitnas.train.distill import Distillation, auxiliary
from bitnas.train.distributed import PeerLost
from bitnas.train.history import Epoch, History
from bitnas.train.loop import NonFiniteError, TrainingDiverged, evaluate, fit
from bitnas.train.recipe import RECIPES, Recipe

__all__ = [
    "RECIPES",
    "Distillation",
    "Epoch",
    "History",
    "NonFiniteError",
    "PeerLost",
    "Recipe",
    "TrainingDiverged",
    "auxiliary",
    "evaluate",
    "fit",
]
