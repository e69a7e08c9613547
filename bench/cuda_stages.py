"""Everything that a GPU machine is needed for, unattended: `make bench-cuda`.

    python bench/cuda_stages.py                     # all stages that are not finished
    python bench/cuda_stages.py --stage gemm        # this one again (--stage shapes: all that begin with it)
    python bench/cuda_stages.py --fresh             # all, from the start

Each stage is a process of its own with less than ten minutes to run. What is finished is recorded, for these very
sources, and skipped the next time: after Ctrl-C, or on the next machine, the rest goes on. A stage that fails is
recorded with its reason and does not stop the others.

In the folder for results: <gpu>.json, the readings; <gpu>.stages.json, what became of each stage; <gpu>.log, all
output. Needs torch with CUDA, numpy, and for the build cmake, ninja, setuptools and nvcc; no network.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from cuda_goals import goals_table, judge, table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"

SHAPES, CHUNKS = 100_000, 10
SANITIZED_SHAPES = 200

Record = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """``command`` runs in the repository's root; with ``result`` it is given ``--json PATH`` and what it writes there
    becomes part of the readings. ``missing`` says why the stage cannot run here, or None."""

    name: str
    command: tuple[str, ...]
    budget: int  # seconds
    result: bool = False
    missing: Callable[[], str | None] = lambda: None
    environment: dict[str, str] = field(default_factory=dict)


def find_sanitizer() -> str | None:
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")


def no_sanitizer() -> str | None:
    return None if find_sanitizer() else "compute-sanitizer is neither on PATH nor in /usr/local/cuda/bin"


def no_pytest() -> str | None:
    return None if importlib.util.find_spec("pytest") else "pytest is not installed; the shapes stages need none"


def stages() -> list[Stage]:
    """In order: what everything else stands on, the readings, then the long tests."""
    python = sys.executable

    def bench(part: str, budget: int) -> Stage:
        return Stage(part, (python, "bench/bench_cuda.py", part), budget, result=True)

    def shapes(chunk: int) -> Stage:
        command = (python, "tests/cuda/gpu_shapes.py", f"--count={SHAPES // CHUNKS}", f"--seed={chunk}")
        return Stage(f"shapes-{chunk}", command, 570)

    def sanitize(tool: str) -> Stage:
        sanitizer = (find_sanitizer() or "compute-sanitizer", f"--tool={tool}", "--error-exitcode=9")
        command = (python, "tests/cuda/gpu_shapes.py", f"--count={SANITIZED_SHAPES}", "--every-kernel")
        # Every tensor an allocation of its own: inside the allocator's blocks no access is out of bounds.
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        return Stage(f"sanitize-{tool}", (*sanitizer, *command), 570, missing=no_sanitizer, environment=alone)

    pytest = (python, "-m", "pytest", "-p", "no:cacheprovider", "-m", "cuda and not slow")
    return [
        Stage("build", (python, "setup.py", "build_ext", "--inplace"), 580, environment=build_environment()),
        bench("doctor", 180),
        bench("peaks", 180),
        Stage("tests", (*pytest, "tests/cuda/test_gpu_kernels.py"), 570, missing=no_pytest),
        bench("gemm", 300),
        bench("conv", 570),
        bench("trunk", 300),
        bench("kernels", 570),
        *(sanitize(tool) for tool in ("memcheck", "racecheck", "initcheck", "synccheck")),
        *(shapes(chunk) for chunk in range(CHUNKS)),
    ]


def build_environment() -> dict[str, str]:
    """For this GPU alone, unless the caller says otherwise: other architectures take most of the time."""
    wanted = "-DBITNAS_CUDA=ON -DBITNAS_CUDA_ARCHITECTURES=native"
    return {"CMAKE_ARGS": os.environ.get("CMAKE_ARGS", wanted)}


def sources_id(root: Path = ROOT) -> str:
    """What stands for the kernels that a record is about: a build is not the same to the byte on two machines."""
    digest = hashlib.sha256()
    for path in [root / "CMakeLists.txt", *sorted(path for path in (root / "csrc").rglob("*") if path.is_file())]:
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    temporary.replace(path)


class Runner:
    """Runs stages and keeps their records and readings in a folder."""

    def __init__(self, folder: Path, slug: str, sources: str) -> None:
        self.results_path = folder / f"{slug}.json"
        self.records_path = folder / f"{slug}.stages.json"
        self.log_path = folder / f"{slug}.log"
        self.sources = sources
        folder.mkdir(parents=True, exist_ok=True)
        self.results = read_json(self.results_path)
        self.records: dict[str, Record] = read_json(self.records_path)

    def forget(self) -> None:
        for path in (self.results_path, self.records_path, self.log_path):
            path.unlink(missing_ok=True)
        self.results, self.records = {}, {}

    def is_finished(self, stage: Stage) -> bool:
        """For the kernels as they are now. The build itself is never finished: it finds out what has changed."""
        record = self.records.get(stage.name, {})
        return stage.name != "build" and record.get("status") == "done" and record.get("sources") == self.sources

    def run(self, stage: Stage) -> Record:
        """Runs the stage and records what became of it. Raises KeyboardInterrupt, having recorded nothing."""
        start = time.monotonic()
        reason = stage.missing()
        if reason is not None:
            status = "skipped"
        else:
            self.results.pop(stage.name, None)
            status, reason = self._run_command(stage)
        seconds = round(time.monotonic() - start, 1)
        record = {"status": status, "reason": reason, "seconds": seconds, "sources": self.sources}
        self.records[stage.name] = record
        self.results["goals"] = judge(self.results)
        write_json(self.results_path, self.results)
        write_json(self.records_path, self.records)
        return record

    def _run_command(self, stage: Stage) -> tuple[str, str | None]:
        part = self.results_path.with_suffix(".part")
        part.unlink(missing_ok=True)
        command = [*stage.command, *(["--json", str(part)] if stage.result else [])]
        with open(self.log_path, "a+b") as log:
            log.write(f"\n==== {stage.name}: {' '.join(stage.command)}\n".encode())
            log.flush()  # ahead of what the command writes
            begin = log.seek(0, os.SEEK_END)
            try:
                code = run_with_budget(command, stage.budget, log, stage.environment)
            except OSError as error:
                return "failed", str(error)
            log.seek(begin)
            output = log.read().decode(errors="replace")
        if code is None:
            return "failed", f"not finished within {stage.budget} s"
        if code != 0:
            return "failed", f"exit code {code}: {last_line(output)}"
        if stage.result:
            try:
                self.results[stage.name] = json.loads(part.read_text())
            except (OSError, ValueError) as error:
                return "failed", f"left no readings: {error}"
            part.unlink()
        return "done", None


def run_with_budget(command: Sequence[str], budget: float, log: IO[bytes], environment: dict[str, str]) -> int | None:
    """The exit code, or None where the time was up. Whatever the command has started ends with it."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(paths), **environment}
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **variables},
        start_new_session=True,
    )
    try:
        return child.wait(timeout=budget)
    except subprocess.TimeoutExpired:
        end_group(child)
        return None
    except BaseException:
        end_group(child)
        raise


