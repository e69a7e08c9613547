"""Pictures of results of bench_conv2d.py and bench_gemm.py: how many times as fast, and the roofline.

    python bench/cpu_plots.py bench/results/<machine>-conv2d.json

draws those of a file again, beside it. SVG, light, meant to be read at a width of 800 pixels. The only file of bench/
that needs matplotlib.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from cpu_peaks import bound_gops
from cpu_report import groups_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

Row = dict[str, Any]

# Told apart by lightness too, for those who do not see the colours.
PEER_COLOURS = {
    "float32": "#9ecae1",
    "bfloat16": "#4292c6",
    "int8": "#08519c",
    "numkong": "#d94801",
    "faiss": "#fdae6b",
    "numpy": "#d9d9d9",
}
ISA_COLOURS = {"amx": "#3f007d", "avx512": "#d94801", "avx2": "#238b45", "scalar": "#969696"}
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small, and found by a search
    "svg.hashsalt": "bitnas",  # the same rows give the same file
}
WIDTH = 8.0  # inches, of 100 pixels
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)


def draw(result: Mapping[str, Any], stem: Path) -> list[Path]:
    """Writes ``<stem>-ratios.svg`` and, of convolutions, ``<stem>-roofline.svg``: one thread, warm caches.

    Returns the files that were written; none where no row was measured on one thread.
    """
    rows = [row for row in result["rows"] if row["threads"] == 1]
    if not rows:
        return []
    pictures = {"ratios": ratios_picture}
    if "problem" not in result["peaks"] and "operations_per_byte" in rows[0]:
        pictures["roofline"] = roofline_picture
    paths = []
    with mpl.rc_context(STYLE):
        for name, picture in pictures.items():
            paths.append(Path(f"{stem}-{name}.svg"))
            picture(result, rows).savefig(paths[-1], metadata={"Date": None})
    return paths


def where(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    return f"{machine['cpu']}, torch {machine['torch']}, one thread"


def add_title(figure: Figure, text: str, handles: Sequence[Any], columns: int) -> None:
    """Above the panels, with the legend below it."""
    inch = 1 / figure.get_figheight()
    figure.text(0.01, 1 - 0.06 * inch, text, ha="left", va="top", fontsize=10)
    place = 0, 1 - 0.22 * inch
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=place, ncols=columns, columnspacing=1.2)
    lines = -(-len(handles) // columns)
    figure.tight_layout(rect=(0, 0, 1, 1 - (0.3 + 0.19 * lines) * inch))


# ---- times as fast ---------------------------------------------------------------------------------


def ratios_picture(result: Mapping[str, Any], rows: Sequence[Row]) -> Figure:
    """Bars of peer time / bitnas time of the fastest instruction set measured: a column of panels per network, a panel
    per batch size."""
    isa = [isa for isa in result["machine"]["isas"] if any(row["isa"] == isa for row in rows)][-1]
    chosen = [row for row in rows if row["isa"] == isa]
    peers = [peer for peer in PEER_COLOURS if any(peer in row["ms"] for row in chosen)]
    networks = groups_of(chosen, ["network"]) if "network" in chosen[0] else [((), chosen)]
    columns = [groups_of(group, ["batch"]) for _, group in networks]
    lines, widths = max(map(len, columns)), [max(len(rows) for _, rows in column) for column in columns]
    figure = Figure(figsize=(WIDTH, 0.8 + 2.4 * lines))
    axes = figure.subplots(lines, len(columns), sharey=True, squeeze=False, gridspec_kw={"width_ratios": widths})
    for panel in axes.flat:
        panel.set_visible(False)
    for place, (column, (network, _)) in enumerate(zip(columns, networks, strict=True)):
        for line, ((batch,), group) in enumerate(column):
            axes[line][place].set_visible(True)
            bars(axes[line][place], group, peers)
            if network:
                axes[line][place].set_title(f"{network[0]}, batch {batch}", loc="left")
    ratios = [row["ms"][peer] / row["ms"]["bitnas"] for row in chosen for peer in peers if peer in row["ms"]]
    axes[0][0].set_ylim(min(0.8, 0.9 * min(ratios, default=1)), max(2, 1.2 * max(ratios, default=1)))
    handles = [Patch(color=PEER_COLOURS[peer], label=peer) for peer in peers]
    add_title(figure, f"bitnas with {isa} kernels, times as fast as its peers; {where(result)}", handles, len(handles))
    return figure


def bars(panel: Axes, rows: Sequence[Row], peers: Sequence[str]) -> None:
    """On a logarithmic axis, from 1: a bar that goes down is of a peer that is faster."""
    width = 0.8 / max(1, len(peers))
    for place, peer in enumerate(peers):
        for index, row in enumerate(rows):
            if peer in row["ms"]:
                height = row["ms"][peer] / row["ms"]["bitnas"] - 1
                left = index - 0.4 + place * width
                panel.bar(left, height, width * 0.92, bottom=1, align="edge", color=PEER_COLOURS[peer])
    panel.axhline(1, color="#404040", linewidth=0.8)
    panel.set_yscale("log")
    panel.set_yticks(TICKS, [f"{tick:g}x" for tick in TICKS])
    panel.yaxis.minorticks_off()
    panel.grid(axis="y")
    panel.set_xticks(range(len(rows)), [row["name"] for row in rows], rotation=35, ha="right", rotation_mode="anchor")
    panel.tick_params(axis="x", length=0)
    panel.set_xlim(-0.6, len(rows) - 0.4)


# ---- roofline --------------------------------------------------------------------------------------


def roofline_picture(result: Mapping[str, Any], rows: Sequence[Row]) -> Figure:
    """Operations a second over operations per byte that must move at least, below what the machine can do. Peers are
    those that were held to the fastest instruction set measured."""
    isas = [isa for isa in ISA_COLOURS if any(row["isa"] == isa for row in rows)]
    peers = [peer for peer in PEER_COLOURS if any(row["isa"] == isas[0] and peer in row["ms"] for row in rows)]
    shown = [("bitnas", isa, ISA_COLOURS[isa]) for isa in isas]
    shown += [(peer, isas[0], PEER_COLOURS[peer]) for peer in peers]
    batches = sorted({row["batch"] for row in rows})
    figure = Figure(figsize=(WIDTH, 4.8))
    panel = figure.subplots()
    handles = []
    for name, isa, colour in shown:
        for large in (False, True):
            points = [
                (row["operations_per_byte"][name], row["gops"][name])
                for row in rows
                if row["isa"] == isa and name in row["ms"] and (row["batch"] > batches[0]) == large
            ]
            if points:
                panel.plot(*zip(*points, strict=True), "s" if large else "o", color=colour, markersize=4)
        label = f"bitnas {isa}" if name == "bitnas" else name
        handles.append(Line2D([], [], marker="o", linestyle="", color=colour, label=label))
    for marker, group in (("o", batches[:1]), ("s", batches[1:])):
        if group:
            label = f"batch {' or '.join(map(str, group))}"
            handles.append(Line2D([], [], marker=marker, linestyle="", color="#404040", label=label))
    intensities = [row["operations_per_byte"][name] for row in rows for name in ("bitnas", *peers) if name in row["ms"]]
    draw_roofs(panel, result["peaks"], isas, (min(intensities) / 2, max(intensities) * 2))
    panel.set(xscale="log", yscale="log")
    panel.set_xlabel("operations per byte (activations, weights and results moved once)")
    panel.set_ylabel("10⁹ operations a second")
    panel.grid()
    add_title(figure, f"Roofline; {where(result)}", handles, 4)
    return figure


def draw_roofs(panel: Axes, peaks: Mapping[str, Any], isas: Sequence[str], reach: tuple[float, float]) -> None:
    """What the main loops allow, and what reading from the L2 and from memory does."""
    left, right = reach
    panel.set_xlim(left, right)
    levels = {isa: gops for isa in isas if (gops := bound_gops(peaks, isa)) is not None}
    top = max([*levels.values(), 1.0])
    for level, name, height in (("l2", "L2", 0.5), ("memory", "memory", 0.25)):
        rate = peaks["read"][level]["gb_per_s"]
        if left * rate < top:
            panel.plot([left, top / rate], [left * rate, top], color="#737373", linewidth=1)
            place = height * top / rate * 1.1, height * top
            panel.text(*place, f"{name}, {rate:.0f} GB/s", va="center", color="#525252")
    right_of_lines = max(left, top / peaks["read"]["memory"]["gb_per_s"]) * 1.1
    for isa, gops in levels.items():
        panel.axhline(gops, color=ISA_COLOURS[isa], linewidth=1, linestyle="--")
        text = f"{isa} main loop at most"
        panel.text(right_of_lines, gops * 1.03, text, va="bottom", color=ISA_COLOURS[isa])


if __name__ == "__main__":
    for name in sys.argv[1:]:
        for picture in draw(json.loads(Path(name).read_text()), Path(name).with_suffix("")):
            print(picture)
