"""PEP 517 backend: setuptools, asking only for the build tools that cannot be found.

The stable ABI lets the torch that is compiled against differ from the one run on, so any
torch already installed serves and an isolated build downloads no second one.
"""

import subprocess
from collections.abc import Mapping

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  the hooks that stay as they are
from torch_headers import find_torch

_Settings = Mapping[str, str | list[str] | None] | None


def _runs(tool: str) -> bool:
    """Whether the tool works here; one that pip installed is a script whose module an isolated build hides."""
    try:
        return subprocess.run([tool, "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


def _missing() -> list[str]:
    return ([] if find_torch() else ["torch>=2.11"]) + [tool for tool in ("cmake", "ninja") if not _runs(tool)]


def get_requires_for_build_wheel(config_settings: _Settings = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + _missing()


def get_requires_for_build_editable(config_settings: _Settings = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + _missing()
