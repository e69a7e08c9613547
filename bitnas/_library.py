"""Loads the compiled objects and tells torch what the operators' outputs look like.

Nothing here touches CPython's own ABI: both objects are plain shared libraries that register operators. The CUDA
one is loaded only where torch itself was built for CUDA.
"""

import os
from pathlib import Path

import torch
from torch import Tensor

_FOLDER = Path(__file__).parent


def _load() -> None:
    cpu, cuda = _FOLDER / "_C.so", _FOLDER / "_C_cuda.so"
    if not cpu.exists():
        raise ImportError(
            f"bitnas: the compiled kernels are not in {_FOLDER}. In a checkout run `pip install -e . "
            "--no-build-isolation`; after a plain `pip install`, start Python outside the checkout's folder."
        )
    if torch._C._dispatch_has_kernel("bitnas::pack"):
        raise ImportError("bitnas: another copy of the kernels is loaded in this process; import bitnas from one place")
    try:
        torch.ops.load_library(cpu)
        if torch.version.cuda and cuda.exists():
            torch.ops.load_library(cuda)
    except OSError as error:
        raise ImportError(
            f"bitnas: torch {torch.__version__} could not load the compiled kernels ({error}). They need torch 2.11 "
            "or newer; `pip install --force-reinstall --no-deps bitnas` builds them again."
        ) from error
    wanted, runs = os.environ.get("BITNAS_ISA"), cpu_isas()
    if wanted and wanted not in runs:
        raise ImportError(f"BITNAS_ISA={wanted!r}: this CPU and build run {', '.join(runs)}; name one of these")


def cpu_isas() -> list[str]:
    """Instruction sets this CPU can run kernels of, slowest first."""
    return torch.ops.bitnas.cpu_isas().split(",")


def cpu_isa() -> str:
    """The instruction set whose kernels new weights are prepared for."""
    return torch.ops.bitnas.cpu_isa()


def select_cpu_isa(name: str) -> None:
    """Uses another instruction set from now on; weights that are already prepared keep theirs.

    Raises:
        ValueError: this CPU or build cannot run it.
    """
    if not torch.ops.bitnas.select_cpu_isa(name):
        raise ValueError(f"isa={name!r}: this CPU and build run {', '.join(cpu_isas())}")


def cpu_kernels() -> list[str]:
    """Names of the convolution kernels this CPU can run, by instruction set, slowest first."""
    return torch.ops.bitnas.cpu_kernels().split(",")


def select_cpu_kernel(name: str) -> None:
    """Uses one kernel and its instruction set from now on, wherever it can compute the layer; ``"auto"`` puts back the
    instruction set that was in use before, and chooses among its kernels again.

    For tests and benchmarks: all kernels give equal results. Weights that are already prepared keep theirs.

    Raises:
        ValueError: this CPU or build runs no kernel of that name.
    """
    if not torch.ops.bitnas.select_cpu_kernel(name):
        raise ValueError(f"kernel={name!r}: this CPU and build run {', '.join(cpu_kernels())}, or 'auto'")


def cuda_loaded() -> bool:
    """Whether the CUDA kernels are registered."""
    return torch._C._dispatch_has_kernel_for_dispatch_key("bitnas::pack", "CUDA")


def _no_cuda() -> str:
    if not torch.version.cuda:
        return f"torch {torch.__version__} was built without CUDA"
    if not cuda_loaded():
        return f"{_FOLDER / '_C_cuda.so'} was not built (it needs nvcc); BITNAS_CUDA=ON says so at build time"
    return "torch finds no usable GPU or driver"


def cuda_kernels() -> list[str]:
    """Names of the kernels that the current GPU can run; empty without a GPU. ``"auto"`` chooses among them."""
    if not (cuda_loaded() and torch.cuda.is_available()):
        return []
    return torch.ops.bitnas.cuda_kernels().split(",")


def select_cuda_kernel(name: str) -> None:
    """Uses one kernel from now on, wherever it can compute the layer; ``"auto"`` the best for each layer again.

    For tests and benchmarks: all kernels give equal results.

    Raises:
        RuntimeError: there is no GPU to run kernels on. ValueError: this GPU runs no kernel of that name.
    """
    names = cuda_kernels()
    if not names:
        raise RuntimeError(f"no CUDA kernels here: {_no_cuda()}")
    if not torch.ops.bitnas.select_cuda_kernel(name):
        raise ValueError(f"kernel={name!r}: this GPU runs {', '.join(names)}, or 'auto'")


_load()


def words_for(channels: int) -> int:
    """Words that the bits of one pixel or row take."""
    return (channels + 63) // 64


