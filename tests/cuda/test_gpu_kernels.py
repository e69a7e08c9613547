"""The CUDA kernels on a GPU: equal to the CPU's in every operator, epilogue and shape, and good citizens of a stream.

`make test-cuda` runs these; without a GPU all but the last section are skipped. What needs no GPU is in
test_cuda_sources.py (the same sources on a host model) and test_sass.py (their machine code).
"""

import itertools
import os
import random
from dataclasses import replace

import gpu_shapes
import pytest
import torch
from gpu_shapes import Case, Product, check, random_cases
from torch import nn

import bitnas
from bitnas import ops
from bitnas.cost import machine
from bitnas.nn import BinaryConv2d, BinaryLinear
from bitnas.packed.layers import PackedLayer

WHY_NOT = machine.why_no_gpu()
KERNELS = ops.cuda_kernels()

SHAPES = int(os.environ.get("BITNAS_TEST_SHAPES", "2000"))
MANY_SHAPES, CHUNKS = int(os.environ.get("BITNAS_TEST_SHAPES", "100000")), 100

on_gpu = [pytest.mark.cuda, pytest.mark.skipif(WHY_NOT is not None, reason=f"needs a GPU: {WHY_NOT}")]


def gpu(test):
    """Marks a test that needs a GPU."""
    for mark in on_gpu:
        test = mark(test)
    return test


@pytest.fixture(params=["auto", *KERNELS])
def kernel(request):
    ops.select_cuda_kernel(request.param)
    yield request.param
    ops.select_cuda_kernel("auto")


# ---- equal to the CPU --------------------------------------------------------------


