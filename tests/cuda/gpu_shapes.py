"""Every operator on CUDA tensors against the CPU's kernels on random shapes, by equality; pytest or not.

    python tests/cuda/gpu_shapes.py --count 10000 --seed 3          # a kernel of the GPU per shape, in turns
    python tests/cuda/gpu_shapes.py --count 200 --every-kernel      # small enough to run under compute-sanitizer

The CPU's kernels are held to float64 torch by tests/ops. Exit code 1 and the case on the first difference.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bitnas import ops

sys.path.append(str(Path(__file__).parents[1] / "ops"))
from shapes import Case, random_case

_ops = torch.ops.bitnas

# Rows of a product straddle tiles of 16 to 256; features fill words to even and to odd numbers of them.
_ROWS = (0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257, 300, 513)
_FEATURES = (1, 63, 64, 65, 128, 192, 255, 256, 257, 511, 512, 513, 1000, 1024, 1025, 2048, 4608)


@dataclass(frozen=True)
class Product:
    """A linear layer."""

    rows: int
    features: int
    out_features: int
    activations: str
    dtype: torch.dtype
    seed: int

    @property
    def flat(self):
        return self.features, self.activations == "unit"

    def tensors(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(self.rows, self.features, generator=generator) + 0.3
        return x.to(self.dtype), torch.randn(self.out_features, self.features, generator=generator)


def random_product(rng: random.Random) -> Product:
    return Product(
        rows=rng.choice(_ROWS),
        features=rng.choice(_FEATURES),
        out_features=rng.choice(_ROWS[1:]),
        activations=rng.choice(("sign", "unit")),
        dtype=rng.choice((torch.float32, torch.bfloat16, torch.float16)),
        seed=rng.randrange(1 << 30),
    )


def random_cases(count: int, seed: object) -> Iterator[Case | Product]:
    """Two convolutions to one product."""
    rng = random.Random(str(seed))
    for i in range(count):
        yield random_product(rng) if i % 3 == 2 else random_case(rng)


@dataclass
class Runner:
    """Calls operators on CPU tensors and on copies of them on a device, and compares."""

    device: str
    case: object

    def same(self, name: str, call: Callable[..., object], *arguments: object, **options: object) -> object:
        """What the call gives on the CPU, having found it equal to what it gives on the device.

        Raises AssertionError naming the operator and the case.
        """
        expected = call(*arguments, **options)
        pair = isinstance(expected, tuple | list)
        on_device = [self._copy(argument) for argument in arguments]
        options_on_device = {key: self._copy(value) for key, value in options.items()}
        for tensor in expected if pair else (expected,):
            self._poison(tensor)
        got = call(*on_device, **options_on_device)
        for one, other in zip(expected, got, strict=True) if pair else [(expected, got)]:
            assert other.device.type == self.device, f"{name}: result on {other.device}: {self.case}"
            assert one.dtype == other.dtype, f"{name}: {other.dtype}, on the CPU {one.dtype}: {self.case}"
            assert one.numel() == 0 or one.stride() == other.stride(), f"{name}: strides {other.stride()}: {self.case}"
            assert torch.equal(one, other.cpu()), (
                f"{name} differs from the CPU's kernel: {self.case}, {_words(options)}"
            )
        return expected

    def _copy(self, value: object) -> object:
        return value.to(self.device) if isinstance(value, Tensor) else value

    def _poison(self, like: Tensor) -> None:
        """Leaves garbage where the allocator will put the next tensor of this size: what a kernel forgets to write
        must not happen to be right from the call before."""
        garbage = torch.empty(like.numel() * like.element_size(), dtype=torch.uint8, device=self.device)
        garbage.fill_(0xA5)


def _words(options: dict[str, object]) -> str:
    return ", ".join(f"{key}={getattr(value, 'shape', value)}" for key, value in options.items() if value is not None)


def _terms(n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Per-channel arguments of every epilogue."""
    scale, bias, cut, direction = torch.randn(4, n, generator=generator)
    words = torch.randint(-(2**63), 2**63 - 1, (ops.words_for(n),), generator=generator)
    tail = n % 64
    if tail:
        words[-1] &= (1 << tail) - 1
    return {
        "scale": scale,
        "bias": bias,
        "cut": cut,
        "direction": direction.sign(),
        "threshold": torch.randint(-25, 25, (n,), generator=generator, dtype=torch.int32),
        "flip": words,
    }


