"""What bench_conv2d.py and bench_gemm.py share: a process per instruction set, rows collected as they come, a file.

torch, oneDNN, FBGEMM and faiss read their limits once, when they are loaded, and a comparison is fair only where all
may use the same instructions. So every instruction set has a process of its own, which writes one JSON object a line:
``{"row": {...}}``, ``{"progress": [done, total, what]}`` or ``{"left_out": {peer: why}}``.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitnas import ops
from bitnas.cost import machine
from bitnas.cost.cpu_timing import cache_bytes

RESULTS = Path(__file__).parent / "results"

# glibc keeps what is freed, so results are written to memory that the process has. By default it gives large buffers
# back after every call, and the kernel clears them anew: as long as some of the calls themselves, and different from
# one run to the next. All that allocate their results in every call gain alike: bitnas, torch, one way of numkong.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}

# How long a process may take to end when it is asked to; then it is ended.
PATIENCE_SECONDS = 5.0

Row = dict[str, Any]


@dataclass
class Collected:
    """What the processes measured. ``problem``: why it is not everything; None where it is."""

    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)  # by instruction set and peer
    problem: str | None = None


def parser_for(doc: str | None) -> argparse.ArgumentParser:
    """The options of both scripts."""
    cores = machine.facts()["cores"]
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", help="instruction sets with commas (default: all that this CPU has kernels for)")
    parser.add_argument("--threads", default="1,2" if cores > 1 else "1", help="thread counts with commas")
    parser.add_argument("--seconds", type=float, help="time for each row and thread count")
    parser.add_argument("--quick", action="store_true", help="a few rows, to see that it works; writes nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for results and pictures")
    parser.add_argument("--no-plot", action="store_true", help="no pictures (they need matplotlib)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser


def thread_counts(options: argparse.Namespace) -> tuple[int, ...]:
    """Raises SystemExit where they are no numbers of threads."""
    try:
        counts = tuple(int(part) for part in options.threads.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise SystemExit(f"--threads: got {options.threads!r}, wanted numbers of threads with commas, such as 1,2")
    return counts


def wanted_isas(options: argparse.Namespace) -> list[str]:
    """Fastest first: what is cut short then holds what matters most. Raises SystemExit for one this CPU lacks."""
    isas = ops.cpu_isas()
    wanted = options.isa.split(",") if options.isa else isas[::-1]
    if unknown := [isa for isa in wanted if isa not in isas]:
        raise SystemExit(f"--isa: got {unknown[0]!r}, this CPU and build run {', '.join(isas)}")
    return wanted


def say(kind: str, value: Any) -> None:
    """In the process of one instruction set: a line for the one that collects."""
    print(json.dumps({kind: value}), flush=True)


def as_child(measure: Callable[[], None]) -> int:
    """The whole life of such a process. Ctrl-C reaches it too, and ends it without a trace."""
    try:
        measure()
    except KeyboardInterrupt:
        return 130
    return 0


def collect(
    script: Path,
    isas: Sequence[str],
    arguments: Sequence[str],
    limits: Mapping[str, Mapping[str, str]],
    *,
    on_rows: Callable[[str, list[Row]], None],
    advance: Callable[[str, int, int], None],
) -> Collected:
    """Runs the script once per instruction set. Never raises for what a process does: it stops, and says why.

    Args:
        arguments: of every process.
        limits: environment of each instruction set's process.
        on_rows: called with an instruction set and all of its rows.
        advance: told what is at work, how much is done, and how much there is.
    """
    found = Collected()
    for isa in isas:
        environment = {**os.environ, **KEEP_MEMORY, **limits.get(isa, {}), "BITNAS_ISA": isa}
        command = [sys.executable, str(script), "--child", *arguments]
        rows: list[Row] = []
        child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            assert child.stdout is not None
            for line in child.stdout:
                for kind, value in json.loads(line).items():
                    if kind == "row":
                        rows.append(value)
                    elif kind == "progress":
                        done, total, what = value
                        advance(f"{isa}: {what}", done, total)
                    elif kind == "left_out":
                        found.left_out.setdefault(isa, {}).update(value)
            if child.wait() != 0:
                found.problem = f"the process for {isa} ended with {child.returncode}"
        except KeyboardInterrupt:
            found.problem = "interrupted"
        finally:
            stop(child)
        found.rows += rows
        on_rows(isa, rows)
        if found.problem:
            break
    return found


def stop(child: subprocess.Popen[str]) -> None:
    """Ends a process that has not ended: it may be in the middle of a long call."""
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if child.stdout is not None:
        child.stdout.close()


def busy_cores(seconds: float = 0.5) -> float | None:
    """How many cores others keep busy while this process waits; None where the system does not tell."""

    def ticks() -> int:
        first, _, _ = Path("/proc/stat").read_text().partition("\n")
        user, nice, system, _idle, _waiting, *others = map(int, first.split()[1:])
        return user + nice + system + sum(others[:3])  # interrupts, and what the host took away

    try:
        before, start = ticks(), time.perf_counter()
        time.sleep(seconds)
        return (ticks() - before) / os.sysconf("SC_CLK_TCK") / (time.perf_counter() - start)
    except (OSError, ValueError):
        return None


def machine_facts() -> dict[str, Any]:
    """Of the package, and what a reader of cold times must know too."""
    caches = {f"l{level}_bytes": cache_bytes(level) for level in (1, 2, 3)}
    return {**machine.facts(), **caches, "amx": has_amx(), "busy_cores": busy_cores()}


def has_amx() -> bool:
    """Whether this CPU has AMX, whatever this build has for it."""
    try:
        return " amx_int8" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def warn_if_busy(facts: Mapping[str, Any]) -> None:
    if (facts["busy_cores"] or 0) > 0.2:
        print(f"others keep {facts['busy_cores']:.1f} cores busy: times will be too long", file=sys.stderr)


def slug(facts: Mapping[str, Any]) -> str:
    """A machine's name for files."""
    name = f"{facts['cpu']} {facts['cores']} cores".lower()
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")
