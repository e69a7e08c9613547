"""The operators as torch sees them: schema, fake kernels, compile and export."""

import pytest
import torch

from bitnas import ops, reference

X = ops.pack(torch.randn(2, 70, 6, 5))
W = ops.pack_weight(torch.randn(34, 35, 3, 3))
ROWS, MATRIX = ops.pack(torch.randn(5, 130)), ops.pack_weight(torch.randn(17, 130))
GEOMETRY = (70, 2, 1, 1, 1, 1, 1, 2, False)
SCALE, THRESHOLD, FLIP = torch.randn(34), torch.zeros(34, dtype=torch.int32), torch.ones(1, dtype=torch.int64)
RESIDUAL = torch.randn(2, 34, 3, 5).contiguous(memory_format=torch.channels_last)
CUTS, NODE = torch.randn(3, 34), torch.randn(2, 21, 2, 3).contiguous(memory_format=torch.channels_last)
PREPARED = torch.ops.bitnas.prepare_weight(W, 70, 2)
OPS = torch.ops.bitnas

SAMPLES = {
    "pack-nchw": (OPS.pack, (torch.randn(2, 70, 4, 3), 0.0)),
    "pack-last": (OPS.pack, (torch.randn(2, 70, 4, 3).contiguous(memory_format=torch.channels_last), 0.5)),
    "pack-rows": (OPS.pack, (torch.randn(3, 64), 0.0)),
    "pack-bf16": (OPS.pack, (torch.randn(3, 64).bfloat16(), 0.0)),
    "pack-empty": (OPS.pack, (torch.randn(0, 70, 4, 3), 0.0)),
    "pack_channels": (OPS.pack_channels, (torch.randn(2, 70, 4, 3), torch.randn(70), torch.ones(70))),
    "pack_channels-several": (OPS.pack_channels, (torch.randn(2, 34, 4, 3), CUTS, CUTS.sign())),
    "pack_channels-rows": (OPS.pack_channels, (torch.randn(5, 34), CUTS, CUTS.sign())),
    "join_nodes": (OPS.join_nodes, (RESIDUAL, [NODE], 2, 2, 21, 1, True)),
    "join_nodes_bits": (OPS.join_nodes_bits, (RESIDUAL, [], CUTS, CUTS.sign(), 0, 2, 17, 2, False)),
    "join_nodes_bits-once": (OPS.join_nodes_bits, (RESIDUAL, [], SCALE, SCALE.sign(), 0, 1, 34, 1, True)),
    "unpack": (OPS.unpack, (X, 70, False)),
    "unpack-rows": (OPS.unpack, (ROWS, 130, True)),
    "conv2d_int32": (OPS.conv2d_int32, (X, W, None, *GEOMETRY)),
    "conv2d_int32-prepared": (OPS.conv2d_int32, (X, W, PREPARED, *GEOMETRY)),
    "conv2d_int32-empty": (OPS.conv2d_int32, (X[:0], W, None, *GEOMETRY)),
    "conv2d_int32-unit": (OPS.conv2d_int32, (X, W, None, *GEOMETRY[:-1], True)),
    "conv2d_float": (OPS.conv2d_float, (X, W, None, SCALE, SCALE, *GEOMETRY)),
    "conv2d_float-prepared": (OPS.conv2d_float, (X, W, PREPARED, SCALE, SCALE, *GEOMETRY)),
    "conv2d_float-bfloat16": (
        OPS.conv2d_float,
        (X, W, None, SCALE, SCALE, *GEOMETRY, RESIDUAL.bfloat16(), SCALE, torch.bfloat16),
    ),
    "conv2d_float_bits": (OPS.conv2d_float_bits, (X, W, None, SCALE, SCALE, SCALE, SCALE.sign(), *GEOMETRY)),
    "conv2d_float_bits-residual": (
        OPS.conv2d_float_bits,
        (X, W, PREPARED, SCALE, SCALE, SCALE, SCALE.sign(), *GEOMETRY, RESIDUAL, None, None),
    ),
    "conv2d_float_bits-several": (
        OPS.conv2d_float_bits,
        (X, W, None, SCALE, SCALE, CUTS, CUTS.sign(), *GEOMETRY, RESIDUAL, None, None, True),
    ),
    "conv2d_bits": (OPS.conv2d_bits, (X, W, None, THRESHOLD, FLIP, *GEOMETRY)),
    "conv2d_bits-plain": (OPS.conv2d_bits, (X, W, PREPARED, THRESHOLD, None, *GEOMETRY)),
    "linear_int32": (OPS.linear_int32, (ROWS, MATRIX, None, 130, False)),
    "linear_float": (OPS.linear_float, (ROWS, MATRIX, None, torch.randn(17), torch.randn(17), 130, False)),
    "linear_bits": (OPS.linear_bits, (ROWS, MATRIX, None, torch.zeros(17, dtype=torch.int32), FLIP, 130, True)),
    "linear_bits-empty": (
        OPS.linear_bits,
        (ROWS[:0], MATRIX, None, torch.zeros(17, dtype=torch.int32), None, 130, True),
    ),
    "max_pool2d_bits": (OPS.max_pool2d_bits, (X, None, 2, 2, 2, 2, 0, 0)),
    "max_pool2d_bits-flip": (OPS.max_pool2d_bits, (X, torch.ones(2, dtype=torch.int64), 3, 3, 2, 2, 1, 1)),
}


