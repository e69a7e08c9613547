"""Searches in tests take their latencies in a hurry: what is tested is what becomes of them."""

import pytest

from bitnas.methods import candidates


@pytest.fixture(autouse=True, scope="session")
def quick_timings():
    before = candidates.SEARCH_SECONDS, candidates.FRONT_SECONDS
    candidates.SEARCH_SECONDS = candidates.FRONT_SECONDS = 0.02
    yield
    candidates.SEARCH_SECONDS, candidates.FRONT_SECONDS = before
