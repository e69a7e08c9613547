"""Bad calls: each a Python exception that names the argument, what it got and what it wanted."""

import os
import subprocess
import sys

import pytest
import torch

from bitnas import ops

OPS = torch.ops.bitnas
X, W = torch.randn(1, 8, 5, 5), torch.randn(4, 8, 3, 3)

PUBLIC = {
    "dtype": (lambda: ops.conv2d(X.double(), W), TypeError, "x must be float32.*float64"),
    "int dtype": (lambda: ops.conv2d(X.int(), W), TypeError, "x must be float32.*int32"),
    "weight dtype": (lambda: ops.conv2d(X, W.long()), TypeError, "weight must be float32.*int64"),
    "not a tensor": (lambda: ops.conv2d([1.0], W), TypeError, "x must be a Tensor, got list"),
    "sparse": (lambda: ops.linear(torch.eye(4).to_sparse(), torch.eye(4)), TypeError, "x must be a dense tensor"),
    "rank": (lambda: ops.conv2d(X[0], W), ValueError, r"x must have 4 dimensions, got 3"),
    "weight rank": (lambda: ops.conv2d(X, W[0]), ValueError, r"weight must have 4 dimensions, got 3"),
    "zero channels": (lambda: ops.conv2d(X[:, :0], W[:, :0]), ValueError, "x has zero channels"),
    "zero outputs": (lambda: ops.conv2d(X, W[:0]), ValueError, "groups=1 must divide the 8 input and 0 output"),
    "channels": (lambda: ops.conv2d(X, W[:, :7]), ValueError, "weight has 7 input channels per group; x has 8"),
    "groups": (lambda: ops.conv2d(X, W, groups=3), ValueError, "groups=3 must divide the 8 input and 4 output"),
    "zero groups": (lambda: ops.conv2d(X, W, groups=0), ValueError, "groups=0"),
    "float groups": (lambda: ops.conv2d(X, W, groups=1.0), ValueError, "groups=1.0"),
    "negative padding": (lambda: ops.conv2d(X, W, padding=-1), ValueError, "padding must be at least 0, got -1"),
    "zero stride": (lambda: ops.conv2d(X, W, stride=0), ValueError, "stride must be at least 1, got 0"),
    "zero dilation": (
        lambda: ops.conv2d(X, W, dilation=(1, 0)),
        ValueError,
        r"dilation must be at least 1, got \(1, 0\)",
    ),
    "float stride": (lambda: ops.conv2d(X, W, stride=1.5), TypeError, "stride must be an int or a pair|not iterable"),
    "triple padding": (lambda: ops.conv2d(X, W, padding=(1, 1, 1)), TypeError, r"padding must be an int or a pair"),
    "kernel too large": (
        lambda: ops.conv2d(X, torch.randn(4, 8, 7, 7)),
        ValueError,
        "7x7 pixels.*more than the padded image's 5x5",
    ),
    "dilated kernel": (lambda: ops.conv2d(X, W, dilation=3), ValueError, "7x7 pixels"),
    "empty kernel": (lambda: ops.conv2d(X, W[:, :, :0]), ValueError, "empty kernel"),
    "activations": (lambda: ops.conv2d(X, W, activations="tanh"), ValueError, "activations must be 'sign'.*got 'tanh'"),
    "device": (lambda: ops.conv2d(X, W.to("meta")), ValueError, "weight is on meta, x on cpu"),
    "linear features": (
        lambda: ops.linear(torch.randn(2, 5), torch.randn(3, 6)),
        ValueError,
        "weight has 6 input features, x has 5",
    ),
    "linear rank": (
        lambda: ops.linear(torch.randn(5), torch.randn(3, 5)),
        ValueError,
        "x must have 2 dimensions, got 1",
    ),
    "linear outputs": (lambda: ops.linear(torch.randn(2, 5), torch.randn(0, 5)), ValueError, "zero output features"),
    "pack rank": (lambda: ops.pack(torch.randn(3)), ValueError, "x must have 2 or 4 dimensions, got 1"),
    "pack bool": (lambda: ops.pack(torch.ones(2, 3, dtype=torch.bool)), TypeError, "got torch.bool"),
    "unpack dtype": (lambda: ops.unpack(torch.ones(2, 1), 3), TypeError, "packed must be an int64 Tensor"),
    "unpack channels": (
        lambda: ops.unpack(torch.ones(2, 1, dtype=torch.int64), 65),
        ValueError,
        "channels=65 does not fill",
    ),
    "unpack rank": (lambda: ops.unpack(torch.ones(2, dtype=torch.int64), 65), ValueError, "2 or 4 dimensions"),
}