@gpu
def test_random_shapes_equal_the_cpu_kernels(kernel):
    for case in random_cases(SHAPES // (1 + len(KERNELS)), kernel):
        check(case, "cuda")


@gpu
@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_many_random_shapes(chunk):
    kernels = ["auto", *KERNELS]
    try:
        for i, case in enumerate(random_cases(MANY_SHAPES // CHUNKS, f"chunk {chunk}")):
            ops.select_cuda_kernel(kernels[i % len(kernels)])
            check(case, "cuda")
    finally:
        ops.select_cuda_kernel("auto")


SIGN = {"activations": "sign", "dtype": torch.float32, "seed": 1}
PLAIN = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1, "channels_last": True, **SIGN}

# Large enough for many tiles, several waves of blocks and split sums; the kernels' own edges come from random shapes.
LARGE = {
    "64 channels": Case(16, 64, 64, (56, 56), (3, 3), **PLAIN),
    "256 channels": Case(64, 256, 256, (14, 14), (3, 3), **PLAIN),
    "512 channels": Case(64, 512, 512, (7, 7), (3, 3), **PLAIN),
    "strided": Case(32, 128, 256, (28, 28), (3, 3), **{**PLAIN, "stride": (2, 2)}),
    "groups inside words": Case(8, 96, 160, (28, 28), (3, 3), **{**PLAIN, "groups": 4}),
    "one image": Case(1, 512, 512, (7, 7), (3, 3), **PLAIN),
    "matrix": Product(2000, 4096, 1000, **SIGN),
    "skinny": Product(64, 4096, 4096, **SIGN),
    "one row of many features": Product(1, 1 << 18, 70, **SIGN),
    "unit": Product(513, 2048, 300, **{**SIGN, "activations": "unit"}),
}


@gpu
@pytest.mark.parametrize("name", LARGE)
def test_large_layers_equal_the_cpu_kernels(kernel, name):
    check(LARGE[name], "cuda")


@gpu
@pytest.mark.parametrize("value", [1.0, -1.0])
@pytest.mark.parametrize("features", [1 << 16, (1 << 20) + 1])
def test_accumulators_hold_the_longest_rows(kernel, features, value):
    x, weight = torch.ones(2, features, device="cuda"), torch.full((3, features), value, device="cuda")
    assert (ops.linear(x, weight) == int(value) * features).all()


@gpu
def test_a_weight_prepared_for_another_layer_is_not_used(kernel):
    """Neither another layer's, nor one of the CPU."""
    x, weight, other = torch.randn(1, 64, 5, 5), torch.randn(32, 64, 3, 3), torch.randn(32, 32, 3, 3)
    packed, packed_weight = ops.pack(x).cuda(), ops.pack_weight(weight)
    prepare = torch.ops.bitnas.prepare_weight
    expected = bitnas.reference.conv2d(x, weight, padding=1)
    for prepared in (prepare(ops.pack_weight(other).cuda(), 32, 1), prepare(packed_weight, 64, 1)):
        arguments = (packed, packed_weight.cuda(), prepared, 64, 1, 1, 1, 1, 1, 1, 1, False)
        assert torch.equal(torch.ops.bitnas.conv2d_int32(*arguments).cpu(), expected)


@gpu
def test_tensors_of_different_devices_are_refused():
    packed, weight = ops.pack(torch.randn(1, 64, 5, 5)), ops.pack_weight(torch.randn(8, 64, 3, 3))
    with pytest.raises(RuntimeError, match="weight must be on the device of its input"):
        torch.ops.bitnas.conv2d_int32(packed.cuda(), weight, None, 64, 1, 1, 1, 1, 1, 1, 1, False)


@gpu
def test_a_kernel_that_is_not_there():
    with pytest.raises(ValueError, match="kernel='mma_7x7'.*popc"):
        ops.select_cuda_kernel("mma_7x7")


# ---- frozen networks ---------------------------------------------------------------


def trained(name, **options):
    """A network whose batch norms are not the identity, as after training."""
    torch.manual_seed(0)
    model = bitnas.create_model(name, **options).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return model


def binary_network():
    """Binary from the first layer on: its results on a GPU must equal the CPU's to the last bit."""
    torch.manual_seed(1)
    return nn.Sequential(
        BinaryConv2d(70, 96, 3, padding=1),
        nn.BatchNorm2d(96),
        nn.MaxPool2d(2),
        BinaryConv2d(96, 128, 3, stride=2, padding=1, groups=2),
        nn.BatchNorm2d(128),
        nn.Flatten(),
        BinaryLinear(128 * 4 * 4, 10),
    ).eval()


NETWORKS = {
    "vgg_small": lambda: (trained("vgg_small", base_width=0.5), torch.randn(3, 3, 32, 32)),
    "resnet18": lambda: (trained("resnet18", input_size=(3, 32, 32), base_width=0.5), torch.randn(3, 3, 32, 32)),
    "binary": lambda: (binary_network(), torch.randn(3, 70, 16, 16)),
}


@gpu
@pytest.mark.parametrize("name", NETWORKS)
def test_binary_layers_of_frozen_networks_equal_the_cpu(name, kernel):
    """Layer by layer on the values that the GPU's own layers made: its float layers round in their own way."""
    model, x = NETWORKS[name]()
    frozen = bitnas.freeze(model)
    layers = dict(frozen.named_children())
    values = bitnas.freeze(model).to("cuda").values(x.cuda())
    compared = 0
    for step in frozen.steps:
        layer = layers.get(step.name)
        if isinstance(layer, PackedLayer):
            expected = layer(*(values[name].cpu() for name in step.inputs))
            assert torch.equal(values[step.name].cpu(), expected), step
            compared += 1
    assert compared >= 5


@gpu
@pytest.mark.parametrize("name", NETWORKS)
def test_verify_on_the_gpu(name):
    model, x = NETWORKS[name]()
    found = bitnas.verify(model.cuda(), bitnas.freeze(model), x.cuda())
    assert found.ok, str(found)


@gpu
def test_a_binary_network_equals_the_cpu_and_moves_back():
    model, x = NETWORKS["binary"]()
    frozen = bitnas.freeze(model)
    expected = frozen(x)
    assert torch.equal(frozen.to("cuda")(x.cuda()).cpu(), expected)
    assert torch.equal(frozen.to("cpu")(x), expected)


# ---- streams, graphs, memory ---------------------------------------------------------

ABOUT_A_SECOND = 2 * 10**9  # clocks


def all_operators():
    """A function of no arguments that calls every operator on tensors of the GPU, and gives what they gave."""
    case = replace(LARGE["strided"], batch=2)
    x, weight = (t.cuda() for t in case.tensors())
    n = case.out_channels
    scale, bias, cut = torch.randn(3, n, device="cuda")
    direction, threshold = torch.ones(n, device="cuda"), torch.zeros(n, dtype=torch.int32, device="cuda")
    rows, matrix = torch.randn(70, 512, device="cuda"), torch.randn(300, 512, device="cuda")
    channels, ones = torch.zeros(case.channels, device="cuda"), torch.ones(case.channels, device="cuda")
    call = torch.ops.bitnas

    def run():
        packed, packed_weight = call.pack(x, 0.0), call.pack(weight, 0.0)
        prepared = call.prepare_weight(packed_weight, case.channels, case.groups)
        operands = (packed, packed_weight, prepared)
        packed_rows, packed_matrix = call.pack(rows, 0.0), call.pack(matrix, 0.0)
        terms = (scale, bias, cut, direction)
        floats = call.conv2d_float(*operands, scale, bias, *case.flat, dtype=torch.bfloat16)
        return [
            packed,
            floats,
            call.pack_channels(x, channels, ones),
            call.unpack(packed, case.channels, False),
            call.conv2d_int32(*operands, *case.flat),
            call.conv2d_bits(*operands, threshold, None, *case.flat),
            *call.conv2d_float_bits(*operands, *terms, *case.flat, residual=floats, dtype=torch.bfloat16),
            call.max_pool2d_bits(packed, None, 2, 2, 2, 2, 0, 0),
            call.linear_int32(packed_rows, packed_matrix, None, 512, False),
            call.linear_float(
                packed_rows, packed_matrix, None, scale.repeat(2)[:300], bias.repeat(2)[:300], 512, False
            ),
            call.linear_bits(packed_rows, packed_matrix, None, threshold.repeat(2)[:300], None, 512, False),
        ]

    return run


@gpu
def test_nothing_waits_for_the_gpu(kernel):
    """With the stream busy for about a second, every call returns at once."""
    run = all_operators()
    run()  # code is loaded and memory allocated in the first call
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(ABOUT_A_SECOND)
        slept = torch.cuda.Event()
        slept.record()
        run()
        assert not slept.query(), "the calls returned only after the work before them had finished"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()


@gpu
def test_work_runs_on_the_current_stream(kernel):
    """A side stream neither waits for a busy default stream, nor overtakes its own work."""
    run = all_operators()
    expected = [tensor.cpu() for tensor in run()]
    x = torch.zeros(2, 70, 9, 9, device="cuda")
    source = torch.randn(2, 70, 9, 9)
    value = source.cuda()
    side, busy = torch.cuda.Stream(), torch.cuda.Event()
    with torch.cuda.stream(side):
        run()  # memory for this stream: to get it from the driver may wait for all streams
    torch.cuda.synchronize()
    torch.cuda._sleep(ABOUT_A_SECOND)
    busy.record()
    with torch.cuda.stream(side):
        results = run()
        torch.cuda._sleep(ABOUT_A_SECOND // 20)
        x.copy_(value)
        late = ops.pack(x)
    side.synchronize()
    assert not busy.query(), "the side stream waited for the default stream"
    assert torch.equal(late.cpu(), ops.pack(source)), "pack read its input before the stream had written it"
    for got, wanted in zip(results, expected, strict=True):
        assert torch.equal(got.cpu(), wanted)


@gpu
@pytest.mark.parametrize("name", NETWORKS)
def test_a_whole_frozen_network_in_a_graph(name):
    model, x = NETWORKS[name]()
    frozen, x = bitnas.freeze(model).to("cuda"), x.cuda()
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        static = torch.zeros_like(x)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            frozen(static)
        side.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            out = frozen(static)
        for scale in (1, -1, 0.5):
            static.copy_(x * scale)
            graph.replay()
            assert torch.equal(out, frozen(x * scale))


@gpu
def test_all_memory_is_the_allocators(kernel):
    """Beyond what torch has reserved, the card's free memory stays as it is."""

    def outside():
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        return total - free - torch.cuda.memory_reserved()

    run = all_operators()
    for _ in range(3):  # the driver loads each kernel's code at its first launch
        run()
    before = outside()
    for _ in range(50):
        run()
    assert outside() == before


@gpu
def test_latency_of_a_frozen_network():
    model, _ = NETWORKS["vgg_small"]()
    latency = bitnas.measure_latency(bitnas.freeze(model).to("cuda"), (3, 32, 32), batch=4, seconds=0.1)
    assert latency.mode == "graph"
    assert 0 < latency.median_us <= latency.launch_us * 1.5
    assert latency.machine["gpu"]["name"] == torch.cuda.get_device_name()
    cold = bitnas.measure_latency(bitnas.freeze(model).to("cuda"), (3, 32, 32), batch=4, seconds=0.1, cold_cache=True)
    assert cold.cold_cache
    assert cold.median_us > 0


@gpu
def test_latency_of_a_network_that_no_graph_holds():
    class Waits(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1)) * x.sum().item()

    latency = bitnas.measure_latency(Waits(12, 4).cuda(), (3, 2, 2), seconds=0.05)
    assert latency.mode == "launch"
    assert latency.launch_us == latency.median_us


# ---- the checks themselves, on the CPU -------------------------------------------------


def test_the_checks_accept_what_is_equal():
    for case in random_cases(40, "on the CPU"):
        check(case, "cpu")


OPERATORS = (
    *("pack", "pack_channels", "unpack", "max_pool2d_bits", "conv2d_int32", "conv2d_bits", "conv2d_float"),
    *("conv2d_float_bits", "linear_int32", "linear_bits", "linear_float"),
)


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_checks_notice_one_wrong_element(monkeypatch, operator):
    right, calls = gpu_shapes._ops, itertools.count()

    class WrongOnTheDevice:
        """Every second call of an operator is the device's: one element of what it gives is off by one."""

        def __getattr__(self, name):
            call = getattr(right, name)

            def changed(*arguments, **options):
                result = call(*arguments, **options)
                last = result[-1] if isinstance(result, tuple) else result
                if next(calls) % 2 and last.numel():
                    last[(0,) * last.dim()] += 1
                return result

            return changed if name == operator else call

    def check_all():
        for case in random_cases(12, 0):
            check(case, "cpu")

    monkeypatch.setattr(gpu_shapes, "_ops", WrongOnTheDevice())
    with pytest.raises(AssertionError, match=f"{operator} differs"):
        check_all()


def test_cases_are_of_all_kinds_and_the_same_under_a_seed():
    first, again = list(random_cases(60, 5)), list(random_cases(60, 5))
    assert first == again
    assert first != list(random_cases(60, 6))
    assert sum(isinstance(case, Product) for case in first) == 20
    assert len({random.Random(case.seed).random() for case in first}) == 60


def test_the_script_says_that_there_is_no_gpu(monkeypatch, capsys):
    monkeypatch.setattr(ops, "cuda_kernels", list)
    monkeypatch.setattr("sys.argv", ["gpu_shapes.py"])
    assert gpu_shapes.main() == 1
    assert capsys.readouterr().err == "gpu_shapes: no usable GPU here\n"
