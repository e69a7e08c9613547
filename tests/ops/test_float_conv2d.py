"""The float convolution of few channels: rounded as its header says, the same on every instruction set."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bitnas import ops

CHANNELS_LAST = torch.channels_last
NO_POOL = (1, 1, 1, 1, 0, 0)
_floats = torch.ops.bitnas.float_conv2d.default
_bits = torch.ops.bitnas.float_conv2d_bits.default


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_taps(weight):
    return weight.permute(2, 3, 1, 0).contiguous()


def defined(x, weight, bias, stride, padding):
    """One fma after the other. 64 bits of mantissa hold a product exactly, so that only the sum is rounded, to 24."""
    out, _, kernel_h, kernel_w = weight.shape
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0])).numpy().astype(np.longdouble)
    height = (padded.shape[2] - kernel_h) // stride[0] + 1
    width = (padded.shape[3] - kernel_w) // stride[1] + 1
    y = np.zeros((x.shape[0], out, height, width), dtype=np.float32)
    if bias is not None:
        y += bias.numpy()[:, None, None]
    w = weight.numpy().astype(np.longdouble)
    for ky in range(kernel_h):
        for kx in range(kernel_w):
            rows = slice(ky, ky + (height - 1) * stride[0] + 1, stride[0])
            columns = slice(kx, kx + (width - 1) * stride[1] + 1, stride[1])
            for c in range(x.shape[1]):
                y = (y + padded[:, None, c, rows, columns] * w[:, c, ky, kx][:, None, None]).astype(np.float32)
    return torch.from_numpy(y)


def case(seed):
    """A random geometry in which everything fits."""
    draw = random.Random(seed)
    while True:
        x = normal(draw.randint(0, 3), draw.randint(1, 5), draw.randint(1, 20), draw.randint(1, 40), seed=seed)
        kernel = draw.randint(1, 5), draw.randint(1, 5)
        stride, padding = (draw.randint(1, 4), draw.randint(1, 3)), (draw.randint(0, 3), draw.randint(0, 3))
        out = draw.choice((1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64, 70, 130))
        window = (draw.randint(1, 4), draw.randint(1, 4)) if seed % 3 else (1, 1)
        pool = (*window, draw.randint(1, 3), draw.randint(1, 3), *(draw.randint(0, side // 2) for side in window))
        pool = pool if seed % 3 else NO_POOL
        sides = [(x.shape[2 + i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in range(2)]
        if all(side >= 1 and side + 2 * pool[4 + i] >= window[i] for i, side in enumerate(sides)):
            break
    weight, bias = normal(out, x.shape[1], *kernel, seed=seed + 1), normal(out, seed=seed + 2)
    if draw.random() < 0.5:
        x = x.contiguous(memory_format=CHANNELS_LAST)
    return x, weight, bias if draw.random() < 0.7 else None, stride, padding, draw.random() < 0.3, pool


@pytest.mark.parametrize("first", range(0, 60, 12))
def test_random_shapes(first, isa, threads):
    for seed in range(first, first + 12):
        x, weight, bias, stride, padding, relu, pool = case(seed)
        wanted = defined(x, weight, bias, stride, padding)
        wanted = wanted.relu() if relu else wanted
        wanted = F.max_pool2d(wanted, pool[:2], pool[2:4], pool[4:]) if wanted.numel() else wanted
        channels = weight.shape[0]
        cut, direction = normal(channels), torch.where(normal(channels, seed=1) > 0, 1.0, -1.0)
        geometry = (*stride, *padding, relu, *pool)
        with threads():
            floats = _floats(x, by_taps(weight), bias, *geometry)
            beside, bits = _bits(x, by_taps(weight), bias, cut, direction, True, *geometry)
            none, alone = _bits(x, by_taps(weight), bias, cut, direction, False, *geometry)
        assert floats.is_contiguous(memory_format=CHANNELS_LAST)
        if x.shape[0]:
            assert torch.equal(floats, wanted), seed
        assert torch.equal(beside, floats)
        assert torch.equal(bits, torch.ops.bitnas.pack_channels(floats, cut, direction))
        assert torch.equal(alone, bits)
        assert none.numel() == 0


@pytest.mark.parametrize("first", range(0, 24, 12))
def test_a_scale_and_a_prelu_follow_the_sums(first, isa, threads):
    for seed in range(first, first + 12):
        x, weight, bias, stride, padding, _, pool = case(seed)
        channels = weight.shape[0]
        bias = normal(channels, seed=seed + 2) if bias is None else bias
        scale, slope = normal(2, channels, seed=seed + 3)
        scale, slope = (scale if seed % 3 else None), (slope if seed % 4 else None)
        wanted = defined(x, weight, None if scale is not None else bias, stride, padding)
        if scale is not None:
            wanted = wanted * scale.view(-1, 1, 1) + bias.view(-1, 1, 1)
        if slope is not None:
            wanted = torch.where(wanted >= 0, wanted, slope.view(-1, 1, 1) * wanted)
        wanted = F.max_pool2d(wanted, pool[:2], pool[2:4], pool[4:]) if wanted.numel() else wanted
        geometry = (*stride, *padding, False, *pool, scale, slope)
        with threads():
            floats = _floats(x, by_taps(weight), bias, *geometry)
            cut, direction = normal(channels), torch.where(normal(channels, seed=1) > 0, 1.0, -1.0)
            beside, bits = _bits(x, by_taps(weight), bias, cut, direction, True, *geometry)
        if x.shape[0]:
            assert torch.equal(floats, wanted), seed
        assert torch.equal(beside, floats)
        assert torch.equal(bits, torch.ops.bitnas.pack_channels(floats, cut, direction))


def test_a_prelu_of_values_that_are_not_finite(isa):
    x = torch.tensor([1.0, torch.nan, -torch.inf, torch.inf, -2.0, -0.0]).view(1, 1, 1, 6)
    slope = torch.full((33,), 0.5)
    y = _floats(x, torch.ones(1, 1, 1, 33), None, 1, 1, 0, 0, False, *NO_POOL, None, slope)
    for channel in (0, 15, 16, 32):
        torch.testing.assert_close(y[0, channel].flatten(), F.prelu(x, slope[:1]).flatten(), equal_nan=True)


def test_values_that_are_not_finite(isa):
    x, weight = torch.ones(1, 1, 1, 6), torch.ones(33, 1, 1, 1)
    x[0, 0, 0] = torch.tensor([1.0, torch.nan, -torch.inf, torch.inf, -2.0, -0.0])
    y = _floats(x, by_taps(weight), None, 1, 1, 0, 0, False, *NO_POOL)
    assert torch.equal(y[0, 5].flatten().isnan(), x.flatten().isnan())
    relu = _floats(x, by_taps(weight), None, 1, 1, 0, 0, True, *NO_POOL)
    torch.testing.assert_close(relu[0, 32].flatten(), x.flatten().relu(), equal_nan=True)
    pooled = _floats(x, by_taps(weight), None, 1, 1, 0, 0, False, 1, 3, 1, 1, 0, 1)
    wanted = F.max_pool2d(x, (1, 3), 1, (0, 1)).flatten()
    for channel in (0, 15, 16, 32):
        torch.testing.assert_close(pooled[0, channel].flatten(), wanted, equal_nan=True)


@pytest.mark.parametrize("threads_count", [1, 2, 5])
def test_an_image_cut_for_many_threads(threads_count, isa):
    x, weight = normal(1, 3, 37, 21), normal(20, 3, 7, 7, seed=1)
    geometry = (2, 2, 3, 3, False, 3, 3, 2, 2, 1, 1)
    wanted = _floats(x, by_taps(weight), None, *geometry)
    torch.set_num_threads(threads_count)
    try:
        assert torch.equal(_floats(x, by_taps(weight), None, *geometry), wanted)
    finally:
        torch.set_num_threads(1)


X, WEIGHT = normal(1, 3, 8, 8), by_taps(normal(4, 3, 3, 3))
PLAIN = (1, 1, 1, 1, False, *NO_POOL)
REFUSED = {
    "dtype": ((X.half(), WEIGHT, None), (), "x must be float32"),
    "rank": ((X[0], WEIGHT, None), (), "x must be"),
    "layout": ((X.transpose(2, 3), WEIGHT, None), (), "x must be contiguous"),
    "weight layout": ((X, WEIGHT.transpose(0, 1), None), (), "weight must be a contiguous float32 tensor"),
    "channels": ((normal(1, 2, 8, 8), WEIGHT, None), (), "weight has 3 input channels, x has 2"),
    "bias": ((X, WEIGHT, torch.zeros(5)), (), "bias must be a contiguous float32 tensor of 4 elements"),
    "scale": ((X, WEIGHT, torch.zeros(4)), (*PLAIN, torch.zeros(3)), "scale must be a contiguous float32 tensor of 4"),
    "slope": ((X, WEIGHT, None), (*PLAIN, None, torch.zeros(4).double()), "slope must be a contiguous float32 tensor"),
    "scale alone": ((X, WEIGHT, None), (*PLAIN, torch.ones(4)), "scale needs a bias"),
    "slope and relu": (
        (X, WEIGHT, None),
        (1, 1, 1, 1, True, *NO_POOL, None, torch.ones(4)),
        "slope and relu exclude each other",
    ),
    "stride": ((X, WEIGHT, None), (0, 1, 1, 1, False, *NO_POOL), "stride must be between 1 and 2"),
    "padding": ((X, WEIGHT, None), (1, 1, -1, 1, False, *NO_POOL), "padding must be between 0 and 2"),
    "huge padding": ((X, WEIGHT, None), (1, 1, 2**40, 1, False, *NO_POOL), "padding must be between 0 and 2|too large"),
    "small image": ((X[:, :, :2, :2], WEIGHT, None), (1, 1, 0, 0, False, *NO_POOL), "larger than the padded image"),
    "window": ((X, WEIGHT, None), (1, 1, 1, 1, False, 0, 1, 1, 1, 0, 0), "pooling window must be positive"),
    "window padding": ((X, WEIGHT, None), (1, 1, 1, 1, False, 3, 3, 1, 1, 2, 1), "between 0 and half the window"),
    "large window": ((X, WEIGHT, None), (1, 1, 1, 1, False, 9, 9, 1, 1, 0, 0), "a pooling window of 9x9 is larger"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input(name):
    tensors, geometry, message = REFUSED[name]
    if not tensors[0].is_contiguous() and name != "layout":
        tensors = (tensors[0].contiguous(), *tensors[1:])
    with pytest.raises(RuntimeError, match=message):
        _floats(*tensors, *(geometry or (1, 1, 1, 1, False, *NO_POOL)))


def test_cut_and_direction_are_checked():
    geometry = (1, 1, 1, 1, False, *NO_POOL)
    for cut, direction, name in (
        (torch.zeros(3), torch.ones(4), "cut"),
        (torch.zeros(4), torch.ones(4).int(), "direction"),
    ):
        with pytest.raises(RuntimeError, match=f"{name} must be a contiguous float32 tensor of 4 elements"):
            _bits(X, WEIGHT, None, cut, direction, True, *geometry)


def test_every_instruction_set_rounds_alike():
    """On values of very different magnitude, where another order of summation shows."""
    scale = torch.logspace(-6, 6, 3).view(1, 3, 1, 1)
    x, weight = normal(2, 3, 20, 20) * scale, normal(40, 3, 5, 5, seed=1)
    before, found = ops.cpu_isa(), []
    try:
        for name in ops.cpu_isas():
            ops.select_cpu_isa(name)
            found.append(_floats(x, by_taps(weight), None, 1, 1, 2, 2, False, *NO_POOL))
    finally:
        ops.select_cpu_isa(before)
    assert all(torch.equal(y, found[0]) for y in found)
    assert torch.equal(found[0], defined(x, weight, None, (1, 1), (2, 2)))
