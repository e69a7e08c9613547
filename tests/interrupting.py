"""Ctrl-C for commands in processes of their own."""

import signal
import subprocess
from typing import NamedTuple


class Ended(NamedTuple):
    """How a process ended, and what it had still to say."""

    code: int
    out: str
    err: str


def interrupted(command: list[str], at: str, **options) -> Ended:
    """Start a command and send it SIGINT at the first line of stderr that begins with `at`."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(at):
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return Ended(process.returncode, out, err)
