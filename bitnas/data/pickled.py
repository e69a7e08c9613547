"""Reads pickles of plain values and uint8 arrays without the means to run anything.

The pickle module builds whatever a file names. Here its opcodes are read as a notation: a global is a name out of a
short list, calling one is a case of a function below, and anything else ends the reading. So a file can at worst be
refused. It covers what NumPy's releases and Python 2 and 3 have written such data as, protocols 0 to 5.
"""

from __future__ import annotations

import math
import os
import pickletools
from typing import Any

import numpy as np

from bitnas.files import CorruptFileError

_CODEC = "_codecs.encode"  # how Python 3 writes bytes in protocols below 3
_NO_BYTES = "__builtin__.bytes"  # and none of them
_DTYPE, _NDARRAY = "numpy.dtype", "numpy.ndarray"
_RECONSTRUCT = {"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"}
_FROM_BUFFER = {"numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"}
_KNOWN = {_CODEC, _NO_BYTES, _DTYPE, _NDARRAY, *_RECONSTRUCT, *_FROM_BUFFER}

# Opcodes whose argument is the value itself. Python 2 strings arrive as text of the same bytes (latin-1).
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class _Refused(Exception):
    """The reason why a file is not read further."""


class _Global(str):
    """A name that stands for a class or function; never looked up."""

    __slots__ = ()


class _Uint8:
    """`numpy.dtype("uint8")`, the only one."""


class _Array:
    """An array that was announced and is filled by the BUILD that follows."""

    def __init__(self) -> None:
        self.values: np.ndarray | None = None


def read(path: str | os.PathLike[str], blob: bytes) -> Any:
    """The value that the pickle `blob` holds: dicts, lists, tuples, str, bytes, int, bool, None, uint8 arrays.

    A Python 2 string is a str of the same bytes (latin-1). Arrays are read-only. `path` is for messages.

    Raises CorruptFileError for anything else, damaged or not; it names the class or function that was asked for.
    """
    try:
        return _finished(_Reader(len(blob)).run(blob), {})
    except _Refused as error:
        raise CorruptFileError(path, str(error)) from None
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise CorruptFileError(path, f"is not a readable pickle ({error})") from error


