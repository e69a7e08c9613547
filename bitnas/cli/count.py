"""`bitnas count`: operations and memory of a network by the rules of the papers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..packed import NetworkMemory


def count(
    model: Annotated[str, typer.Argument(help="A name of bitnas.list_models(), such as vgg_small or resnet18.")],
    ratios: Annotated[
        str | None, typer.Option(help="Width ratios with commas between them; one number stands for all. Default: 1.")
    ] = None,
    rule: Annotated[
        str, typer.Option(help="How to count: mac, shen2019, shen2019-table1, shen2019-table2, nasbnn or bars.")
    ] = "mac",
    input_size: Annotated[str | None, typer.Option(help="C,H,W of one input. Default: the network's own.")] = None,
    num_classes: Annotated[int | None, typer.Option(help="Outputs of the classifier. Default: the paper's.")] = None,
    base_width: Annotated[float, typer.Option(help="Multiplies every base width before the ratios do.")] = 1.0,
    full_precision: Annotated[bool, typer.Option("--full-precision", help="Count binary layers as float.")] = False,
    weight_bases: Annotated[int, typer.Option(help="Binary weight bases per layer, as in ABC-Net.")] = 1,
    activation_bases: Annotated[int, typer.Option(help="Binary activation bases per layer.")] = 1,
    frozen: Annotated[
        bool,
        typer.Option(
            "--frozen", help="Also freeze it, with random weights, and say what its file and its layers take."
        ),
    ] = False,
    memory: Annotated[
        str, typer.Option(help="What --frozen keeps: fast (weights laid out for this machine too) or bits alone.")
    ] = "fast",
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON: flops, bops, memory_bits and more, per layer too.")
    ] = False,
) -> None:
    """Count MACs, BOPs, FLOPs, OPs, parameters and memory bits, per layer and in total."""
    from ..cost import count as count_network
    from .output import floats, integers, print_json

    if memory != "fast" and not frozen:
        raise ValueError(f"--memory={memory} is for --frozen, which is missing")
    code, size = floats("--ratios", ratios), integers("--input-size", input_size)
    options: dict[str, Any] = {
        "ratios": code[0] if code is not None and len(code) == 1 else code,
        "num_classes": num_classes,
        "base_width": base_width,
    }
    counted = count_network(
        model,
        size,
        rule,
        full_precision=full_precision,
        weight_bases=weight_bases,
        activation_bases=activation_bases,
        **options,
    )
    found = _freeze(model, memory, input_size=size, **options) if frozen else None
    if json:
        sizes = {} if found is None else {"frozen_bytes": found[0], "frozen_memory": found[1].to_dict()}
        print_json(counted.to_dict() | sizes)
        return
    typer.echo(str(counted))
    if found is not None:
        file_bytes, taken = found
        typer.echo(
            f"\nfrozen, the network takes a file of {file_bytes:,} bytes; in memory, bytes of its layers with "
            f"memory={memory!r}:\n{taken}"
        )


def _freeze(model: str, memory: Any, **options: Any) -> tuple[int, NetworkMemory]:
    """Size of the file that `bitnas.save` writes for the network, and what its layers take in memory."""
    import tempfile
    from pathlib import Path

    from ..models import create_model
    from ..packed import freeze, measure_memory, save

    network = freeze(create_model(model, **options), memory=memory)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frozen.safetensors"
        save(network, path)
        return path.stat().st_size, measure_memory(network)
