"""The figures of the papers, as exact integers.

Shen et al. 2019, tables 1 and 2: the printed rows are these numbers rounded.
"""

from itertools import pairwise

import pytest

from bitnas.cost import count, rules
from bitnas.cost.rules import Layer

M = 1_000_000


def vgg(**options):
    return count("vgg_small", rule="shen2019", **options)


def resnet(**options):
    return count("resnet18", rule="shen2019", **options)


@pytest.mark.parametrize(
    ("ratio", "flops", "memory"),
    [
        (1, 13_189_120, 7_303_168),
        (2, 45_252_608, 23_748_608),
        (3, 96_190_464, 49_336_320),
        (4, 166_002_688, 84_066_304),
    ],
)
def test_vgg_small_uniform(ratio, flops, memory):
    c = vgg(ratios=ratio)
    assert (c.flops, c.ops, c.memory_bits) == (flops, flops, memory)
    assert isinstance(c.flops, int)
    assert c.bops == 603_979_776 * ratio**2
    assert c.macs == (3_538_944 + 81_920) * ratio
    binary = [layer for layer in c.layers if layer.binary]
    assert sum(layer.weights for layer in binary) == 4_571_136 * ratio**2
    assert sum(layer.weights for layer in c.layers) - sum(layer.weights for layer in binary) == 85_376 * ratio


@pytest.mark.parametrize(
    ("name", "flops", "binary_weights", "float_weights", "printed"),
    [
        ("vgg_auto_a", 11_313_152, 3_686_400, 42_688, ("11.3132", "5.0524")),
        ("vgg_auto_b", 59_285_504, 21_823_488, 47_872, ("59.2855", "23.3554")),
    ],
)
def test_vgg_small_published_codes(name, flops, binary_weights, float_weights, printed):
    c = count(name, rule="shen2019")
    assert c.flops == flops
    assert c.memory_bits == binary_weights + 32 * float_weights
    assert (f"{c.flops / M:.4f}", f"{c.memory_bits / M:.4f}") == printed


def test_vgg_small_full_precision():
    c = vgg(full_precision=True)
    assert (c.macs, c.flops, c.bops) == (607_600_640, 607_600_640, 0)
    assert sum(layer.weights for layer in c.layers) == 4_656_512
    assert c.memory_bits == 149_008_384


VGG_LAYERS = {
    "conv1": (3_538_944, 3_456),
    "conv2": (150_994_944, 147_456),
    "conv3": (75_497_472, 294_912),
    "conv4": (150_994_944, 589_824),
    "conv5": (75_497_472, 1_179_648),
    "conv6": (150_994_944, 2_359_296),
    "fc": (81_920, 81_920),
}


def test_vgg_small_layers():
    c = vgg()
    assert {layer.name: (layer.macs, layer.weights) for layer in c.layers if layer.macs} == VGG_LAYERS
    assert [layer.name for layer in c.layers if layer.binary] == ["conv2", "conv3", "conv4", "conv5", "conv6"]


