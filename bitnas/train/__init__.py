"""Training by recipe: a loop that survives being killed, and the settings it reads."""

from bitnas.train.loop import Epoch, History, NonFiniteError, TrainingDiverged, evaluate, fit
from bitnas.train.recipe import RECIPES, Recipe

__all__ = ["RECIPES", "Epoch", "History", "NonFiniteError", "Recipe", "TrainingDiverged", "evaluate", "fit"]
