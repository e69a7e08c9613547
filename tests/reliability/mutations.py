"""Ways in which a file gets damaged, drawn from a seeded generator; any of them may also leave it as it was."""

import struct


def truncate(data, rng):
    return data[: rng.randrange(len(data))]


def flip(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def overwrite(data, rng):
    at, size = rng.randrange(len(data)), rng.choice([1, 4, 64, 512])
    return data[:at] + rng.randbytes(min(size, len(data) - at)) + data[at + size :]


def append(data, rng):
    return data + rng.choice([bytes, rng.randbytes])(rng.choice([1, 7, 64, 4096]))


def swap(data, rng):
    size = rng.choice([1, 16, 512])
    one, two = sorted(rng.randrange(max(1, len(data) - size)) for _ in range(2))
    if two < one + size:
        two = one + size
    return data[:one] + data[two : two + size] + data[one + size : two] + data[one : one + size] + data[two + size :]


def splice(data, rng):
    """A part is missing, or there twice."""
    one, two = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:one] + data[two:] if rng.random() < 0.5 else data[:two] + data[one:]


def zero_fill(data, rng):
    """Blocks that a file system never wrote."""
    at, size = rng.randrange(len(data)), rng.choice([1, 16, 512, 4096])
    return data[:at] + bytes(min(size, len(data) - at)) + data[at + size :]


def header_size(data, rng):
    """The first eight bytes, safetensors' length of the header, say something else."""
    value = rng.choice([0, 1, 8, len(data), len(data) - 8, 2**31, 2**32 - 1, 2**63, 2**64 - 1, rng.randrange(2**16)])
    return struct.pack("<Q", value) + data[8:]


def digits(data, rng):
    """One digit is another one: damage that stays well-formed."""
    places = [at for at, byte in enumerate(data[:100_000]) if 48 <= byte <= 57]
    if not places:
        return flip(data, rng)
    at = rng.choice(places)
    return data[:at] + bytes([rng.choice([b for b in range(48, 58) if b != data[at]])]) + data[at + 1 :]


ALL = [truncate, flip, overwrite, append, swap, splice, zero_fill, header_size, digits]
