"""Networks as plain modules over a width code, made by name."""

from bitnas.models import resnet18, vgg_small  # noqa: F401  (importing one registers it)
from bitnas.models.config import ModelConfig
from bitnas.models.registry import (
    create_model,
    create_model_from_config,
    list_models,
    make_config,
    num_ratios,
    register,
    register_code,
    widths,
)
from bitnas.models.saved import load_model, save_model

__all__ = [
    "ModelConfig",
    "create_model",
    "create_model_from_config",
    "list_models",
    "load_model",
    "make_config",
    "num_ratios",
    "register",
    "register_code",
    "save_model",
    "widths",
]
