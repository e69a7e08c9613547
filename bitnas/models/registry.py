"""Networks by name.

A network registers what is needed to check a request before building anything: its base widths (one per ratio), its
defaults and its builder. A published width code is a second name for the same network, so both give equal configs.
"""

import difflib
import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import dataclass

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


_NETWORKS: dict[str, _Entry] = {}
_CODES: dict[str, tuple[str, tuple[float, ...]]] = {}


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
    name: str,
    *,
    ratios: float | Iterable[float] | None = None,
    num_classes: int | None = None,
    input_size: Iterable[int] | None = None,
    base_width: float = 1.0,
    scheme: str = "dorefa",
    stem: str | None = None,
) -> nn.Module:
    """Build a network, freshly initialised, from its name (see `list_models`).

    Args:
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
    return create_model_from_config(
        make_config(
            name,
            ratios=ratios,
            num_classes=num_classes,
            input_size=input_size,
            base_width=base_width,
            scheme=scheme,
            stem=stem,
        )
    )


def create_model_from_config(config: ModelConfig) -> nn.Module:
    """Build the network that `config` describes. Raises as `create_model` does."""
    _check(config)
    model = _entry(config.name).build(config, widths(config))
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
    if name in _NETWORKS or name in _CODES:
        raise ValueError(f"name: {name!r} is already registered")
