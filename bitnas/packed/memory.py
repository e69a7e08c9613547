"""What a frozen network takes in memory: what a file of it holds, and what is kept beside that for speed."""

from dataclasses import asdict, dataclass
from typing import Any

from bitnas.packed.layers import Memory, PackedLayer
from bitnas.packed.network import PackedNetwork


@dataclass(frozen=True)
class LayerMemory:
    """Bytes of one step's layer.

    ``saved``: its tensors in the state dict; weights of binary layers at one bit. ``prepared``: those weights laid out
    for a kernel, and constants of its epilogue; made from the saved tensors, never in a file.
    """

    name: str
    kind: str
    saved: int
    prepared: int


@dataclass(frozen=True)
class NetworkMemory:
    """Bytes of a frozen network's tensors by layer. Values that pass through the network are not among them."""

    memory: Memory
    layers: tuple[LayerMemory, ...]

    @property
    def saved(self) -> int:
        """What a file holds beside its description; :func:`bitnas.packed.packed_bytes`."""
        return sum(layer.saved for layer in self.layers)

    @property
    def prepared(self) -> int:
        return sum(layer.prepared for layer in self.layers)

    @property
    def float_layers(self) -> int:
        """The part of ``saved`` that layers take which stayed in float, the first and the last as a rule."""
        return sum(layer.saved for layer in self.layers if layer.kind.startswith("float_"))

    @property
    def total(self) -> int:
        return self.saved + self.prepared

    def to_dict(self) -> dict[str, Any]:
        """Totals and layers as JSON."""
        totals = {name: getattr(self, name) for name in ("saved", "prepared", "float_layers", "total")}
        return {"memory": self.memory, **totals, "layers": [asdict(layer) for layer in self.layers]}

    def __str__(self) -> str:
        rows = [(layer.name, layer.kind, f"{layer.saved:,}", f"{layer.prepared:,}") for layer in self.layers]
        rows = [("layer", "kind", "saved", "prepared"), *rows, ("total", "", f"{self.saved:,}", f"{self.prepared:,}")]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        return "\n".join(
            f"{name:{widths[0]}}  {kind:{widths[1]}}  {saved:>{widths[2]}}  {prepared:>{widths[3]}}"
            for name, kind, saved, prepared in rows
        )


def measure_memory(frozen: PackedNetwork) -> NetworkMemory:
    """Counts the bytes of a frozen network's tensors, layer by layer.

    Raises:
        TypeError: not a frozen network.
    """
    if not isinstance(frozen, PackedNetwork):
        raise TypeError(f"frozen must be what bitnas.freeze returns, got {type(frozen).__name__}")
    layers = []
    for step in frozen.steps:
        layer = frozen._modules.get(step.name)
        if layer is None:
            continue
        saved = sum(tensor.nbytes for tensor in layer.state_dict().values())
        prepared = layer.prepared_bytes() if isinstance(layer, PackedLayer) else 0
        if saved or prepared:
            layers.append(LayerMemory(step.name, step.kind, saved, prepared))
    return NetworkMemory(frozen.describe()["memory"], tuple(layers))
