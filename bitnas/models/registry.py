"""Networks by name.

A network registers what is needed to check a request before building anything: its base widths (one per ratio), its
defaults and its builder. A published width code is a second name for the same network, so both give equal configs.
"""

import difflib
import fnmatch
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from bitnas.models.config import ModelConfig, scale_width
from bitnas.nn.binarizers import get_scheme

Builder = Callable[[ModelConfig, tuple[int, ...]], nn.Module]
Size = tuple[int, int, int]


@dataclass(frozen=True)
class _Entry:
    build: Builder
    base_widths: tuple[int, ...]
    num_classes: int
    input_size: Size
    default_stem: Callable[[Size], str] | None


class NetworkConfig(Protocol):
    """What every description of a network can say, be it a width code or an architecture of a search space."""

    @property
    def name(self) -> str: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def input_size(self) -> Size: ...

    def to_dict(self) -> dict[str, Any]: ...

    def key(self) -> str: ...


_NETWORKS: dict[str, _Entry] = {}
_CODES: dict[str, tuple[str, tuple[float, ...]]] = {}
# Networks that are not told apart by a width code: the class of the description, and of the module made from it.
_ARCHITECTURES: dict[str, tuple[Any, type[nn.Module]]] = {}


def register(
    name: str,
    *,
    base_widths: Iterable[int],
    num_classes: int,
    input_size: Size,
    default_stem: Callable[[Size], str] | None = None,
) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Class decorator: make a network available to `create_model` under `name`.

    The class is called as `cls(config, widths)`, with one width per entry of `base_widths`, and must keep
    `self.config = config`. `default_stem` maps an input size to the stem used when none is asked for; leave it out for
    a network without a choice. Raises ValueError if the name is taken.
    """
    _check_free(name)

    def decorate(cls: type[nn.Module]) -> type[nn.Module]:
        _NETWORKS[name] = _Entry(cls, tuple(base_widths), num_classes, input_size, default_stem)
        return cls

    return decorate


def register_code(name: str, *, network: str, ratios: Iterable[float]) -> None:
    """Make a width code of a registered network available under a name of its own."""
    _check_free(name)
    _CODES[name] = (network, tuple(ratios))


def register_config(name: str, config: Any) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Class decorator: make networks of a search space known, each described by a `config` of its own.

    `config` is a class with `from_dict` and what `NetworkConfig` lists, whose JSON says `"name": name`; the network is
    called as `cls(config)` and keeps it as `self.config`. Such a network is made from its description, by
    `create_model(path or mapping)`. Raises ValueError if the name is taken.
    """
    _check_free(name)

    def decorate(cls: type[nn.Module]) -> type[nn.Module]:
        _ARCHITECTURES[name] = (config, cls)
        return cls

    return decorate


def config_from_dict(values: Mapping[str, Any]) -> NetworkConfig:
    """The description that `to_dict` wrote, of any kind of network. Raises ValueError or TypeError naming the field."""
    kind = values.get("name") if isinstance(values, Mapping) else None
    if isinstance(kind, str) and kind in _ARCHITECTURES:
        described: NetworkConfig = _ARCHITECTURES[kind][0].from_dict(values)
        return described
    if not isinstance(values, Mapping) or kind not in _NETWORKS:
        known = ", ".join(sorted([*_NETWORKS, *_ARCHITECTURES]))
        raise ValueError(f"name: got {kind!r}, wanted a network with an architecture of its own: {known}")
    return ModelConfig.from_dict(values)


def read_architecture(path: str | os.PathLike[str]) -> NetworkConfig:
    """The description in a JSON file. Raises FileNotFoundError, and ValueError naming the file for anything wrong."""
    try:
        return config_from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not the architecture of a network: {error}") from error


def list_models(pattern: str = "*") -> list[str]:
    """Sorted names that match a shell-style pattern."""
    return sorted(fnmatch.filter([*_NETWORKS, *_CODES], pattern))


def num_ratios(name: str) -> int:
    """How many ratios the width code of a network has. Raises ValueError for an unknown name."""
    return len(_entry(_resolve(name)[0]).base_widths)


def widths(config: ModelConfig) -> tuple[int, ...]:
    """The channel counts that the ratios of `config` stand for, in the order of the ratios."""
    return tuple(
        scale_width(base, config.base_width, ratio)
        for base, ratio in zip(_entry(config.name).base_widths, config.ratios, strict=True)
    )


