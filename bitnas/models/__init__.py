"""Networks as plain modules, made by name over a width code or from an architecture of their own."""

from bitnas.models import bars, nasbnn, resnet18, vgg_small  # noqa: F401  (importing one registers it)
from bitnas.models.config import ModelConfig
from bitnas.models.registry import (
    NetworkConfig,
    config_from_dict,
    create_model,
    create_model_from_config,
    list_models,
    make_config,
    num_ratios,
    read_architecture,
    register,
    register_code,
    register_config,
    widths,
)
from bitnas.models.saved import load_model, save_model

__all__ = [
    "ModelConfig",
    "NetworkConfig",
    "config_from_dict",
    "create_model",
    "create_model_from_config",
    "list_models",
    "load_model",
    "make_config",
    "num_ratios",
    "read_architecture",
    "register",
    "register_code",
    "register_config",
    "save_model",
    "widths",
]