def _float_options(rng: random.Random, like: Tensor, generator: torch.Generator) -> dict[str, object]:
    """Residual, slope and dtype, each given or not."""
    dtype = rng.choice((None, torch.float32, torch.bfloat16, torch.float16))
    residual = torch.empty_like(like, dtype=dtype or torch.float32).copy_(torch.randn(like.shape, generator=generator))
    slope = torch.randn(like.shape[1], generator=generator)
    return {
        "residual": residual if rng.random() < 0.5 else None,
        "slope": slope if rng.random() < 0.5 else None,
        "dtype": dtype,
    }


def check(case: Case | Product, device: str) -> None:
    """Every operator that the case is an input of. Raises AssertionError."""
    run = Runner(device, case)
    generator, rng = torch.Generator().manual_seed(case.seed), random.Random(case.seed)
    x, weight = case.tensors()
    packed = run.same("pack", _ops.pack, x, ops.THRESHOLDS[case.activations])
    cuts = torch.randn(2, x.shape[1], generator=generator)
    run.same("pack_channels", _ops.pack_channels, x, cuts[0], cuts[1].sign())
    run.same("unpack", _ops.unpack, packed, x.shape[1], case.activations == "unit")
    packed_weight = run.same("pack", _ops.pack, weight, 0.0)

    groups = case.groups if isinstance(case, Case) else 1
    prepared = _ops.prepare_weight(packed_weight.to(device), x.shape[1], groups) if rng.random() < 0.5 else None
    family = "conv2d" if isinstance(case, Case) else "linear"

    def dot(epilogue: str, *terms: object, **options: object) -> object:
        op = getattr(_ops, f"{family}_{epilogue}")

        def call(x: Tensor, weight: Tensor, *rest: object, **kept: object) -> object:
            # A prepared weight is the device's own; on the CPU the weight is prepared in the call.
            return op(x, weight, prepared if x.device.type == device else None, *rest, **kept)

        return run.same(f"{family}_{epilogue}", call, packed, packed_weight, *terms, *case.flat, **options)

    dots = dot("int32")
    t = _terms(dots.shape[1], generator)
    dot("bits", t["threshold"], t["flip"] if rng.random() < 0.5 else None)
    dot("float", t["scale"], t["bias"])
    dot("float", t["scale"], t["bias"], **_float_options(rng, dots, generator))
    if isinstance(case, Case):
        options = _float_options(rng, dots, generator)
        dot("float_bits", t["scale"], t["bias"], t["cut"], t["direction"], **options)
        _check_max_pool2d(run, packed, rng, generator)


def _check_max_pool2d(run: Runner, packed: Tensor, rng: random.Random, generator: torch.Generator) -> None:
    kernel = [rng.randint(1, min(3, size)) for size in packed.shape[1:3]]
    stride, padding = [rng.randint(1, 3) for _ in kernel], [rng.randint(0, side // 2) for side in kernel]
    flip = torch.randint(0, 1 << 62, packed.shape[3:], generator=generator) if rng.random() < 0.5 else None
    run.same("max_pool2d_bits", _ops.max_pool2d_bits, packed, flip, *kernel, *stride, *padding)


def small(case: Case | Product) -> Case | Product:
    """The case with one image or few rows: a sanitizer runs a kernel up to a hundred times slower."""
    if isinstance(case, Case):
        return replace(case, batch=min(case.batch, 1))
    return replace(case, rows=min(case.rows, 130), out_features=min(case.out_features, 130))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="shapes (default 2000)")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--kernels", help="names with commas (default: all of this GPU)")
    parser.add_argument("--every-kernel", action="store_true", help="small shapes, each with every kernel")
    options = parser.parse_args()
    names = ops.cuda_kernels()
    if not names:
        print("gpu_shapes: no usable GPU here", file=sys.stderr)
        return 1
    kernels = options.kernels.split(",") if options.kernels else ["auto", *names]
    torch.set_num_threads(1)  # the CPU's side is many small calls
    start = time.monotonic()
    try:
        for i, case in enumerate(random_cases(options.count, options.seed)):
            for kernel in kernels if options.every_kernel else [kernels[i % len(kernels)]]:
                ops.select_cuda_kernel(kernel)
                check(small(case) if options.every_kernel else case, "cuda")
    except AssertionError as error:
        print(f"kernel {kernel}: {error}")
        return 1
    finally:
        ops.select_cuda_kernel("auto")
    each = ", each with every kernel" if options.every_kernel else ""
    seconds = time.monotonic() - start
    print(f"{options.count} shapes equal on {', '.join(kernels)}{each}: {seconds:.0f} s, seed {options.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