@pytest.mark.parametrize("size", [(1, 8, 8), (1, 28, 28), (3, 17, 40)])
def test_vgg_small_other_inputs(size):
    """The same formula with the maps of that input: full, half and quarter size, an eighth before the classifier."""
    channels, h, w = size
    maps = [h * w, h * w, (h // 2) * (w // 2), (h // 2) * (w // 2), (h // 4) * (w // 4), (h // 4) * (w // 4)]
    widths = [32, 32, 64, 64, 128, 128]
    inputs = [channels, *widths[:-1]]
    macs = [9 * i * o * m for i, o, m in zip(inputs, widths, maps, strict=True)]
    classifier = 128 * (h // 8) * (w // 8) * 7
    expected = macs[0] + 32 * maps[0] + classifier + sum(macs[1:]) / 64
    c = vgg(input_size=size, base_width=0.25, num_classes=7)
    assert c.flops == expected
    assert c.input_size == size
    float_weights = 9 * channels * 32 + classifier
    assert c.memory_bits == 32 * float_weights + sum(9 * i * o for i, o in pairwise(widths))


def test_a_fractional_total_stays_exact():
    c = vgg(ratios=0.51, base_width=0.25, input_size=(1, 9, 9))
    assert c.bops % 64
    assert c.flops == c.macs + c.bops / 64 + next(layer.outputs for layer in c.layers)


@pytest.mark.parametrize(("ratio", "flops"), [(1, 149_335_016), (2, 351_654_888), (3, 606_960_616), (4, 915_252_200)])
def test_resnet18_uniform(ratio, flops):
    c = resnet(ratios=ratio)
    assert (c.flops, c.ops) == (flops, flops)
    assert flops == 122_841_088 * ratio + 1000 + 26_492_928 * ratio**2
    binary = sum(layer.weights for layer in c.layers if layer.binary)
    assert binary == 11_157_504 * ratio**2
    assert c.memory_bits == binary + 32 * 521_408 * ratio
    assert c.bops == (1_676_279_808 + 19_267_584) * ratio**2


@pytest.mark.parametrize(
    ("name", "printed", "binary_weights", "float_weights"),
    [
        ("resnet18_auto_a", "495.058", 94_339_072, 1_042_816),
        ("resnet18_auto_b", "660.197", 113_893_376, 1_564_224),
    ],
)
def test_resnet18_published_codes(name, printed, binary_weights, float_weights):
    c = count(name, rule="shen2019")
    assert f"{c.flops / M:.3f}" == printed
    assert isinstance(c.flops, int)
    assert c.memory_bits == binary_weights + 32 * float_weights


def test_resnet18_full_precision():
    c = resnet(full_precision=True)
    assert c.flops == 1_820_697_576
    assert (c.macs, c.bops) == (1_814_073_344, 0)
    assert c.memory_bits == 32 * (11_157_504 + 521_408)


@pytest.mark.parametrize(("activation_bases", "flops"), [(3, 520_236_008), (5, 785_165_288)])
def test_resnet18_abc_net(activation_bases, flops):
    """Five weight bases by three and by five activation bases: printed 520M and 785M."""
    one, several = resnet(), resnet(weight_bases=5, activation_bases=activation_bases)
    assert several.flops == flops
    assert several.bops == 5 * activation_bases * one.bops
    assert several.macs == one.macs
    assert several.memory_bits == 5 * 11_157_504 + 32 * 521_408
    assert several.params == one.params


def test_resnet18_pieces():
    c = resnet()
    by_name = {layer.name: layer for layer in c.layers}
    assert (by_name["conv1"].macs, by_name["conv1"].weights) == (118_013_952, 9_408)
    assert by_name["fc"].ops == 512_000 + 1_000
    threes = [layer.macs for layer in c.layers if layer.binary and "downsample" not in layer.name]
    assert sorted(set(threes)) == [57_802_752, 115_605_504]
    assert threes.count(57_802_752) == 3
    ones = [layer for layer in c.layers if layer.binary and "downsample" in layer.name]
    assert [(layer.macs, layer.weights) for layer in ones] == [
        (6_422_528, 8_192),
        (6_422_528, 32_768),
        (6_422_528, 131_072),
    ]
    assert sum(layer.ops for layer in c.layers if layer.kind == "batch_norm") == 2_483_712
    assert by_name["maxpool"].ops == 1_806_336
    assert by_name["avgpool"].ops == 25_088
    assert by_name["relu"].ops == 0


def test_layers_add_up_to_the_total():
    for rule in ("mac", "shen2019", "nasbnn", "bars"):
        c = count("resnet18", rule=rule, input_size=(3, 96, 96))
        assert sum(layer.ops for layer in c.layers) == c.ops
        assert sum(layer.memory_bits for layer in c.layers) == c.memory_bits
        assert sum(layer.params for layer in c.layers) == c.params


def test_tables_belong_to_their_network():
    assert vgg().rule == "shen2019-table1"
    assert resnet().rule == "shen2019-table2"
    assert count("vgg_auto_b", rule="shen2019-table1").flops == 59_285_504
    for model, rule in (("resnet18", "shen2019-table1"), ("vgg_small", "shen2019-table2")):
        with pytest.raises(ValueError, match=f"rule: '{rule}' counts only"):
            count(model, rule=rule)


def test_other_rules_on_vgg_small():
    c = count("vgg_small", rule="mac")
    assert (c.macs, c.flops, c.bops) == (3_620_864, 3_620_864, 603_979_776)
    assert c.ops == 3_620_864 + 9_437_184
    c = count("vgg_small", rule="nasbnn")
    assert (c.flops, c.ops) == (3_620_874, 3_620_874 + 9_437_184)  # the classifier's ten biases
    c = count("vgg_small", rule="bars")
    assert (c.flops, c.ops - c.flops) == (2 * 3_620_864, 2 * 603_979_776)


# NAS-BNN (Lin et al. 2024): stem | channels/kernel/groups of the k x k convolution, per block, stages separated by |
SUBNETS = {
    "smallest": ("24 | 48/3/1 48/3/1 | 96/3/2 96/3/2 | 192/3/4 192/3/4 | " + "384/3/8 " * 8 + "| 768/3/16 768/3/16"),
    "biggest": (
        "48 | 96/3/1 96/3/1 96/3/1 | 192/5/1 192/5/1 192/5/1 | 384/5/2 384/5/2 384/5/2 | "
        + "768/5/4 " * 9
        + "| 1536/5/8 1536/5/8 1536/5/8"
    ),
    "one": (
        "24 | 48/3/1 48/3/1 64/3/1 | 96/3/2 192/5/2 | 256/5/4 384/5/4 | 384/5/8 384/3/8 384/3/8 512/5/4 768/5/8 "
        "768/5/4 768/3/4 768/5/4 | 1536/3/8 1536/3/16 1536/3/8"
    ),
    "two": (
        "24 | 96/3/1 96/3/1 | 96/5/2 128/3/1 | 192/3/4 256/3/4 384/5/4 | 512/3/8 512/3/4 768/3/8 768/3/4 768/3/8 "
        "768/3/8 768/5/8 768/5/4 768/3/8 | 1024/5/16 1536/5/16"
    ),
    "three": (
        "32 | 48/3/1 96/3/1 96/3/1 | 128/3/1 128/5/2 | 192/3/2 256/3/2 | 384/5/4 384/3/8 384/3/4 768/5/8 768/5/8 "
        "768/3/8 768/3/4 768/5/8 768/3/4 | 768/5/16 1536/3/16"
    ),
}


def conv(name, cin, cout, kernel, groups, size, **fields):
    weights = kernel * kernel * (cin // groups) * cout
    macs = weights * size * size
    return Layer(name, "conv", (cout, size, size), cout * size * size, macs, weights=weights, params=weights, **fields)


def linear(cin, cout):
    return Layer("fc", "linear", (cout,), cout, cin * cout, weights=cin * cout, biases=cout, params=cin * cout + cout)


def nasbnn_layers(code):
    stem, *stages = code.split("|")
    width = int(stem)
    layers = [conv("stem", 3, width, 3, 1, 112, weight_bits=8)]
    for stage, blocks in enumerate(stages):
        for block in blocks.split():
            channels, kernel, groups = map(int, block.split("/"))
            size = 112 >> stage
            for cout, k, g in ((width, kernel, groups), (channels, 1, 1)):
                layers.append(conv(f"{stage}", width, cout, k, g, size, binary=True, weight_bits=1))
            width = channels
    return [*layers, linear(width, 1000)]


@pytest.mark.parametrize(
    ("subnet", "flops", "bops", "ops", "binary_weights"),
    [
        ("smallest", "1.785064", "1215.212544", "20.772760", 3_862_080),
        ("biggest", "3.569128", "21007.687680", "331.814248", 64_804_608),
        ("one", "2.553064", "5048.107008", "81.429736", 25_576_896),
        ("two", "2.553064", "5530.398720", "88.965544", 20_228_928),
        ("three", "2.891752", "5348.761600", "86.466152", 15_790_336),
    ],
)
def test_nasbnn_subnets(subnet, flops, bops, ops, binary_weights):
    layers = nasbnn_layers(SUBNETS[subnet])
    _, totals = rules.price(layers, "nasbnn")
    assert tuple(f"{n / M:.6f}" for n in (totals.flops, totals.bops, totals.ops)) == (flops, bops, ops)
    assert sum(layer.weights for layer in layers if layer.binary) == binary_weights


def bars_layers():
    """CIFAR, 16 channels, cells N N R N N R N N, all ten edges of a cell binary 3x3, 1x1 pre-processing in float."""
    layers = [conv("stem", 3, 16, 3, 1, 32), conv("stem2", 16, 64, 1, 1, 32)]
    width, size = 16, 32
    for cell in "NNRNNRNN":
        inner, out_size = (2 * width, size // 2) if cell == "R" else (width, size)
        layers.append(conv("preprocess", 4 * width, width, 1, 1, size))
        for _ in range(4):
            layers.append(conv("from_input", width, inner, 3, 1, out_size, binary=True, weight_bits=1))
        for _ in range(6):
            layers.append(conv("between", inner, inner, 3, 1, out_size, binary=True, weight_bits=1))
        width, size = inner, out_size
    return [*layers, linear(4 * width, 10)]


def test_bars_worked_example():
    layers = bars_layers()
    _, totals = rules.price(layers, "bars")
    assert totals.flops == 19_764_224
    assert totals.ops - totals.flops == 358_612_992
    assert totals.ops == 378_377_216
    assert sum(layer.weights for layer in layers if layer.binary) == 1_336_320