def _out_size(size: int, padding: int, dilation: int, kernel: int, stride: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _conv_sizes(x: Tensor, weight: Tensor, stride: tuple, padding: tuple, dilation: tuple) -> tuple[int, int, int, int]:
    height, width = (
        _out_size(x.shape[1 + i], padding[i], dilation[i], weight.shape[1 + i], stride[i]) for i in range(2)
    )
    return x.shape[0], weight.shape[0], height, width


@torch.library.register_fake("bitnas::pack")
def _(x, threshold):
    words = words_for(x.shape[1])
    shape = (x.shape[0], words) if x.dim() == 2 else (x.shape[0], x.shape[2], x.shape[3], words)
    return x.new_empty(shape, dtype=torch.int64)


@torch.library.register_fake("bitnas::pack_channels")
def _(x, threshold, direction):
    once = torch.ops.bitnas.pack(x, 0.0)
    return once if threshold.dim() == 1 else once.new_empty((threshold.shape[0], *once.shape))


@torch.library.register_fake("bitnas::unpack")
def _(packed, channels, unit):
    return packed.new_empty((*packed.shape[:-1], channels), dtype=torch.float32)


def _float_conv2d_sizes(x: Tensor, weight: Tensor, geometry: tuple) -> tuple[int, int, int, int]:
    sh, sw, ph, pw, _, pool_h, pool_w, pool_sh, pool_sw, pool_ph, pool_pw = geometry[:11]  # scale and slope follow
    height = _out_size(x.shape[2], ph, 1, weight.shape[0], sh)
    width = _out_size(x.shape[3], pw, 1, weight.shape[1], sw)
    height, width = _out_size(height, pool_ph, 1, pool_h, pool_sh), _out_size(width, pool_pw, 1, pool_w, pool_sw)
    return x.shape[0], weight.shape[3], height, width


@torch.library.register_fake("bitnas::float_conv2d")
def _(x, weight, bias, *geometry):
    return x.new_empty(_float_conv2d_sizes(x, weight, geometry)).to(memory_format=torch.channels_last)


@torch.library.register_fake("bitnas::float_conv2d_bits")
def _(x, weight, bias, cut, direction, floats, *geometry):
    images, channels, height, width = _float_conv2d_sizes(x, weight, geometry)
    sizes = (images, channels, height, width)
    made = x.new_empty(sizes).to(memory_format=torch.channels_last) if floats else x.new_empty(0)
    return made, x.new_empty((images, height, width, words_for(channels)), dtype=torch.int64)


@torch.library.register_fake("bitnas::prepare_weight")
def _(weight, in_channels, groups, stride_h=1, stride_w=1, dilation_h=1, dilation_w=1, positions=0):
    raise NotImplementedError(
        "bitnas::prepare_weight has a size that depends on the machine: prepare weights outside compiled code"
    )


@torch.library.register_fake("bitnas::conv2d_int32")
def _(x, weight, prepared, in_channels, sh, sw, ph, pw, dh, dw, groups, unit):
    sizes = _conv_sizes(x, weight, (sh, sw), (ph, pw), (dh, dw))
    return x.new_empty(sizes, dtype=torch.int32).to(memory_format=torch.channels_last)


@torch.library.register_fake("bitnas::conv2d_float")
def _(
    x, weight, prepared, scale, bias, in_channels, sh, sw, ph, pw, dh, dw, groups, unit,
    residual=None, slope=None, dtype=None, relu=False,
):  # fmt: skip
    sizes = _conv_sizes(x, weight, (sh, sw), (ph, pw), (dh, dw))
    return x.new_empty(sizes, dtype=dtype or torch.float32).to(memory_format=torch.channels_last)


@torch.library.register_fake("bitnas::conv2d_float_bits")
def _(
    x, weight, prepared, scale, bias, cut, direction, in_channels, sh, sw, ph, pw, dh, dw, groups, unit,
    residual=None, slope=None, dtype=None, relu=False,
):  # fmt: skip
    images, channels, height, width = _conv_sizes(x, weight, (sh, sw), (ph, pw), (dh, dw))
    floats = x.new_empty((images, channels, height, width), dtype=dtype or torch.float32)
    packed = x.new_empty((*cut.shape[:-1], images, height, width, words_for(channels)))
    return floats.to(memory_format=torch.channels_last), packed


@torch.library.register_fake("bitnas::conv2d_bits")
def _(x, weight, prepared, threshold, flip, in_channels, sh, sw, ph, pw, dh, dw, groups, unit):
    images, channels, height, width = _conv_sizes(x, weight, (sh, sw), (ph, pw), (dh, dw))
    return x.new_empty((images, height, width, words_for(channels)))


@torch.library.register_fake("bitnas::linear_int32")
def _(x, weight, prepared, in_features, unit):
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=torch.int32)


@torch.library.register_fake("bitnas::linear_float")
def _(x, weight, prepared, scale, bias, in_features, unit, residual=None, slope=None, dtype=None):
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype or torch.float32)


@torch.library.register_fake("bitnas::linear_bits")
def _(x, weight, prepared, threshold, flip, in_features, unit):
    return x.new_empty((x.shape[0], words_for(weight.shape[0])))


@torch.library.register_fake("bitnas::join_nodes")
def _(shortcut, nodes, live, groups, channels, repeat, pool):
    images, _, height, width = shortcut.shape
    sides = ((height + 1) // 2, (width + 1) // 2) if pool else (height, width)
    return shortcut.new_empty((images, groups * channels, *sides)).to(memory_format=torch.channels_last)


@torch.library.register_fake("bitnas::join_nodes_bits")
def _(shortcut, nodes, cut, direction, live, groups, channels, repeat, pool):
    floats = torch.ops.bitnas.join_nodes(shortcut, nodes, live, groups, channels, repeat, pool)
    return floats, torch.ops.bitnas.pack_channels(floats, cut, direction)


@torch.library.register_fake("bitnas::max_pool2d_bits")
def _(x, flip, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w):
    height = _out_size(x.shape[1], padding_h, 1, kernel_h, stride_h)
    width = _out_size(x.shape[2], padding_w, 1, kernel_w, stride_w)
    return x.new_empty((x.shape[0], height, width, x.shape[3]))
