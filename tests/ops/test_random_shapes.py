"""Every kernel against float64 torch, by equality, on random shapes: int32, float and bit epilogues alike."""

import os
import random

import pytest
import torch
from shapes import edge_cases, random_case

from bitnas import ops, reference

# Per instruction set, by threads: two on small shapes mostly test the splitting.
ALL = int(os.environ.get("BITNAS_TEST_SHAPES", "2000"))
SHAPES = {1: ALL * 17 // 20, 2: ALL * 3 // 20}
MANY = {1: 80_000, 2: 20_000}


def kernels_beside(kernel):
    """How many kernels share the shapes of an instruction set; a name is <isa>_<algorithm>."""
    names = [name.partition("_")[0] for name in ops.cpu_kernels()]
    return max(1, names.count(kernel.partition("_")[0]))


def float_options(rng, dots, generator):
    """Random arguments of the float epilogue: residual (some of fewer channels, which repeat), slope, dtype."""
    dtype = rng.choice((None, torch.float32, torch.bfloat16, torch.float16))
    channels = rng.randint(1, dots.shape[1]) if rng.random() < 1 / 3 else dots.shape[1]
    residual = torch.randn((dots.shape[0], channels, *dots.shape[2:]), generator=generator).to(dtype or torch.float32)
    if dots.dim() == 4:
        residual = residual.contiguous(memory_format=torch.channels_last)
    slope = torch.randn(dots.shape[1], generator=generator)
    return {
        "residual": residual if rng.random() < 0.5 else None,
        "slope": slope if rng.random() < 0.5 else None,
        "dtype": dtype,
    }


def check(case, threads, prepared_too):
    x, weight = case.tensors()
    dots = reference.conv2d(x.double(), weight, case.activations, **case.geometry)
    generator = torch.Generator().manual_seed(case.seed)
    n = case.out_channels
    threshold = torch.randint(-25, 25, (n,), generator=generator, dtype=torch.int32)
    flip = torch.rand(n, generator=generator) < 0.5
    flip_words = reference.pack(flip.float()[None], 0.5)[0]
    scale, bias, cut, direction = torch.randn(4, n, generator=generator)
    direction = direction.sign()
    rng = random.Random(case.seed)
    options = float_options(rng, dots, generator) | {"relu": rng.random() < 0.5}
    cuts = torch.randn(rng.randint(1, 3), n, generator=generator)
    directions = torch.randn(cuts.shape, generator=generator).sign()
    with threads():
        out = ops.conv2d(x, weight, activations=case.activations, **case.geometry)
        packed, packed_weight = ops.pack(x, activations=case.activations), ops.pack_weight(weight)
        prepared = torch.ops.bitnas.prepare_weight(packed_weight, case.channels, case.groups) if prepared_too else None
        bits = torch.ops.bitnas.conv2d_bits(packed, packed_weight, prepared, threshold, flip_words, *case.flat)
        floats = torch.ops.bitnas.conv2d_float(packed, packed_weight, prepared, scale, bias, *case.flat)
        both = torch.ops.bitnas.conv2d_float_bits(
            packed, packed_weight, prepared, scale, bias, cut, direction, *case.flat, **options
        )
        several = torch.ops.bitnas.conv2d_float_bits(
            packed, packed_weight, prepared, scale, bias, cuts, directions, *case.flat, **options
        )
    expected = reference.float_epilogue(dots, scale, bias, **options)
    assert both[0].dtype == expected.dtype
    assert torch.equal(both[0], expected), (case, options)
    assert torch.equal(both[1], reference.pack(expected, cut, direction)), (case, options)
    assert torch.equal(several[0], expected), (case, options)
    assert len(several[1]) == len(cuts)
    for bits_of, own, way in zip(several[1], cuts, directions, strict=True):
        assert torch.equal(bits_of, reference.pack(expected, own, way)), (case, options)
    assert out.dtype == torch.int32
    assert torch.equal(out, dots), case
    assert torch.equal(bits, reference.threshold_bits(dots, threshold, flip)), case
    assert torch.equal(floats, reference.affine(dots, scale, bias)), case
    assert floats.is_contiguous(memory_format=torch.channels_last) or floats.numel() == 0


def test_random_convolutions_equal_float64_torch(kernel, threads):
    with threads() as count:
        rng = random.Random(f"{kernel}-{count}")
    for i in range(SHAPES[count] // kernels_beside(kernel)):
        check(random_case(rng), threads, prepared_too=i % 2 == 0)


@pytest.mark.slow
def test_many_random_convolutions(kernel, threads):
    with threads() as count:
        rng = random.Random(os.environ.get("BITNAS_TEST_SEED", f"many {kernel}-{count}"))
    for i in range(MANY[count] // kernels_beside(kernel)):
        check(random_case(rng), threads, prepared_too=i % 2 == 0)


@pytest.mark.slow
def test_every_small_edge(kernel):
    """A grid, not a sample: words, lanes and nibbles just or not quite filled, on images of a few pixels."""
    shapes = 0
    for case in edge_cases():
        x, weight = case.tensors()
        packed, packed_weight = ops.pack(x, activations=case.activations), ops.pack_weight(weight)
        dots = reference.conv2d(x, weight, case.activations, **case.geometry)
        assert torch.equal(torch.ops.bitnas.conv2d_int32(packed, packed_weight, None, *case.flat), dots), case
        threshold = torch.arange(case.out_channels, dtype=torch.int32) % 7 - 3
        bits = torch.ops.bitnas.conv2d_bits(packed, packed_weight, None, threshold, None, *case.flat)
        assert torch.equal(bits, reference.threshold_bits(dots, threshold)), case
        shapes += 1
    assert shapes >= 50_000


@pytest.mark.parametrize("activations", ["sign", "unit"])
def test_random_matrix_products_equal_float64_torch(kernel, threads, activations):
    rng = random.Random(f"{kernel}-{activations}")
    for _ in range(ALL // 10):
        m = rng.choice((0, 1, 2, 3, 5, 8, 63, 64, 65, 130))
        n = rng.choice((1, 2, 15, 16, 17, 63, 64, 65, 127, 129))
        k = rng.choice((1, 3, 63, 64, 65, 255, 256, 257, 511, 512, 513, 1000))
        generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
        x, weight = torch.randn(m, k, generator=generator) + 0.3, torch.randn(n, k, generator=generator)
        dots = reference.linear(x, weight, activations)
        threshold = torch.randint(-9, 9, (n,), generator=generator, dtype=torch.int32)
        scale, bias = torch.randn(2, n, generator=generator)
        with threads():
            out = ops.linear(x, weight, activations=activations)
            packed, packed_weight = ops.pack(x, activations=activations), ops.pack_weight(weight)
            unit = activations == "unit"
            bits = torch.ops.bitnas.linear_bits(packed, packed_weight, None, threshold, None, k, unit)
            floats = torch.ops.bitnas.linear_float(packed, packed_weight, None, scale, bias, k, unit)
            options = float_options(rng, dots, generator)
            more = torch.ops.bitnas.linear_float(packed, packed_weight, None, scale, bias, k, unit, **options)
        assert torch.equal(more, reference.float_epilogue(dots, scale, bias, **options)), (m, n, k, options)
        assert torch.equal(out, dots), (m, n, k)
        assert torch.equal(bits, reference.threshold_bits(dots, threshold))
        assert torch.equal(floats, reference.affine(dots, scale, bias))


def test_large_layers_split_over_threads(kernel, threads):
    """Big enough that rows, panels and images really are shared out."""
    generator = torch.Generator().manual_seed(0)
    for batch, channels, out, size, groups in [
        (1, 128, 256, 14, 1),
        (1, 96, 70, 28, 1),
        (3, 64, 64, 20, 1),
        (8, 48, 48, 16, 2),
    ]:
        x = torch.randn(batch, channels, size, size, generator=generator)
        weight = torch.randn(out, channels // groups, 3, 3, generator=generator)
        expected = reference.conv2d(x, weight, padding=1, groups=groups)
        with threads():
            out = ops.conv2d(x, weight, padding=1, groups=groups)
        assert torch.equal(out, expected)


@pytest.mark.parametrize("bits", [1 << 16, (1 << 16) + 1, 1 << 20])
@pytest.mark.parametrize("activations", ["sign", "unit"])
@pytest.mark.parametrize("value", [1.0, -1.0])
def test_accumulators_hold_the_longest_rows(kernel, bits, activations, value):
    x = torch.ones(2, bits)
    weight = torch.full((3, bits), value)
    assert torch.equal(
        ops.linear(x, weight, activations=activations), torch.full((2, 3), int(value) * bits, dtype=torch.int32)
    )
    alternating = torch.tensor([1.0, -1.0]).repeat(bits // 2 + 1)[None, :bits]
    assert torch.equal(
        ops.linear(alternating, -alternating, activations=activations),
        reference.linear(alternating, -alternating, activations),
    )


@pytest.mark.parametrize("activations", ["sign", "unit"])
def test_long_rows_through_every_epilogue(kernel, activations):
    """Few outputs of many products: where a kernel may cut the sum into parts."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 20_000, generator=generator), torch.randn(70, 20_000, generator=generator)
    dots, unit = reference.linear(x, weight, activations), activations == "unit"
    scale, bias = torch.randn(2, 70, generator=generator)
    threshold = torch.randint(-200, 200, (70,), generator=generator, dtype=torch.int32)
    packed, packed_weight = ops.pack(x, activations=activations), ops.pack_weight(weight)
    arguments = (packed, packed_weight, None)
    assert torch.equal(ops.linear(x, weight, activations=activations), dots)
    assert torch.equal(
        torch.ops.bitnas.linear_bits(*arguments, threshold, None, 20_000, unit),
        reference.threshold_bits(dots, threshold),
    )
    options = {"residual": torch.randn(3, 70, generator=generator).bfloat16(), "slope": bias, "dtype": torch.bfloat16}
    assert torch.equal(
        torch.ops.bitnas.linear_float(*arguments, scale, bias, 20_000, unit, **options),
        reference.float_epilogue(dots, scale, bias, **options),
    )


def test_extreme_thresholds_are_constants(kernel):
    packed, weight = ops.pack(torch.ones(2, 100)), ops.pack_weight(torch.ones(3, 100))
    extremes = {-(2**31): 0b111, -100: 0b111, 100: 0b111, 101: 0, 2**31 - 1: 0}
    for threshold, expected in extremes.items():
        bits = torch.ops.bitnas.linear_bits(packed, weight, None, torch.full((3,), threshold).int(), None, 100, False)
        assert bits.tolist() == [[expected]] * 2, threshold


def test_wide_kernel_accumulates(kernel):
    """5x5 over 3,072 channels, where a 16-bit accumulator would wrap."""
    x, weight = torch.ones(1, 3072, 6, 6), torch.ones(2, 3072, 5, 5)
    assert torch.equal(ops.conv2d(x, weight, padding=2), reference.conv2d(x, weight, padding=2))


@pytest.mark.parametrize(
    ("channels", "window", "dilation"),
    [(7168, 3, 1), (530, 11, 1), (512, 11, 2), (129, 17, 2), (1, 150, 1), (3, 120, 2), (64_020, 1, 1), (64_021, 1, 1),
     (64_508, 1, 1), (64_511, 1, 1), (64_512, 1, 1), (64_513, 1, 1), (65_535, 1, 1), (65_536, 1, 1)],
)  # fmt: skip
def test_counters_hold_differences_everywhere(kernel, channels, window, dilation):
    """Every bit differs, around what 16 bits hold: runs decide how full a counter is when it is emptied."""
    side = dilation * (window - 1) + 1
    x, weight = torch.ones(1, channels, side, side), -torch.ones(2, channels, window, window)
    dot = -channels * window * window
    packed, packed_weight = ops.pack(x), ops.pack_weight(weight)
    arguments = (packed, packed_weight, None)
    geometry = (channels, 1, 1, 0, 0, dilation, dilation, 1, False)
    assert (torch.ops.bitnas.conv2d_int32(*arguments, *geometry) == dot).all()
    threshold = torch.tensor([dot, dot + 1], dtype=torch.int32)
    assert torch.ops.bitnas.conv2d_bits(*arguments, threshold, None, *geometry).item() == 0b01


@pytest.mark.parametrize("window", [(21, 1), (300, 1), (1, 40)])
def test_windows_with_more_kinds_of_borders_than_pixels(kernel, window):
    """Tall and wide kernels under deep padding: every output position misses other taps."""
    x, weight = torch.randn(2, 70, 30, 25), torch.randn(5, 70, *window)
    padding = (window[0] // 2, window[1] // 2)
    assert torch.equal(ops.conv2d(x, weight, padding=padding), reference.conv2d(x, weight, padding=padding))


def test_a_weight_prepared_for_another_layer_is_not_used(kernel):
    """A stale prepared tensor must never change a result: it is recognised and made anew."""
    x, weight, other = torch.randn(1, 64, 5, 5), torch.randn(32, 64, 3, 3), torch.randn(32, 32, 3, 3)
    packed, packed_weight = ops.pack(x), ops.pack_weight(weight)
    stale = torch.ops.bitnas.prepare_weight(ops.pack_weight(other), 32, 1)
    arguments = (64, 1, 1, 1, 1, 1, 1, 1, False)
    expected = reference.conv2d(x, weight, padding=1)
    for prepared in (stale, torch.zeros(0, dtype=torch.uint8), torch.zeros(10_000, dtype=torch.uint8)):
        assert torch.equal(torch.ops.bitnas.conv2d_int32(packed, packed_weight, prepared, *arguments), expected)


def test_a_weight_prepared_for_one_instruction_set_serves_under_another():
    x, weight = torch.randn(1, 70, 5, 5), torch.randn(33, 70, 3, 3)
    packed, packed_weight, before = ops.pack(x), ops.pack_weight(weight), ops.cpu_isa()
    expected = reference.conv2d(x, weight, padding=1)
    try:
        for made_for in ops.cpu_isas():
            ops.select_cpu_isa(made_for)
            prepared = torch.ops.bitnas.prepare_weight(packed_weight, 70, 1)
            for run_on in ops.cpu_isas():
                ops.select_cpu_isa(run_on)
                out = torch.ops.bitnas.conv2d_int32(packed, packed_weight, prepared, 70, 1, 1, 1, 1, 1, 1, 1, False)
                assert torch.equal(out, expected)
    finally:
        ops.select_cpu_isa(before)