def make_config(
    name: str,
    *,
    ratios: float | Iterable[float] | None = None,
    num_classes: int | None = None,
    input_size: Iterable[int] | None = None,
    base_width: float = 1.0,
    scheme: str = "dorefa",
    stem: str | None = None,
) -> ModelConfig:
    """The config that `create_model` would build from; same arguments, same errors, no tensors."""
    network, code = _resolve(name)
    entry = _entry(network)
    if code is not None:
        if ratios is not None:
            raise ValueError(f"ratios: got {ratios!r}, but {name!r} has its own; use {network!r} to choose them")
        ratios = code
    if ratios is None:
        ratios = 1.0
    size = entry.input_size if input_size is None else tuple(input_size)
    if stem is None and entry.default_stem is not None and len(size) == 3:
        stem = entry.default_stem(size)
    config = ModelConfig(
        name=network,
        ratios=tuple(ratios) if isinstance(ratios, Iterable) else (ratios,) * len(entry.base_widths),
        num_classes=entry.num_classes if num_classes is None else num_classes,
        input_size=size,  # type: ignore[arg-type]  # checked by ModelConfig
        base_width=base_width,
        scheme=scheme,
        stem=stem,
    )
    _check(config)
    return config


def create_model(
    name: str | os.PathLike[str] | Mapping[str, Any],
    *,
    ratios: float | Iterable[float] | None = None,
    num_classes: int | None = None,
    input_size: Iterable[int] | None = None,
    base_width: float = 1.0,
    scheme: str = "dorefa",
    stem: str | None = None,
) -> nn.Module:
    """Build a network, freshly initialised, from its name (see `list_models`) or its architecture.

    Args:
        name: a name; or the path of a `.json` file that holds an architecture, or what such a file holds. An
            architecture says everything itself, so no other argument goes with one.
        ratios: one width multiplier per searched width, any positive number; one number stands for all of them, and
            None for 1.
        num_classes: outputs of the classifier; None for the paper's.
        input_size: `(C, H, W)` that the network is made for; None for the paper's.
        base_width: multiplies every base width before the ratios do. A width is
            `int(int(base * base_width) * ratio)`, at least 1.
        scheme: how weights and activations become bits, a key of `bitnas.nn.SCHEMES`.
        stem: `"imagenet"` or `"cifar"` for resnet18, chosen by the input size if None; other networks have no choice.

    Returns:
        The module, with its `ModelConfig` as `.config`: float `[N, C, H, W]` to float `[N, num_classes]`.

    Raises ValueError or TypeError, naming the argument, for an unknown name, a wrong number of ratios, a ratio that is
    not a finite positive number, or an input too small for the network.
    """
    options = {"ratios": ratios, "num_classes": num_classes, "input_size": input_size, "stem": stem}
    if isinstance(name, Mapping | os.PathLike) or str(name).endswith(".json"):
        options |= {"base_width": None if base_width == 1.0 else base_width}
        options |= {"scheme": None if scheme == "dorefa" else scheme}
        given = [option for option, value in options.items() if value is not None]
        if given:
            raise ValueError(f"{given[0]}: got {options[given[0]]!r}, but an architecture says everything itself")
        described = config_from_dict(name) if isinstance(name, Mapping) else read_architecture(name)
        return create_model_from_config(described)
    return create_model_from_config(make_config(name, base_width=base_width, scheme=scheme, **options))  # type: ignore[arg-type]


def create_model_from_config(config: NetworkConfig) -> nn.Module:
    """Build the network that `config` describes. Raises as `create_model` does."""
    if isinstance(config, ModelConfig):
        _check(config)
        model = _entry(config.name).build(config, widths(config))
    elif config.name in _ARCHITECTURES and isinstance(config, _ARCHITECTURES[config.name][0]):
        model = _ARCHITECTURES[config.name][1](config)
    else:
        raise TypeError(f"config: got a {type(config).__name__}, wanted the description of a registered network")
    if getattr(model, "config", None) != config:
        raise TypeError(f"{type(model).__name__}: a registered network must keep its config as self.config")
    return model


def _check(config: ModelConfig) -> None:
    entry = _entry(config.name)
    if len(config.ratios) != len(entry.base_widths):
        raise ValueError(
            f"ratios: got {len(config.ratios)} numbers, wanted {len(entry.base_widths)} for {config.name!r}"
            " (or one number for all)"
        )
    if entry.default_stem is None and config.stem is not None:
        raise ValueError(f"stem: got {config.stem!r}, but {config.name!r} has no choice of stem")
    get_scheme(config.scheme)


def _resolve(name: str) -> tuple[str, tuple[float, ...] | None]:
    return _CODES.get(name, (name, None))


def _entry(name: str) -> _Entry:
    if name not in _NETWORKS:
        known = list_models()
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"name: got {name!r}, wanted one of {', '.join(known)}{hint}")
    return _NETWORKS[name]


def _check_free(name: str) -> None:
    if name in _NETWORKS or name in _CODES or name in _ARCHITECTURES:
        raise ValueError(f"name: {name!r} is already registered")