class _Reader:
    """The stack, the marks and the memo of one file."""

    def __init__(self, size: int) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.spare = 2 * size  # bytes that may still be copied: text shared through the memo must not fill the memory

    def run(self, blob: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(blob):
            name = opcode.name
            if name in _VALUES:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in ("GLOBAL", "STACK_GLOBAL"):
                self.stack.append(self.known(name, argument))
            elif name == "STOP":
                return self.stack.pop()
            elif name not in ("PROTO", "FRAME"):
                step = getattr(self, f"on_{name.lower()}", None)
                if step is None:
                    raise _Refused(f"uses the pickle opcode {name}, which data of this kind do not need; refused")
                step(argument)
        raise _Refused("is cut short: the pickle has no end")

    def known(self, opcode: str, argument: Any) -> _Global:
        if opcode == "GLOBAL":
            module, _, name = argument.partition(" ")
        else:
            name, module = self.stack.pop(), self.stack.pop()
            if type(name) is not str or type(module) is not str:
                raise _Refused("asks for what is not a name; refused, nothing was run")
        full = f"{module}.{name}"
        if full not in _KNOWN:
            raise _Refused(f"asks for {full[:200]}, which no such data need; refused, nothing was run")
        return _Global(full)

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def on_mark(self, _: None) -> None:
        self.marks.append(len(self.stack))

    def on_pop(self, _: None) -> None:
        self.stack.pop()

    def on_put(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    on_binput = on_long_binput = on_put

    def on_memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def on_get(self, key: int) -> None:
        self.stack.append(self.memo[key])

    on_binget = on_long_binget = on_get

    def on_empty_tuple(self, _: None) -> None:
        self.stack.append(())

    def on_tuple(self, _: None) -> None:
        self.stack.append(tuple(self.since_mark()))

    def on_tuple1(self, _: None, count: int = 1) -> None:
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def on_tuple2(self, _: None) -> None:
        self.on_tuple1(_, 2)

    def on_tuple3(self, _: None) -> None:
        self.on_tuple1(_, 3)

    def on_empty_list(self, _: None) -> None:
        self.stack.append([])

    def on_list(self, _: None) -> None:
        self.stack.append(self.since_mark())

    def on_append(self, _: None) -> None:
        self.extend([self.stack.pop()])

    def on_appends(self, _: None) -> None:
        self.extend(self.since_mark())

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise _Refused("is not a readable pickle (it appends to what is no list)")
        self.stack[-1].extend(items)

    def on_empty_dict(self, _: None) -> None:
        self.stack.append({})

    def on_dict(self, _: None) -> None:
        items = self.since_mark()
        self.stack.append({})
        self.update(items)

    def on_setitem(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.update([key, value])

    def on_setitems(self, _: None) -> None:
        self.update(self.since_mark())

    def update(self, items: list[Any]) -> None:
        keys = items[0::2]
        if not isinstance(self.stack[-1], dict) or not all(type(key) in (str, bytes, int) for key in keys):
            raise _Refused("is not a readable pickle (a dict with keys that are neither text nor numbers)")
        self.stack[-1].update(zip(keys, items[1::2], strict=True))

    def on_reduce(self, _: None) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise _Refused("calls what is not a function; refused, nothing was run")
        self.stack.append(self.called(function, arguments))

    def called(self, function: _Global, arguments: tuple[Any, ...]) -> Any:
        if function == _CODEC and type(arguments[0]) is str and arguments[1:] in (("latin1",), ("latin-1",)):
            self.spend(arguments[0])
            return arguments[0].encode("latin-1")
        if function == _NO_BYTES and not arguments:
            return b""
        if function == _DTYPE:
            kind = arguments[0] if type(arguments[0]) is str else "an unnamed type"
            if kind not in ("u1", "|u1", "uint8"):
                raise _Refused(f"holds an array of {kind[:20]}, wanted uint8 (u1)")
            return _Uint8()
        if function in _RECONSTRUCT and arguments[0] == _NDARRAY:
            return _Array()
        if function in _FROM_BUFFER:
            data, dtype, shape, order = arguments
            self.spend(data)
            return _array(data, dtype, shape, column_major=order == "F")
        raise _Refused(f"calls {function} in a way that no such data do; refused, nothing was run")

    def spend(self, data: Any) -> None:
        self.spare -= len(data)
        if self.spare < 0:
            raise _Refused("repeats its contents more often than any data do; refused")

    def on_build(self, _: None) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, _Array):
            _version, shape, dtype, column_major, data = state
            self.spend(data)
            made.values = _array(data, dtype, shape, column_major=bool(column_major))
        elif not isinstance(made, _Uint8):  # NumPy also writes the state of its dtypes, which for uint8 says nothing
            raise _Refused("sets the state of what is no array; refused")


def _array(data: Any, dtype: Any, shape: Any, *, column_major: bool) -> np.ndarray:
    raw = data.encode("latin-1") if type(data) is str else bytes(data) if isinstance(data, bytes | bytearray) else None
    plain = isinstance(shape, tuple) and all(type(side) is int and side >= 0 for side in shape)
    if raw is None or not plain or not isinstance(dtype, _Uint8):
        raise _Refused("holds an array that is not uint8 with a plain shape")
    if math.prod(shape) != len(raw):
        raise _Refused(f"holds an array of shape {shape} with {len(raw)} bytes")
    return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if column_major else "C")


def _finished(value: Any, done: dict[int, Any]) -> Any:
    """The value with arrays in place of what announced them. `done`, by identity, keeps shared parts shared: a small
    file can refer to itself in such a way that copies of every mention would fill the memory.
    """
    if isinstance(value, _Array):
        if value.values is None:
            raise _Refused("holds an array without contents")
        return value.values
    if isinstance(value, _Global | _Uint8):
        raise _Refused("holds a class or a function where data should be")
    if not isinstance(value, dict | list | tuple):
        return value
    if id(value) not in done:
        if isinstance(value, dict):
            done[id(value)] = {key: _finished(item, done) for key, item in value.items()}
        else:
            done[id(value)] = type(value)([_finished(item, done) for item in value])
    return done[id(value)]
