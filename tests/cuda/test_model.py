"""The host model that runs CUDA kernels on a CPU: right kernels pass under every seed, and no mistake goes unseen."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEEDS = range(4)

CHECKS = [
    "arithmetic", "bytes", "float16", "host_threads", "indices", "launches", "named_barriers", "reduce", "shuffles",
    "mma/None", "wgmma/None",
]  # fmt: skip

WRONG_RESULT = "wrong: wrong == 0"
RACE = "a race: it (reads|writes) shared memory"
TOO_MANY = "more arrivals than the 1 of a phase"
# Mistakes, and what the model has to say about each, whatever the seed.
MISTAKES = {
    "copy_past_end": "16 bytes at 496 of 500 bytes of shared memory",
    "diverge": "lanes of a warp diverge",
    "fill_stack": "bytes of stack are full",
    "leave_early": "deadlock: 1 exited, 63 in __syncthreads",
    "read_unordered": RACE,
    "trap": "__trap",
    "unmatched_barrier": "a barrier of",
    "write_past_end": "an access outside shared memory|a write past the end of shared memory",
    "mma/CorrectionSign": WRONG_RESULT,
    "mma/DivergentLanes": "lanes of a warp diverge",
    "mma/NoBlockSync": RACE,
    "mma/NoCopyCommit": RACE,
    "mma/NoReadSwizzle": WRONG_RESULT,
    "mma/NoZeroFill": WRONG_RESULT,
    "mma/ShortAllocation": "16 bytes at 24560 of 24560 bytes of shared memory",
    "mma/WeakCopyWait": RACE,
    "wgmma/CorrectionSign": WRONG_RESULT,
    "wgmma/EarlyRelease": RACE,
    "wgmma/LocalRelease": RACE,
    "wgmma/MulticastToSelf": "deadlock",
    "wgmma/NoEmptyWait": f"{RACE}|{TOO_MANY}",
    "wgmma/NoFence": "before any wgmma_fence",
    "wgmma/NoFinalSync": "of the cluster has exited|the block exits while",
    "wgmma/NoFullWait": RACE,
    "wgmma/NoProductCommit": "exit without waiting for wgmma_and_popc",
    "wgmma/NoProductWait": "exit without waiting for wgmma_and_popc",
    "wgmma/PhaseNeverFlips": f"{RACE}|{TOO_MANY}",
    "wgmma/ShortExpect": f"{RACE}|deadlock",
    "wgmma/UnalignedTiles": "is not a multiple of 128",
    "wgmma/WarpsDiffer": "deadlock|a warp of a warp group did not execute",
    "wgmma/WeakProductWait": RACE,
    "wgmma/WrongConsumerPhase": f"{RACE}|deadlock",
    "wgmma/WrongProducerPhase": "deadlock",
    "wgmma/WrongStep": WRONG_RESULT,
    "wgmma/WrongStride": WRONG_RESULT,
}
# Some orders forgive these: the model must find one that does not.
FORGIVEN = {"wgmma/NoInitialSync": "no mbarrier was initialised there"}
# Right or wrong depending on the chip.
OF_A_CHIP = "multiply_bits"


@pytest.fixture(scope="module")
def selftest(tmp_path_factory):
    """Runs a case of model_selftest.cpp: its exit status and what it wrote to stderr."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("model")
    program = folder / "model_selftest"
    flags = ["-std=c++20", "-O1", "-pthread", "-DBITNAS_CUDA_MODEL", "-Wno-unknown-pragmas", f"-I{ROOT / 'csrc'}"]
    source = Path(__file__).with_name("model_selftest.cpp")
    subprocess.run([*compiler.split(), *flags, source, "-o", program], check=True)

    def run(*arguments: str, seed: int = 0, capability: int = 90) -> tuple[int, str, str]:
        environment = {"BITNAS_CUDA_MODEL_SEED": str(seed), "BITNAS_CUDA_MODEL_CC": str(capability)}
        # In its own folder: where aborts leave core files, they go away with it.
        done = subprocess.run([program, *arguments], env=environment, cwd=folder, capture_output=True, text=True,
                              timeout=60)  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    return run


def outcome(message: str) -> int:
    return 1 if message == WRONG_RESULT else -signal.SIGABRT


def test_every_case_is_here(selftest):
    assert set(selftest()[1].split()) == {*CHECKS, *MISTAKES, *FORGIVEN, OF_A_CHIP}


@pytest.mark.parametrize("seed", SEEDS)
def test_right_kernels_pass(selftest, seed):
    assert selftest(*CHECKS, seed=seed) == (0, "", "")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_seen(selftest, mistake):
    for seed in SEEDS:
        status, _, stderr = selftest(mistake, seed=seed)
        assert status == outcome(MISTAKES[mistake]), f"seed {seed}: {stderr}"
        assert re.search(MISTAKES[mistake], stderr), f"seed {seed}: {stderr}"
        assert len(stderr.splitlines()) == 1, f"seed {seed}: {stderr}"


@pytest.mark.parametrize("mistake", FORGIVEN)
def test_some_order_shows_the_mistake(selftest, mistake):
    runs = [selftest(mistake, seed=seed) for seed in range(8)]
    caught = [stderr for status, _, stderr in runs if status == -signal.SIGABRT]
    assert caught
    assert all(re.search(FORGIVEN[mistake], stderr) for stderr in caught)


def test_a_seed_is_a_schedule(selftest):
    # Where a race is seen depends on the order of things, and that on the seed alone.
    seen = {seed: {selftest("mma/NoBlockSync", seed=seed)[2] for _ in range(3)} for seed in SEEDS}
    assert all(len(messages) == 1 for messages in seen.values())
    assert len(set.union(*seen.values())) > 1


@pytest.mark.parametrize(("capability", "runs"), [(75, False), (80, True), (90, True), (100, False), (120, False)])
def test_operations_exist_on_the_chips_that_have_them(selftest, capability, runs):
    status, _, stderr = selftest(OF_A_CHIP, capability=capability)
    assert status == (0 if runs else -signal.SIGABRT), stderr
    assert runs or f"does not exist on compute capability {capability}" in stderr