@pytest.mark.parametrize("sample", SAMPLES)
def test_opcheck(sample):
    op, arguments = SAMPLES[sample]
    torch.library.opcheck(op.default, arguments)


class Layer(torch.nn.Module):
    """Floats in, floats out, everything between packed."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", ops.pack_weight(torch.randn(96, 70, 3, 3)))
        self.register_buffer("head", ops.pack_weight(torch.randn(10, 96)))

    def forward(self, x):
        bits = OPS.conv2d_bits(
            OPS.pack(x, 0.0),
            self.weight,
            None,
            torch.zeros(96, dtype=torch.int32),
            None,
            70,
            1,
            1,
            1,
            1,
            1,
            1,
            1,
            False,
        )
        bits = OPS.max_pool2d_bits(bits, None, 2, 2, 2, 2, 0, 0)
        dots = OPS.linear_int32(OPS.pack(OPS.unpack(bits, 96, False).mean((1, 2)), 0.0), self.head, None, 96, False)
        return dots.float() * 0.5


def test_compiles_without_graph_breaks():
    layer, x = Layer(), torch.randn(3, 70, 6, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))
    assert torch.equal(compiled(x[:2].contiguous()), layer(x[:2].contiguous()))


def test_exports_with_dynamic_batch():
    layer = Layer()
    program = torch.export.export(layer, (torch.randn(3, 70, 6, 6),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for batch in (1, 3, 9):
        x = torch.randn(batch, 70, 6, 6)
        assert torch.equal(program.module()(x), layer(x))


def test_forcing_an_instruction_set_that_is_not_there():
    with pytest.raises(ValueError, match="isa='neon'.*scalar"):
        ops.select_cpu_isa("neon")


def test_forcing_a_kernel_that_is_not_there():
    with pytest.raises(ValueError, match="kernel='avx9_fast'.*scalar.*'auto'"):
        ops.select_cpu_kernel("avx9_fast")


def test_a_forced_kernel_prepares_weights_until_auto_is_back():
    before = ops.cpu_isa()
    try:
        for kernel in ops.cpu_kernels():
            ops.select_cpu_kernel(kernel)
            prepared = OPS.prepare_weight(W, 70, 2)
            assert OPS.prepared_kernel(prepared) == kernel
            assert kernel.startswith(ops.cpu_isa())
        ops.select_cpu_kernel("auto")
        assert ops.cpu_isa() == before
        ops.select_cpu_isa("scalar")
        assert OPS.prepared_kernel(OPS.prepare_weight(W, 70, 2)) == "scalar"
    finally:
        ops.select_cpu_kernel("auto")
        ops.select_cpu_isa(before)
    assert OPS.prepared_kernel(torch.zeros(10, dtype=torch.uint8)) == ""


def test_public_linear_keeps_leading_dimensions():
    x, weight = torch.randn(2, 3, 65), torch.randn(4, 65)
    assert torch.equal(ops.linear(x, weight), reference.linear(x.reshape(6, 65), weight).view(2, 3, 4))
    for shape in [(0, 3), (3, 0), (0,)]:
        assert ops.linear(torch.randn(*shape, 65), weight).shape == (*shape, 4)
