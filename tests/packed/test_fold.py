"""Folded thresholds against the definition y = fl32(fl32(s * x) + t), for every integer and for floats of all kinds."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from bitnas import reference
from bitnas.packed.fold import ChannelAffine, float_threshold, fold_affine, integer_threshold

LIMIT = {"sign": np.float32(0), "unit": np.nextafter(np.float32(0.5), np.float32(1))}
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
TINY = float(np.float32(1e-45))


def affine(*pairs):
    scale, bias = zip(*pairs, strict=True)
    return ChannelAffine(torch.tensor(scale, dtype=torch.float32), torch.tensor(bias, dtype=torch.float32))


def defined(folded, values, activations):
    """Bits ``[values, channels]``."""
    with np.errstate(over="ignore", invalid="ignore"):
        product = folded.scale.numpy() * values.astype(np.float32)[:, None]
        return product + folded.bias.numpy() >= LIMIT[activations]


def check_integers(folded, activations, largest):
    dots = np.arange(-largest, largest + 1)
    threshold, flip = integer_threshold(folded, activations, largest)
    assert threshold.dtype == torch.int32
    bits = (dots[:, None] >= threshold.numpy()) != flip.numpy()
    assert (bits == defined(folded, dots, activations)).all()


@pytest.mark.parametrize("activations", ["sign", "unit"])
@settings(max_examples=150, deadline=None)
@given(pairs=st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=20), largest=st.integers(1, 600))
@example(pairs=[(0.0, 0.0), (-0.0, -0.0), (0.0, -1.0), (-0.0, 1.0), (TINY, -TINY), (-TINY, TINY)], largest=5)
@example(pairs=[(3e38, -3e38), (-3e38, 3e38), (3e38, 3e38), (1e-38, -1e-36)], largest=513)
def test_integer_threshold_gives_every_bit_of_the_definition(activations, pairs, largest):
    check_integers(affine(*pairs), activations, largest)


@pytest.mark.parametrize("activations", ["sign", "unit"])
def test_integers_on_the_threshold(activations):
    """Channels built so that s * k + t is the limit itself, or off by the last bit, for an integer k in range."""
    generator = np.random.default_rng(0)
    scale = generator.normal(size=3000).astype(np.float32) * np.float32(10.0) ** generator.integers(-6, 6, 3000)
    k = generator.integers(-576, 577, 3000).astype(np.float32)
    bias = LIMIT[activations] - scale.astype(np.float32) * k
    for nudged in (bias, np.nextafter(bias, np.float32(np.inf)), np.nextafter(bias, np.float32(-np.inf))):
        folded = ChannelAffine(torch.from_numpy(scale.astype(np.float32)), torch.from_numpy(nudged.astype(np.float32)))
        check_integers(folded, activations, 576)


def test_the_longest_dot_product():
    largest = 2**30
    threshold, flip = integer_threshold(affine((1, -1e9), (0, -1), (0, 1), (-1, -1e9)), "sign", largest)
    # float32 steps by 64 there: an integer 32 below the limit already rounds up to it.
    assert threshold.tolist() == [10**9 - 32, largest + 1, -largest, -(10**9) + 33]
    assert flip.tolist() == [False, False, False, True]


def special_values(folded):
    """Zeros, denormals, infinities, random bit patterns, and the neighbours of every threshold."""
    generator = np.random.default_rng(1)
    patterns = generator.integers(0, 2**32, 4000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    fixed = np.float32([0.0, -0.0, 1e-45, -1e-45, 1e-40, -1e-40, 1.17549435e-38, 1, -1, 0.5, 3.4e38, -3.4e38])
    with np.errstate(all="ignore"):
        roots = [(limit - folded.bias.numpy()) / folded.scale.numpy() for limit in LIMIT.values()]
    near = [np.concatenate(roots).astype(np.float32)]
    for direction in (np.float32(np.inf), np.float32(-np.inf)):
        for _ in range(3):
            with np.errstate(over="ignore"):
                near.append(np.nextafter(near[-1], direction))
    values = np.concatenate([patterns, fixed, *near])
    return np.append(values[np.isfinite(values)], np.float32([np.inf, -np.inf]))


def check_floats(folded, activations):
    values = special_values(folded)
    threshold, direction = float_threshold(folded, activations)
    assert threshold.dtype == direction.dtype == torch.float32
    bits = direction.numpy() * values[:, None] >= threshold.numpy()
    wanted = defined(folded, values, activations)
    ignores = folded.scale.numpy() == 0  # 0 * inf is no number: outside the contract
    same = bits == wanted
    same[-2:, ignores] = True
    assert same.all()
    # The packing kernel on the same numbers, a NaN among them.
    columns = torch.from_numpy(np.append(values, np.float32(np.nan)))[:, None].expand(-1, len(threshold)).contiguous()
    packed = torch.ops.bitnas.pack_channels(columns, threshold, direction)
    assert torch.equal(packed, reference.pack(columns, threshold, direction))
    assert not packed[-1].any()


@pytest.mark.parametrize("activations", ["sign", "unit"])
@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=12))
@example(pairs=[(0.0, 0.0), (-0.0, -0.0), (0.0, -1.0), (-0.0, 1.0), (TINY, -TINY), (-TINY, TINY), (3e38, -3e38)])
@example(pairs=[(1.0, 0.0), (-1.0, 0.0), (1.0, -0.5), (-1.0, 0.5), (1e-38, -1e-38), (-3e38, 1e-45)])
def test_float_threshold_gives_every_bit_of_the_definition(activations, pairs):
    check_floats(affine(*pairs), activations)


def test_the_threshold_of_a_channel_that_never_gives_a_one_is_infinite():
    threshold, _ = float_threshold(affine((0, -1), (0, 1)), "sign")
    assert threshold.isinf().tolist() == [True, False]
    assert threshold[0] > 0


def test_fold_affine_is_the_evaluated_norm():
    norm = nn.BatchNorm2d(5).eval()
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        tensor.normal_(generator=torch.Generator().manual_seed(3))
    norm.running_var.uniform_(0.1, 3)
    scale, bias = torch.rand(5) + 0.1, torch.randn(5)
    x = torch.randn(4, 5, 3, 3)
    folded = fold_affine(scale, bias, norm, "layer")
    shape = (1, 5, 1, 1)
    wanted = norm(x * scale.view(shape) + bias.view(shape))
    torch.testing.assert_close(x * folded.scale.view(shape) + folded.bias.view(shape), wanted)


@pytest.mark.parametrize("term", ["scale", "bias"])
def test_fold_affine_names_the_layer_that_is_not_finite(term):
    terms = {"scale": torch.ones(2), "bias": torch.zeros(2)}
    terms[term] = torch.tensor([1.0, torch.inf])
    with pytest.raises(ValueError, match=r"block\.conv: .*not finite"):
        fold_affine(terms["scale"], terms["bias"], None, "block.conv")