@pytest.mark.parametrize("case", PUBLIC)
def test_public_call(case):
    call, error, message = PUBLIC[case]
    with pytest.raises(error, match=message):
        call()


P, PW = ops.pack(X), ops.pack_weight(W)
T, S = torch.zeros(4, dtype=torch.int32), torch.ones(4)
FLIPS = torch.zeros(2, dtype=torch.int64)
R = torch.zeros(1, 4, 3, 3).contiguous(memory_format=torch.channels_last)  # a residual


G = (8, 1, 1, 0, 0, 1, 1, 1, False)  # geometry


def conv(x=P, w=PW, prepared=None, channels=8, sh=1, sw=1, ph=0, pw=0, dh=1, dw=1, groups=1):
    return OPS.conv2d_int32(x, w, prepared, channels, sh, sw, ph, pw, dh, dw, groups, False)


PRIVATE = {
    "x dtype": (lambda: conv(x=P.int()), "x must be a packed int64"),
    "x rank": (lambda: conv(x=P[0]), "x must have 4 dimensions, got 3"),
    "x strides": (lambda: conv(x=P.transpose(1, 2)), "x must be contiguous"),
    "x words": (lambda: conv(x=P.repeat(1, 1, 1, 2)), "x holds 2 words per pixel; 8 channels need 1"),
    "w dtype": (lambda: conv(w=PW.int()), "weight must be a packed int64"),
    "w rank": (lambda: conv(w=PW[0]), "weight must have 4 dimensions"),
    "w words": (lambda: conv(w=PW.repeat(1, 1, 1, 2)), "weight holds 2 words per tap"),
    "w empty": (lambda: conv(w=PW[:0]), "groups .1. must divide the output channels, got 0"),
    "channels": (lambda: conv(channels=0), "in_channels must be at least 1, got 0"),
    "negative channels": (lambda: conv(channels=-64), "in_channels must be at least 1"),
    "groups": (lambda: conv(groups=0), "groups must be positive"),
    "groups divide": (lambda: conv(groups=3), "divide the 8 input channels, got 3"),
    "stride": (lambda: conv(sh=0), "stride must be positive, got 0"),
    "padding": (lambda: conv(pw=-1), "padding must not be negative, got 0, -1"),
    "dilation": (lambda: conv(dh=0), "dilation must be positive"),
    "kernel": (lambda: conv(dh=9), "larger than the padded image"),
    "wrapping scratch": (
        lambda: ops.conv2d(
            torch.ones(1, 1, 1, 1),
            torch.ones(1, 1, 1, 2),
            padding=(2**29, 2**30),
            stride=(2**30 - 1, 2**29),
            dilation=(1, 2**29 - 1),
        ),
        "is too large",
    ),
    "wrapping pool padding": (lambda: OPS.max_pool2d_bits(P, None, 2, 2, 1, 1, 2**63 - 1, 0), "between 0 and half"),
    "overflowing dilation": (lambda: conv(dh=2**62), "larger than"),
    "overflowing padding": (lambda: conv(ph=2**62), "larger than"),
    "threshold": (
        lambda: OPS.conv2d_bits(P, PW, None, T[:3], None, *G),
        "threshold must be a contiguous int32 tensor of 4",
    ),
    "threshold dtype": (lambda: OPS.conv2d_bits(P, PW, None, T.long(), None, *G), "threshold must be"),
    "flip": (lambda: OPS.conv2d_bits(P, PW, None, T, FLIPS, *G), "flip must be a contiguous int64 tensor of 1"),
    "scale": (lambda: OPS.conv2d_float(P, PW, None, S[:2], S, *G), "scale must be a contiguous float32 tensor of 4"),
    "bias": (lambda: OPS.conv2d_float(P, PW, None, S, S.double(), *G), "bias must be"),
    "slope": (lambda: OPS.conv2d_float(P, PW, None, S, S, *G, None, S[:2]), "slope must be a contiguous float32"),
    "float dtype": (
        lambda: OPS.conv2d_float(P, PW, None, S, S, *G, None, None, torch.float64),
        "dtype must be float32",
    ),
    "residual dtype": (lambda: OPS.conv2d_float(P, PW, None, S, S, *G, R.half()), "residual must have the dtype"),
    "residual rank": (lambda: OPS.conv2d_float(P, PW, None, S, S, *G, R[0]), "residual must have 4 dimensions, got 3"),
    "residual channels": (
        lambda: OPS.conv2d_float(P, PW, None, S, S, *G, torch.cat([R, R], 1)),
        "dimension 1 has 8, expected 4",
    ),
    "no residual channels": (lambda: OPS.conv2d_float(P, PW, None, S, S, *G, R[:, :0]), "dimension 1 has 0"),
    "residual layout of fewer": (
        lambda: OPS.conv2d_float(P, PW, None, S, S, *G, R[:, :3]),
        "laid out like the output",
    ),
    "residual size": (lambda: OPS.conv2d_float(P, PW, None, S, S, *G, R[:, :, 1:]), "dimension 2 has"),
    "residual layout": (lambda: OPS.conv2d_float(P, PW, None, S, S, *G, R.contiguous()), "laid out like the output"),
    "cut": (lambda: OPS.conv2d_float_bits(P, PW, None, S, S, S[:1], S, *G), "cut must be a contiguous float32"),
    "pool kernel": (lambda: OPS.max_pool2d_bits(P, None, 0, 1, 1, 1, 0, 0), "kernel_size must be positive"),
    "pool padding": (lambda: OPS.max_pool2d_bits(P, None, 2, 2, 1, 1, 2, 0), "between 0 and half the kernel"),
    "pool size": (lambda: OPS.max_pool2d_bits(P, None, 9, 9, 1, 1, 0, 0), "larger than the padded image"),
    "pool flip": (lambda: OPS.max_pool2d_bits(P, torch.zeros(3, dtype=torch.int64), 2, 2, 1, 1, 0, 0), "flip must be"),
    "pack strides": (lambda: OPS.pack(X.transpose(2, 3), 0.0), "must be contiguous in memory format"),
    "pack thresholds": (lambda: OPS.pack_channels(X, torch.zeros(7), torch.ones(8)), "threshold must be.*8 elements"),
    "pack dtype": (lambda: OPS.pack(X.double(), 0.0), "x must be float32, bfloat16 or float16"),
    "linear words": (
        lambda: OPS.linear_int32(P.view(25, 1), torch.zeros(3, 1, dtype=torch.int64), None, 65, False),
        "words",
    ),
    "prepare rank": (lambda: OPS.prepare_weight(PW[0], 8, 1), "4 dimensions"),
}


@pytest.mark.parametrize("case", PRIVATE)
def test_private_operator(case):
    call, message = PRIVATE[case]
    with pytest.raises(RuntimeError, match=message):
        call()


def run_python(code, **env):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env})


def test_unknown_instruction_set_in_the_environment_is_refused():
    done = run_python("import bitnas.ops", BITNAS_ISA="avx9")
    assert done.returncode != 0
    assert "BITNAS_ISA='avx9'" in done.stderr
    assert "scalar" in done.stderr


def test_every_instruction_set_can_be_forced_from_the_environment():
    for isa in ops.cpu_isas():
        done = run_python("import bitnas.ops as o; print(o.cpu_isa())", BITNAS_ISA=isa)
        assert done.stdout.strip() == isa, done.stderr
