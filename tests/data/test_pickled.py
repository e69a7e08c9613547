"""Pickles of data are read as any Python and NumPy wrote them; those that want to run something are refused."""

import contextlib
import os
import pickle
import pickletools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnas.data import pickled
from bitnas.files import CorruptFileError

ARRAY = np.arange(24, dtype=np.uint8).reshape(4, 6)
# The opcodes that Python 2 with NumPy 1.6 wrote the distributed files with: protocol 2, byte strings, no frames.
PYTHON_2 = (
    b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
    b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
    b"K\x00tb\x89U\x06\x00\x01\x7f\x80\xfe\xfftbU\x06labelsq\x08]q\t(K\x06K\x09eu."
)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("array", [ARRAY, np.asfortranarray(ARRAY), ARRAY[:0]])
def test_every_protocol(protocol, array):
    value = {b"data": array, "labels": [1, -2, 3000, 2**40], "t": ("é", None, True, b"\xff\0", [], {})}
    found = pickled.read("x", pickle.dumps(value, protocol))
    assert np.array_equal(found.pop(b"data"), array)
    assert found == {key: item for key, item in value.items() if key != b"data"}


def test_python_2():
    found = pickled.read("x", PYTHON_2)
    assert found["labels"] == [6, 9]
    assert found["data"].tolist() == [[0, 1, 127], [128, 254, 255]]
    assert found["data"].dtype == np.uint8
    oracle = pickle.loads(PYTHON_2, encoding="latin1")
    assert np.array_equal(oracle["data"], found["data"])


class Payload:
    def __init__(self, call, *arguments):
        self.reduced = call, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_payload_is_named_and_not_run(protocol, tmp_path):
    mark = tmp_path / "ran"
    blob = pickle.dumps({"data": Payload(os.system, f"touch {mark}")}, protocol)
    with pytest.raises(CorruptFileError, match=r"batch_1: asks for (posix|nt)\.system, .*nothing was run"):
        pickled.read("batch_1", blob)
    assert not mark.exists()
    pickle.loads(blob)
    assert mark.exists()  # so it was a real one


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Payload(eval, "1"), "eval"),
        (Payload(getattr, "a", "upper"), "getattr"),
        (np.arange(3), "an array of i8, wanted uint8"),
        (np.array([None]), "an array of O8, wanted uint8"),
        (np.dtype("u1"), "a class or a function"),
        (np.ndarray, "a class or a function"),
        ({1.5: 0}, "BINFLOAT|FLOAT"),
        ({(1, 2): 0}, "keys that are neither text nor numbers"),
        ({1, 2}, "set|EMPTY_SET"),
        (Payload(np.dtype, ("u1", "u1")), "an array of an unnamed type"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_other_contents_are_refused(value, message, protocol):
    with pytest.raises(CorruptFileError, match=message):
        pickled.read("x", pickle.dumps(value, protocol))


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"", "not a readable pickle"),
        (b"\x80\x02", "not a readable pickle"),
        (b"\x80\x02.", "not a readable pickle"),
        (b"\x80\x02]q\x01h\x01a.", "not a readable pickle"),  # a list that holds itself
        (b"\x80\x02(K\x01K\x02u.", "not a readable pickle"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "not a readable pickle"),  # two gigabytes announced
        (b"\x80\x02K\x01K\x02R.", "calls what is not a function"),
        (b"\x80\x02h\x05.", "not a readable pickle"),
        (b"\x80\x02cnumpy\nndarray\n)R.", "calls numpy.ndarray in a way"),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R.", "without contents"),
        (PYTHON_2.replace(b"K\x02K\x03\x86", b"K\x02K\x04\x86"), "shape (2, 4) with 6 bytes"),
        (b"\x80\x04(i__main__\nX\n.", "opcode INST"),
    ],
)
def test_damaged_and_hostile(blob, message):
    with pytest.raises(CorruptFileError, match=message.replace("(", r"\(").replace(")", r"\)")):
        pickled.read("x", blob)


def test_memory_is_bounded():
    # A list of lists of lists ..., each holding the one before ten times: 10^40 elements if it were copied.
    blob = b"\x80\x02]q\x00" + b"".join(b"](" + b"h%c" % n * 10 + b"eq%c" % (n + 1) for n in range(40)) + b"."
    assert len(pickled.read("x", blob)) == 10
    text = b"X" + (10_000).to_bytes(4, "little") + b"a" * 10_000 + b"q\x01"
    encode = b"c_codecs\nencode\nh\x01U\x06latin1\x86R"
    with pytest.raises(CorruptFileError, match="repeats its contents"):
        pickled.read("x", b"\x80\x02(" + text + encode * 1000 + b"l.")


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, len(PYTHON_2) - 1), byte=st.integers(0, 255), cut=st.booleans())
def test_any_damage_gives_a_value_or_a_refusal(place, byte, cut):
    blob = PYTHON_2[:place] if cut else PYTHON_2[:place] + bytes([byte]) + PYTHON_2[place + 1 :]
    with contextlib.suppress(CorruptFileError):
        pickled.read("x", blob)


def test_the_fixture_is_what_it_says():
    names = {opcode.name for opcode, _, _ in pickletools.genops(PYTHON_2)}
    assert {"SHORT_BINSTRING", "GLOBAL", "REDUCE", "BUILD", "SETITEMS", "APPENDS"} <= names