def end_group(child: subprocess.Popen[bytes], grace: float = 5.0) -> None:
    """Asks the process and all it has started to end, and makes them after a while."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, sign)
        except ProcessLookupError:
            break
        try:
            child.wait(timeout=grace)
        except subprocess.TimeoutExpired:
            continue
    child.wait()


def last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def no_gpu() -> str | None:
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a CPU build"
    return None if torch.cuda.is_available() else "torch finds no usable GPU or driver"


def gpu_slug() -> str:
    import torch

    name = torch.cuda.get_device_properties(0).name
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def chosen(wanted: str | None) -> list[Stage]:
    """All stages, or those of that name, or whose name begins with it and a dash. Raises ValueError: there is none."""
    known = stages()
    found = [stage for stage in known if wanted in (None, stage.name, stage.name.partition("-")[0])]
    if not found:
        raise ValueError(f"--stage {wanted!r}: stages are {', '.join(stage.name for stage in known)}")
    return found


def run_stages(runner: Runner, wanted: Sequence[Stage], *, again: bool = False) -> int:
    """Runs what is not finished, or all of it ``again``; prints a line per stage. Exit code 1 where one failed."""
    try:
        for stage in wanted:
            if runner.is_finished(stage) and not again:
                print(f"{stage.name}: finished before")
                continue
            print(f"{stage.name} ...", flush=True)
            record = runner.run(stage)
            print(f"{stage.name}: {said(record)}", flush=True)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    return int(any(runner.records[stage.name]["status"] == "failed" for stage in wanted))


def said(record: Record) -> str:
    reason = f": {record['reason']}" if record["reason"] else ""
    return f"{record['status']} in {record['seconds']:.0f} s{reason}"


def summary(runner: Runner) -> str:
    """What became of the stages, and of the goals, on one page."""
    rows = []
    for name, record in runner.records.items():
        older = "" if record["sources"] == runner.sources else ", with other kernels"
        rows.append([name, record["status"] + older, f"{record['seconds']:.0f}"])
    machine = runner.results.get("doctor", {}).get("machine", {})
    gpu = machine.get("gpu") or {}
    where = f"{gpu.get('name')}, driver {gpu.get('driver')}, torch {machine.get('torch')}\n\n" if gpu else ""
    return f"{where}{table(['stage', 'result', 's'], rows)}\n\n{goals_table(runner.results)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", help="run this one, finished or not")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for results (default bench/results)")
    parser.add_argument("--fresh", action="store_true", help="forget what is finished, and its readings")
    options = parser.parse_args()
    try:
        wanted = chosen(options.stage)
    except ValueError as error:
        parser.error(str(error))
    if why := no_gpu():
        print(f"bench-cuda: no usable GPU here: {why}", file=sys.stderr)
        return 1
    runner = Runner(options.out, gpu_slug(), sources_id())
    if options.fresh:
        runner.forget()
    code = run_stages(runner, wanted, again=options.stage is not None)
    if code != 130:
        print(f"\n{summary(runner)}\n\nreadings: {runner.results_path}; all output: {runner.log_path}")
    return code


if __name__ == "__main__":
    sys.exit(main())
