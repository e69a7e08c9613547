"""Searches in tests take their latencies in a hurry: what is tested is what becomes of them."""

import pytest

from bitnas.methods.width import evaluate


@pytest.fixture(autouse=True, scope="session")
def quick_timings():
    before = evaluate._SEARCH_SECONDS, evaluate._FRONT_SECONDS
    evaluate._SEARCH_SECONDS = evaluate._FRONT_SECONDS = 0.02
    yield
    evaluate._SEARCH_SECONDS, evaluate._FRONT_SECONDS = before
