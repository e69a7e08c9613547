"""Packing: every dtype, layout and tail against the reference, and the conventions of bits one by one."""

import math
import random

import pytest
import torch

from bitnas import ops, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SPECIAL = [0.0, -0.0, 0.5, math.nextafter(0.5, 1), 1e-40, -1e-40, math.inf, -math.inf, math.nan, 65504.0, 6e-8]


def floats(shape, dtype, seed):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    special = torch.tensor(SPECIAL)
    flat = x.view(-1)
    flat[:: max(1, flat.numel() // 40)] = special[torch.arange(len(flat[:: max(1, flat.numel() // 40)])) % len(SPECIAL)]
    return x.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activations", ["sign", "unit"])
def test_pack_equals_reference(isa, threads, dtype, activations):
    rng = random.Random(0)
    for seed in range(60):
        shape = (
            rng.randint(0, 3),
            rng.choice((1, 3, 31, 32, 63, 64, 65, 100, 128, 130)),
            rng.randint(1, 9),
            rng.randint(1, 9),
        )
        x = floats(shape, dtype, seed)
        expected = reference.pack(x, ops.THRESHOLDS[activations])
        last = x.contiguous(memory_format=torch.channels_last)
        with threads():
            packed = [ops.pack(t, activations=activations) for t in (x, last, x.transpose(2, 3))]
        assert torch.equal(packed[0], expected)
        assert torch.equal(packed[1], expected)
        assert torch.equal(packed[2], expected.transpose(1, 2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_thresholds_and_directions_per_channel(isa, dtype):
    for channels in (1, 7, 8, 9, 63, 64, 65, 130):
        generator = torch.Generator().manual_seed(channels)
        threshold = torch.randn(channels, generator=generator)
        threshold[::9] = math.nan  # a channel that never gives a one
        direction = torch.where(torch.rand(channels, generator=generator) < 0.5, -1.0, 1.0)
        x = floats((2, channels, 5, 7), dtype, channels)
        expected = reference.pack(x, threshold, direction)
        for layout in (x, x.contiguous(memory_format=torch.channels_last)):
            assert torch.equal(torch.ops.bitnas.pack_channels(layout, threshold, direction), expected)
        rows = floats((3, channels), dtype, channels)
        assert torch.equal(
            torch.ops.bitnas.pack_channels(rows, threshold, direction), reference.pack(rows, threshold, direction)
        )


def test_conventions(isa):
    x = torch.tensor([[0.0, -0.0, -1e-45, 1e-45, math.nan, -math.inf, math.inf]])
    assert ops.pack(x).tolist() == [[0b1001011]]
    half = torch.tensor([[0.5, math.nextafter(0.5, 1), 0.5001, 1.0, math.nan, -1.0]])
    half[0, 1] = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0))
    assert ops.pack(half, activations="unit").tolist() == [[0b001110]]


def test_low_bit_first_and_tail_zero(isa):
    packed = ops.pack(torch.ones(1, 65))
    assert packed.tolist() == [[-1, 1]]


@pytest.mark.parametrize("activations", ["sign", "unit"])
def test_unpack_inverts_pack(isa, activations):
    for channels in (1, 63, 64, 65, 200):
        x = torch.randn(2, channels, 3, 4)
        values = ops.unpack(ops.pack(x, activations=activations), channels, activations=activations)
        assert torch.equal(values.double(), reference.binarize(x, activations))
        rows = torch.randn(5, channels)
        packed = ops.pack(rows, activations=activations)
        assert torch.equal(
            ops.unpack(packed, channels, activations=activations), reference.unpack(packed, channels, activations)
        )


def test_max_pool_of_bits_is_the_pool_of_values():
    rng = random.Random(3)
    for _ in range(200):
        channels, kernel = rng.choice((1, 63, 64, 65, 130)), (rng.randint(1, 3), rng.randint(1, 3))
        stride, padding = (rng.randint(1, 3), rng.randint(1, 3)), tuple(rng.randint(0, k // 2) for k in kernel)
        x = torch.randn(rng.randint(0, 3), channels, rng.randint(3, 9), rng.randint(3, 9))
        flip = torch.rand(channels) < 0.5
        words = reference.pack(flip.float()[None], 0.5)[0]
        pooled = torch.nn.functional.max_pool2d(x, kernel, stride, padding)
        out = torch.ops.bitnas.max_pool2d_bits(ops.pack(x), None, *kernel, *stride, *padding)
        assert torch.equal(out, ops.pack(pooled))
        out = torch.ops.bitnas.max_pool2d_bits(ops.pack(x), words, *kernel, *stride, *padding)
        assert torch.equal(out, ops.pack(pooled) ^ words)


def test_large_tensors_pack_on_two_threads(isa, threads):
    x = torch.randn(4, 96, 40, 40)
    with threads():
        packed, pooled = ops.pack(x), torch.ops.bitnas.max_pool2d_bits(ops.pack(x), None, 2, 2, 2, 2, 0, 0)
    assert torch.equal(packed, reference.pack(x))
    assert torch.equal(pooled, reference.pack(torch.nn.functional.max_pool2d(x, 2)))
