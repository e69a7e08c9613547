"""The end of a cell in one operator, against the functions of bitnas.nn that say what it computes, by equality."""

import random

import pytest
import torch
from torch.nn import functional as F

from bitnas import reference
from bitnas.nn.cells import fit_channels, join_nodes

OPS = torch.ops.bitnas


def floats(generator, *shape):
    return torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last)


def expected(shortcut, nodes, live, channels, repeat, pool):
    if pool:
        shortcut = F.avg_pool2d(shortcut, 2, ceil_mode=True, count_include_pad=False)
    if not nodes:
        return fit_channels(shortcut, len(live) * channels, len(live), repeat)
    return join_nodes(shortcut, *nodes, channels=channels, live=live, repeat=repeat)


def random_join(rng):
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
    groups, repeat, pool = rng.randint(1, 8), rng.choice((1, 1, 2, 2, 3)), rng.random() < 0.5
    own, channels = rng.choice((1, 3, 4, 16, 17, 33, 300)), rng.choice((1, 3, 8, 15, 16, 32, 70, 513))
    images, height, width = rng.choice((0, 1, 1, 2, 5)), rng.randint(1, 12), rng.randint(1, 12)
    live = tuple(rng.random() < 0.6 for _ in range(groups))
    sides = ((height + 1) // 2, (width + 1) // 2) if pool else (height, width)
    nodes = [floats(generator, images, channels, *sides) for _ in range(sum(live))]
    return floats(generator, images, groups * own, height, width), nodes, live, channels, repeat, pool


def test_random_joins(isa, threads):
    rng = random.Random(f"join {isa}")
    for _ in range(60):
        shortcut, nodes, live, channels, repeat, pool = random_join(rng)
        wanted = expected(shortcut, nodes, live, channels, repeat, pool)
        place = (sum(alive << i for i, alive in enumerate(live)), len(live), channels, repeat, pool)
        cuts = torch.randn(rng.randint(1, 3), wanted.shape[1])
        directions = torch.randn(cuts.shape).sign()
        with threads():
            joined = OPS.join_nodes(shortcut, nodes, *place)
            again, bits = OPS.join_nodes_bits(shortcut, nodes, cuts, directions, *place)
        assert torch.equal(joined, wanted), place
        assert joined.is_contiguous(memory_format=torch.channels_last) or joined.numel() == 0
        assert torch.equal(again, wanted), place
        for packed, cut, direction in zip(bits, cuts, directions, strict=True):
            assert torch.equal(packed, reference.pack(wanted, cut, direction)), place


def test_more_pixels_than_one_thread_takes(threads):
    generator = torch.Generator().manual_seed(0)
    shortcut, nodes = floats(generator, 3, 64, 40, 40), [floats(generator, 3, 16, 40, 40) for _ in range(4)]
    wanted = expected(shortcut, nodes, (True,) * 4, 16, 1, False)
    cut, direction = torch.randn(2, 64)
    with threads():
        joined, bits = OPS.join_nodes_bits(shortcut, nodes, cut, direction.sign(), 15, 4, 16, 1, False)
    assert torch.equal(joined, wanted)
    assert torch.equal(bits, reference.pack(wanted, cut, direction.sign()))


S, N = torch.zeros(1, 8, 4, 4), torch.zeros(1, 3, 4, 4).contiguous(memory_format=torch.channels_last)
LAST = S.contiguous(memory_format=torch.channels_last)
WRONG = {
    "shortcut must be laid out in channels_last": (S, [N], 1, 4, 3, 1, False),
    "shortcut must be float32": (LAST.double(), [N], 1, 4, 3, 1, False),
    "groups must be between 1 and 8, got 9": (LAST, [], 0, 9, 3, 1, False),
    r"groups \(3\) must divide": (LAST, [N], 1, 3, 3, 1, False),
    "live must have a bit for each of the 1 nodes, below 2.4; got 3": (LAST, [N], 3, 4, 3, 1, False),
    "live must have": (LAST, [N], 16, 4, 3, 1, False),
    "a node has 4 in dimension 3, expected 2": (LAST, [N], 1, 4, 3, 1, True),
    "a node has 3 in dimension 1, expected 5": (LAST, [N], 1, 4, 5, 1, False),
    "channels and repeat must be": (LAST, [], 0, 4, 0, 1, False),
    "channels and repeat must": (LAST, [], 0, 4, 1, 0, False),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(message):
    with pytest.raises(RuntimeError, match=message):
        OPS.join_nodes(*WRONG[message])


def test_wrong_cuts():
    cuts = torch.zeros(2, 12)
    for wrong in (torch.zeros(2, 11), torch.zeros(0, 12), torch.zeros(11), cuts.double(), torch.zeros(12, 2).T):
        with pytest.raises(RuntimeError, match="cut must be a contiguous float32"):
            OPS.join_nodes_bits(LAST, [N], wrong, cuts, 1, 4, 3, 1, False)
    with pytest.raises(RuntimeError, match="direction must be a contiguous float32"):
        OPS.join_nodes_bits(LAST, [N], cuts, torch.ones(3, 12), 1, 4, 3, 1, False)
