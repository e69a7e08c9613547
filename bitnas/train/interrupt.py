"""Ctrl-C between two steps instead of inside one, so that what is written then is a state the run really had."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupt:
    """Tells whether Ctrl-C was pressed. While `held()`, one press is only noted; a second one, or one outside, raises
    KeyboardInterrupt as usual.
    """

    def __init__(self) -> None:
        self.pressed = False

    @contextmanager
    def held(self, wanted: bool = True) -> Iterator[None]:
        """Note Ctrl-C in this block. Does nothing where Python does not handle it: in other threads, under a handler
        of the caller's.
        """
        in_main = threading.current_thread() is threading.main_thread()
        if not wanted or not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return

        def note(*_: Any) -> None:
            if self.pressed:
                raise KeyboardInterrupt
            self.pressed = True

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
