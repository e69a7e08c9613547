"""Freezing: every integer equal, every bit as defined, on the shipped networks and on modules a user might write."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from definition import BINARY, bits_seen, defined, randomise
from modules import User, conv, images
from torch import nn

import bitnas
from bitnas import ops
from bitnas.nn import BinaryConv2d, BinaryLinear

SCHEMES = ("dorefa", "xnor", "bireal")


def kinds(frozen):
    return [step.kind for step in frozen.steps]


class Computed(nn.Module):
    """A float convolution as the frozen network rounded it, near to what torch makes of it: bits may hang on that."""

    def __init__(self, layer, value):
        super().__init__()
        self.layer, self.value = layer, value

    def forward(self, x):
        wanted = self.layer(x)
        assert (self.value - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        return self.value


def check(model, x, norms=None):
    """Freezes, compares every integer with torch and every bit and output with the definition."""
    frozen = bitnas.freeze(model)
    report = bitnas.verify(model, frozen, x)
    assert report.dots > 0
    assert report.dots_equal == report.dots
    assert report.ok
    definition = defined(model, norms or {})
    with torch.no_grad():
        values = frozen.values(x)
        for step in frozen.steps:
            if step.kind == "float_conv2d" and step.name in definition._modules:
                computed = Computed(frozen.get_submodule(step.name), values[step.name])
                definition.set_submodule(step.name, computed)
        if "conv1" in frozen._modules and "bn1" not in (norms or {}) and hasattr(model, "bn1"):
            definition.bn1 = nn.Identity()  # the float convolution keeps its folded norm
        wanted = definition(x)
    seen = bits_seen(definition)
    steps = {step.source: step for step in frozen.steps if step.source}
    assert steps.keys() == seen.keys()
    for source, step in steps.items():
        assert torch.equal(values[step.inputs[0]], seen[source]), source
    torch.testing.assert_close(values[frozen.steps[-1].name], wanted, rtol=1e-5, atol=1e-5)
    return frozen


# ---- shipped networks ---------------------------------------------------------

VGG_NORMS = {"bn1": None, "bn2": "conv2", "bn3": "conv3", "bn4": "conv4", "bn5": "conv5"}


def resnet_norms(model):
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, BinaryConv2d):
            found[name.replace("conv", "bn") if "downsample" not in name else name.replace(".conv", ".bn")] = name
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_vgg_small_is_exact(scheme, seed):
    model = bitnas.create_model("vgg_small", base_width=0.15 + 0.1 * seed, scheme=scheme, input_size=(3, 16, 16))
    randomise(model, seed)
    frozen = check(model, images(4, 3, 16, 16, seed=seed), {**VGG_NORMS, "bn6": "conv6"})
    # Float work: the first convolution, the last pool with its affine, the classifier. All else is bits.
    assert [k for k in kinds(frozen) if k not in ("conv2d", "max_pool2d", "pack")] == [
        "float_conv2d", "float_max_pool2d", "affine", "flatten", "float_linear",
    ]  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
def test_resnet18_is_exact(scheme):
    model = bitnas.create_model("resnet18", base_width=0.2, scheme=scheme, input_size=(3, 16, 16), num_classes=10)
    randomise(model, 1)
    with torch.no_grad():  # shortcuts add up: keep the sums of eight blocks representable
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.clamp_(-3, 3)
                module.running_mean.clamp_(-100, 100)
    check(model, images(3, 3, 16, 16), resnet_norms(model))


def test_paper_size_resnet18_is_exact():
    model = bitnas.create_model("resnet18")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 50)
            nn.init.uniform_(module.weight, -1, 1)
    check(model, images(1, 3, 224, 224), resnet_norms(model))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_logits_and_predictions_agree_with_the_trained_network(scheme):
    torch.manual_seed(0)
    model = bitnas.create_model("vgg_small", base_width=0.25, scheme=scheme, input_size=(1, 8, 8))
    x = images(64, 1, 8, 8)
    with torch.no_grad():
        model.train()(x)  # realistic running statistics
    report = bitnas.verify(model, bitnas.freeze(model), x)
    assert report.ok
    assert report.bits_equal >= 0.9999 * report.bits
    assert report.predictions == 64
    assert report.predictions_equal >= 63
    if report.bits_equal == report.bits:
        assert report.max_logit_difference < 1e-4


# ---- modules of a user ----------------------------------------------------------


def linear_stack():
    layers = (
        BinaryLinear(70, 130, scheme="xnor"),
        nn.BatchNorm1d(130),
        BinaryLinear(130, 65, bias=True, scheme="dorefa"),
    )
    return nn.Sequential(*layers, nn.BatchNorm1d(65), BinaryLinear(65, 10, scheme="bireal"))


SEQUENTIAL = {
    "groups, 5x5, dilation, stride": (
        lambda: (
            conv(12, 24, groups=3), nn.BatchNorm2d(24),
            conv(24, 70, 5, padding=4, dilation=2, stride=2, groups=2), nn.BatchNorm2d(70),
            conv(70, 5, (1, 3), padding=(0, 1), stride=(2, 1), bias=True),
        ),
        (3, 12, 11, 9), {"1": "0", "3": "2"}, {"float_batch_norm2d"},
    ),
    "depthwise and pointwise": (
        lambda: (conv(130, 130, groups=130), nn.BatchNorm2d(130), conv(130, 7, 1, padding=0)),
        (2, 130, 5, 5), {"1": "0"}, {"float_batch_norm2d"},
    ),
    "pool after norm": (
        lambda: (conv(), nn.BatchNorm2d(8), nn.MaxPool2d(2), conv(8, 5)),
        (3, 3, 8, 8), {"1": "0"}, {"float_max_pool2d", "affine"},
    ),
    "pool before norm": (
        lambda: (conv(3, 80), nn.MaxPool2d(2), nn.BatchNorm2d(80), conv(80, 5)),
        (3, 3, 8, 8), {"2": "0"}, {"float_max_pool2d", "affine"},
    ),
    "padded pool before norm": (
        lambda: (conv(3, 80), nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(80), conv(80, 5)),
        (3, 3, 9, 8), {"2": "0"}, {"float_max_pool2d", "affine"},
    ),
    "padded pool after norm": (
        lambda: (conv(3, 80), nn.BatchNorm2d(80), nn.MaxPool2d(3, 2, 1), conv(80, 5, scheme="dorefa")),
        (3, 3, 9, 8), {"1": "0"}, {"float_max_pool2d", "affine"},
    ),
    "two pools": (
        lambda: (conv(3, 66), nn.BatchNorm2d(66), nn.MaxPool2d(2), nn.MaxPool2d((3, 1), 1, (1, 0)), conv(66, 5)),
        (3, 3, 8, 8), {"1": "0"}, {"float_max_pool2d"},
    ),
    "pool rounded up": (
        lambda: (conv(), nn.BatchNorm2d(8), nn.MaxPool2d(3, 2, 1, ceil_mode=True), conv(8, 5)),
        (2, 3, 8, 8), {"1": "0"}, set(),
    ),
    "dilated pool": (
        lambda: (conv(), nn.MaxPool2d(2, dilation=2), nn.BatchNorm2d(8), conv(8, 5)), (2, 3, 8, 8), {"2": None}, set(),
    ),
    "float pool, then bits": (
        lambda: (nn.Conv2d(3, 9, 3), nn.MaxPool2d(2), nn.BatchNorm2d(9), conv(9, 4)), (2, 3, 8, 8), {"2": None}, set(),
    ),
    "layers that do nothing": (
        lambda: (conv(), nn.Identity(), nn.Dropout(), nn.BatchNorm2d(8), nn.Dropout2d(), conv(8, 4), nn.Identity()),
        (2, 3, 8, 8), {"3": "0"}, {"float_batch_norm2d"},
    ),
    "bias, no norm": (
        lambda: (conv(bias=True), conv(8, 66, bias=True, scheme="dorefa"), conv(66, 4)), (2, 3, 8, 8), {}, {"affine"},
    ),
    "norm first": (lambda: (nn.BatchNorm2d(3), conv()), (2, 3, 8, 8), {"0": None}, {"float_batch_norm2d"}),
    "norm last": (lambda: (conv(), nn.BatchNorm2d(8)), (2, 3, 8, 8), {"1": "0"}, {"float_batch_norm2d", "affine"}),
    "pooled integers last": (
        lambda: (conv(), nn.MaxPool2d(2), nn.BatchNorm2d(8)), (2, 3, 8, 8), {"2": "0"}, {"float_batch_norm2d"},
    ),
    "norm without gain": (
        lambda: (conv(), nn.BatchNorm2d(8, affine=False), conv(8, 4)), (2, 3, 8, 8), {"1": "0"}, {"float_batch_norm2d"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("case", SEQUENTIAL)
def test_sequential(case, seed):
    make, shape, norms, absent = SEQUENTIAL[case]
    model = nn.Sequential(*make())
    if case != "norm without gain":
        randomise(model, seed)
    frozen = check(model, images(*shape, seed=seed), norms)
    assert not absent & set(kinds(frozen))


@pytest.mark.parametrize("seed", range(3))
def test_linear_layers(seed):
    model = randomise(linear_stack(), seed)
    frozen = check(model, images(9, 70, seed=seed), {"1": "0", "3": "2"})
    assert kinds(frozen) == ["pack", "linear", "linear", "linear"]
    strided = images(70, 9, seed=seed).t()
    assert torch.equal(frozen(strided), frozen(strided.contiguous()))


def two_readers(m, x):
    y = m.bn(m.c(x))
    return m.a(y) + m.b(y)


def test_two_readers_with_different_encodings():
    model = User(
        two_readers,
        c=conv(), bn=nn.BatchNorm2d(8), a=conv(8, 5, scheme="dorefa"), b=conv(8, 5, scheme="xnor"),
    )  # fmt: skip
    frozen = check(randomise(model), images(), {"bn": "c"})
    assert kinds(frozen).count("pack") == 3


def test_a_value_read_in_float_and_by_a_binary_layer():
    def forward(m, x):
        y = m.bn(m.c(x))
        return m.d(y) + y

    model = User(forward, c=conv(), bn=nn.BatchNorm2d(8), d=conv(8, 8))
    check(randomise(model), images(), {"bn": "c"})


def test_two_binary_readers_share_one_packed_value():
    def forward(m, x):
        y = m.bn(m.c(x))
        return m.a(y) + m.b(m.drop(y)) + m.d(m.pool(y)).mean((2, 3), keepdim=True)

    layers = {"a": conv(8, 5), "b": conv(8, 5), "d": conv(8, 5), "pool": nn.MaxPool2d(2), "drop": nn.Dropout()}
    frozen = check(randomise(User(forward, c=conv(), bn=nn.BatchNorm2d(8), **layers)), images(), {"bn": "c"})
    assert kinds(frozen).count("pack") == 1


def test_a_dot_product_read_twice():
    def forward(m, x):
        y = m.c(x)
        return m.a(m.bn1_(y)) + m.b(m.bn2_(y)) + y.mean()

    layers = {"bn1_": nn.BatchNorm2d(8), "bn2_": nn.BatchNorm2d(8), "a": conv(8, 5), "b": conv(8, 5)}
    frozen = check(randomise(User(forward, c=conv(), **layers)), images(), {"bn1_": None, "bn2_": None})
    assert sum(kind.startswith("conv2d") for kind in kinds(frozen)) == 3  # computed once, whoever reads it


def test_a_residual_is_added_in_the_epilogue():
    def forward(m, x):
        y = m.a(x)
        y = m.bn_b(m.b(y)) + y
        return m.pool(y + m.bn_c(m.c(y)))

    layers = {"a": conv(), "b": conv(8, 8), "c": conv(8, 8), "bn_b": nn.BatchNorm2d(8), "bn_c": nn.BatchNorm2d(8)}
    frozen = check(randomise(User(forward, pool=nn.AvgPool2d(2), **layers)), images(), {"bn_b": "b", "bn_c": "c"})
    assert kinds(frozen).count("conv2d_add") == 2
    assert "add" not in kinds(frozen)


def test_a_sum_that_broadcasts_is_not_taken_for_a_residual():
    def forward(m, x):
        y = m.a(x)
        return m.b(y) + y.mean((2, 3), keepdim=True)

    model = randomise(User(forward, a=conv(), b=conv(8, 8)))
    frozen = check(model, images())
    assert "conv2d_add" in kinds(frozen)  # the layer itself sees at run time that it cannot fuse
    assert "add" not in kinds(frozen)


def test_a_value_added_to_itself_or_read_elsewhere_is_not_fused():
    def forward(m, x):
        y = m.a(x)
        z = m.b(y)
        return (y + y) + (z + z.relu())

    frozen = check(randomise(User(forward, a=conv(), b=conv(8, 8))), images())
    assert "conv2d_add" not in kinds(frozen)


def test_a_pool_read_twice():
    def forward(m, x):
        y = m.pool(m.c(x))
        return m.a(m.bn(y)) + m.b(y)

    model = User(forward, c=conv(), pool=nn.MaxPool2d(2), bn=nn.BatchNorm2d(8), a=conv(8, 5), b=conv(8, 5))
    frozen = check(randomise(model), images(), {"bn": None})
    assert sum(kind.startswith("conv2d") for kind in kinds(frozen)) == 3  # computed once, whoever reads it


def test_concatenation():
    def forward(m, x):
        return m.e(torch.cat([m.bn(m.c(x)), m.d(x), x], dim=1))

    model = User(forward, c=conv(), bn=nn.BatchNorm2d(8), d=conv(3, 4, bias=True), e=conv(15, 6))
    check(randomise(model), images(), {"bn": "c"})


def test_a_layer_called_twice_is_two_steps_and_both_are_verified():
    model = User(lambda m, x: m.c(m.bn(m.c(m.bn(m.c(x))))), c=conv(3, 3), bn=nn.BatchNorm2d(3))
    x = images()
    frozen = bitnas.freeze(model)
    assert [step.source for step in frozen.steps if step.source] == ["c", "c#2", "c#3"]
    report = bitnas.verify(model, frozen, x)
    assert [layer.name for layer in report.layers] == ["c", "c#2", "c#3"]
    assert report.ok
    assert report.bits_equal == report.bits
    torch.testing.assert_close(frozen(x), model.eval()(x))


def test_calls_of_one_layer_are_told_apart_whatever_the_order_they_are_read_in():
    def forward(m, x):
        first, second = m.c(x), m.c(m.bn(x))
        return m.d(second) - m.d(first)

    model = User(forward, c=conv(3, 3), bn=nn.BatchNorm2d(3), d=conv(3, 4))
    randomise(model)
    x = images()
    report = bitnas.verify(model, bitnas.freeze(model), x)
    assert len(report.layers) == 4
    assert report.ok
    assert report.bits_equal == report.bits


FUNCTIONS = {
    "max_pool2d": lambda m, x: F.max_pool2d(m.c(x), 3, 2, 1),
    "avg_pool2d": lambda m, x: F.avg_pool2d(m.c(x), 2),
    "adaptive_avg_pool2d": lambda m, x: torch.flatten(F.adaptive_avg_pool2d(m.c(x), (1, 1)), 1),
    "relu": lambda m, x: F.relu(m.c(x)),
    "relu in place": lambda m, x: F.relu(m.c(x), inplace=True),
    "method relu": lambda m, x: m.c(x).relu().flatten(1),
    "mean": lambda m, x: m.c(x).mean((2, 3)),
    "torch.mean": lambda m, x: torch.mean(m.c(x), dim=[2, 3], keepdim=True),
    "mean of all, added": lambda m, x: m.c(x) + m.d(x).mean(),
    "arithmetic": lambda m, x: m.c(x) * m.d(x) - torch.add(m.c(x), m.d(x), alpha=2),
    "added in place": lambda m, x: _added(m, x),
    "concatenated": lambda m, x: torch.cat((m.c(x), x), 1),
}


def _added(m, x):
    y = m.c(x)
    y += m.d(x)
    return m.r(y)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    torch.manual_seed(0)
    model = User(FUNCTIONS[name], c=conv(), d=conv(), r=nn.ReLU(inplace=True)).eval()
    x = images()
    before = x.clone()
    frozen = bitnas.freeze(model)
    torch.testing.assert_close(frozen(x), model(x))
    assert torch.equal(x, before)


FLOAT_LAYERS = {
    "avg pool": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "avg pool with divisor": nn.AvgPool2d(2, divisor_override=3),
    "adaptive pool": nn.AdaptiveAvgPool2d((2, None)),
    "prelu": nn.PReLU(8, 0.1),
    "hardtanh": nn.Hardtanh(-0.5, 0.25, inplace=True),
    "relu": nn.ReLU(inplace=True),
    "conv": nn.Conv2d(8, 4, (3, 1), padding="same", groups=2),
    "max pool": nn.MaxPool2d(2, dilation=2),
    "flatten": nn.Flatten(2),
}


@pytest.mark.parametrize("name", FLOAT_LAYERS)
def test_float_layers_survive_a_file(name, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(conv(), copy.deepcopy(FLOAT_LAYERS[name])).eval()
    x = images()
    frozen = bitnas.freeze(model)
    torch.testing.assert_close(frozen(x), model(x))
    bitnas.save(frozen, tmp_path / "net.safetensors")
    assert torch.equal(bitnas.load(tmp_path / "net.safetensors")(x), frozen(x))


def test_names_that_a_network_has_itself():
    inner = User(lambda m, x: m.b(x), b=conv(3, 5))
    model = User(lambda m, x: m.a_b(m.values(m.a(x))), a=inner, values=conv(5, 4), a_b=conv(4, 3))
    check(randomise(model), images())


def test_deep_networks():
    model = nn.Sequential(*[conv(2, 2) for _ in range(300)], *[nn.ReLU() for _ in range(300)])
    frozen = bitnas.freeze(model)
    assert len(frozen.steps) == 600  # a ReLU is in the last convolution


# ---- what cannot be frozen ------------------------------------------------------


class Doubled(BinaryConv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def read_after_relu(m, x):
    y = m.c(x)
    z = m.r(y)
    return m.d(y) + z


def read_after_add(m, x):
    y = m.c(x)
    z = y
    z += x
    return m.d(y) + z


REFUSED = {
    "group norm": (lambda: nn.Sequential(conv(), nn.GroupNorm(2, 8)), "1 is a GroupNorm"),
    "softmax": (lambda: nn.Sequential(conv(), nn.Softmax(1)), "1 is a Softmax"),
    "reflected padding": (
        lambda: nn.Sequential(conv(), nn.Conv2d(8, 4, 3, padding_mode="reflect")), "1: padding_mode='reflect'",
    ),
    "function": (lambda: User(lambda m, x: torch.sigmoid(m.c(x)), c=conv()), "calls sigmoid"),
    "method": (lambda: User(lambda m, x: m.c(x).view(-1, 8), c=conv()), "calls view"),
    "constant": (lambda: User(lambda m, x: m.c(x) + 1, c=conv()), r"add with constant arguments \[1\]"),
    "dtype": (lambda: User(lambda m, x: m.c(x).mean(1, dtype=torch.float64), c=conv()), "mean cannot be frozen with"),
    "tensors by name": (lambda: User(lambda m, x: torch.cat(tensors=[m.c(x), x], dim=1), c=conv()), "by position"),
    "input by name": (lambda: User(lambda m, x: m.c(x=x), c=conv()), "c must be called with one tensor"),
    "branch on values": (lambda: User(lambda m, x: m.c(x) if x.sum() > 0 else x, c=conv()), "must not branch"),
    "branch on shape": (lambda: User(lambda m, x: m.c(x) if x.shape[0] > 1 else x, c=conv()), "must not branch"),
    "two outputs": (lambda: User(lambda m, x: (m.c(x), x), c=conv()), "returns one tensor"),
    "nothing": (lambda: nn.Sequential(nn.Identity()), "nothing to freeze"),
    "own forward": (lambda: nn.Sequential(Doubled(3, 4, 3)), "0 is a Doubled, .* forward of its own"),
    "read after relu": (lambda: User(read_after_relu, c=conv(3, 3), d=conv(3, 3), r=nn.ReLU(inplace=True)), "in place"),
    "read after add": (lambda: User(read_after_add, c=conv(3, 3), d=conv(3, 3)), "in place"),
    "no statistics": (
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(8, track_running_stats=False), conv(8, 4)), "running statistics",
    ),
    "float64": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), conv(4, 4)).double(), "0.weight is torch.float64"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        bitnas.freeze(make())


def test_a_parameter_that_forward_reads_itself_is_refused_even_when_named_like_a_function():
    model = User(lambda m, x: m.c(x) - m.mean, c=conv())
    model.register_buffer("mean", torch.zeros(1))
    with pytest.raises(ValueError, match="forward reads mean itself"):
        bitnas.freeze(model)


def test_several_inputs_are_refused():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(ValueError, match="takes one input, this model takes 2"):
        bitnas.freeze(Two())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var", "1.weight", "2.bias"])
def test_values_that_are_not_finite_are_refused(name, value):
    model = nn.Sequential(conv(), nn.BatchNorm2d(8), conv(8, 4, bias=True))
    model.state_dict()[name].view(-1)[-1] = value
    with pytest.raises(ValueError, match=f"{name} holds values that are not finite"):
        bitnas.freeze(model)


def test_a_fold_that_overflows_is_refused():
    model = nn.Sequential(conv(), nn.BatchNorm2d(8), conv(8, 4))
    nn.init.constant_(model[1].weight, 3e38)
    model[1].running_mean.fill_(1e5)
    with pytest.raises(ValueError, match="0: .*not finite"):
        bitnas.freeze(model)


def test_what_is_not_a_module_and_what_is_frozen_already():
    with pytest.raises(TypeError, match="model must be an nn.Module, got str"):
        bitnas.freeze("vgg_small")
    with pytest.raises(ValueError, match="frozen already"):
        bitnas.freeze(bitnas.freeze(nn.Sequential(conv())))


# ---- the model stays as it was ------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_untouched(training):
    model = bitnas.create_model("resnet18", base_width=0.1, input_size=(3, 8, 8), num_classes=4).train(training)
    model.bn1.train(not training)  # one layer in another mode than the rest
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = images(2, 3, 8, 8)
    frozen = bitnas.freeze(model)
    bitnas.verify(model, frozen, x)
    assert [module.training for module in model.modules()] == modes
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    frozen.layer1_0_conv1.weight.zero_()  # nor do the two share memory
    frozen.fc.weight.data.zero_()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_model_in_training_mode_is_frozen_as_it_evaluates():
    model = randomise(nn.Sequential(conv(), nn.BatchNorm2d(8), nn.Dropout(0.9), conv(8, 4)))
    x = images()
    assert torch.equal(bitnas.freeze(model.train())(x), bitnas.freeze(model.eval())(x))


def test_a_config_of_another_kind_is_left_alone():
    model = User(lambda m, x: m.c(x), c=conv())
    model.config = {"hidden": 3}
    assert bitnas.freeze(model).config is None
    vgg = bitnas.create_model("vgg_small", base_width=0.1, input_size=(1, 8, 8))
    assert bitnas.freeze(vgg).config == vgg.config.to_dict()


# ---- the frozen network as a module ----------------------------------------------


@pytest.fixture(scope="module")
def vgg():
    return randomise(bitnas.create_model("vgg_small", base_width=0.3, input_size=(3, 8, 8)), 5).eval()


def test_an_empty_batch(vgg):
    frozen = bitnas.freeze(vgg)
    assert frozen(images(0, 3, 8, 8)).shape == (0, 10)
    assert bitnas.freeze(linear_stack())(images(0, 70)).shape == (0, 10)
    with pytest.raises(ValueError, match="at least one finite image"):
        bitnas.verify(vgg, frozen, images(0, 3, 8, 8))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layouts_of_the_input(vgg, layout):
    frozen = bitnas.freeze(vgg)
    x = images(3, 3, 8, 8)
    assert torch.equal(frozen(x.contiguous(memory_format=layout)), frozen(x))
    assert torch.equal(frozen(x.transpose(2, 3).contiguous().transpose(2, 3)), frozen(x))
    first = bitnas.freeze(nn.Sequential(conv()))
    assert torch.equal(first(x.transpose(2, 3)), first(x.transpose(2, 3).contiguous()))


def test_bits_and_outputs_are_the_same_on_every_instruction_set(vgg, isa, threads):
    before = ops.cpu_isa()
    ops.select_cpu_isa("scalar")
    wanted = bitnas.freeze(vgg)
    ops.select_cpu_isa(before)
    frozen = bitnas.freeze(vgg)
    state, wanted_state = frozen.state_dict(), wanted.state_dict()
    assert state.keys() == wanted_state.keys()
    assert all(torch.equal(state[name], wanted_state[name]) for name in state)
    x = images(4, 3, 8, 8)
    wanted_values = wanted.values(x)
    with threads():
        values = frozen.values(x)
    packed = [step.name for step in frozen.steps if values[step.name].dtype == torch.int64]
    assert len(packed) >= 5
    assert all(torch.equal(values[name], wanted_values[name]) for name in values)


def test_tails_of_saved_words_are_zero(vgg):
    for name, tensor in bitnas.freeze(vgg).state_dict().items():
        layer = vgg.get_submodule(name.split(".")[0]) if name.startswith("conv") else None
        if isinstance(layer, BINARY) and name.endswith("weight"):
            used = layer.weight.shape[1] % 64
            assert used
            assert not (tensor[..., -1].numpy().view(np.uint64) >> np.uint64(used)).any()


def test_copies_and_moves(vgg):
    frozen = bitnas.freeze(vgg)
    x = images(2, 3, 8, 8)
    wanted = frozen(x)
    copied = copy.deepcopy(frozen)
    assert torch.equal(copied(x), wanted)
    assert torch.equal(frozen.to("cpu")(x), wanted)
    assert torch.equal(frozen.eval()(x), wanted)
    copied.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in frozen.state_dict().items()})
    assert not copied(x).any()  # the copy runs its own weights, the original keeps its
    assert torch.equal(frozen(x), wanted)
    copied.load_state_dict(frozen.state_dict())
    assert torch.equal(copied(x), wanted)


def test_a_frozen_network_does_not_train(vgg):
    with pytest.raises(ValueError, match="cannot be trained"):
        bitnas.freeze(vgg).train()


def test_torch_compile(vgg):
    frozen = bitnas.freeze(vgg)
    x = images(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(torch.compile(frozen, fullgraph=True, backend="aot_eager")(x), frozen(x))


def test_torch_export_with_a_dynamic_batch(vgg):
    frozen = bitnas.freeze(vgg)
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        exported = torch.export.export(frozen, (images(3, 3, 8, 8),), dynamic_shapes=({0: batch},)).module()
        for n in (1, 2, 7):
            x = images(n, 3, 8, 8, seed=n)
            assert torch.equal(exported(x), frozen(x))


# ---- verify -----------------------------------------------------------------------


def test_verify_counts_a_wrong_integer(vgg):
    frozen = bitnas.freeze(vgg)
    x = images(2, 3, 8, 8)
    good = bitnas.verify(vgg, frozen, x)
    assert good.ok
    frozen.conv3.weight[1, 1, 1, 0] ^= 0xFFFFFF
    frozen.conv3.prepare()
    bad = bitnas.verify(vgg, frozen, x)
    assert not bad.ok
    assert "WRONG" in str(bad)
    wrong = {layer.name: layer.dots - layer.dots_equal for layer in bad.layers}
    assert wrong["conv3"] > 0
    assert sum(wrong.values()) == wrong["conv3"]
    assert bad.to_dict()["ok"] is False


def test_verify_counts_flipped_bits(vgg):
    frozen = bitnas.freeze(vgg)
    x = images(2, 3, 8, 8)
    before = bitnas.verify(vgg, frozen, x)
    frozen.bn1_pack.threshold.fill_(torch.inf)
    after = bitnas.verify(vgg, frozen, x)
    assert not after.ok  # this is not the network that freezing gives
    assert not after.same_network
    assert after.dots == after.dots_equal  # each layer stands alone: given its bits, its integers are right
    first = after.layers[0]
    assert first.name == "conv2"
    assert first.bits_equal < before.layers[0].bits_equal


def test_verify_refuses_what_it_cannot_compare(vgg):
    frozen = bitnas.freeze(vgg)
    with pytest.raises(ValueError, match="finite image"):
        bitnas.verify(vgg, frozen, torch.full((1, 3, 8, 8), torch.nan))
    other = bitnas.freeze(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)))
    with pytest.raises(ValueError, match="no binary layer conv2"):
        bitnas.verify(vgg, other, images(1, 3, 8, 8))
    assert not any(module._forward_pre_hooks for module in vgg.modules())


@pytest.mark.parametrize(
    "flatten",
    [lambda x: x.view(x.size(0), -1), lambda x: x.reshape(x.shape[0], -1), lambda x: x.view(x.size()[0], -1)],
    ids=["size(0)", "shape[0]", "size()[0]"],
)
def test_a_view_that_flattens_is_a_flatten(flatten):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = BinaryConv2d(3, 16, 3, padding=1)
            self.fc = nn.Linear(16 * 4 * 4, 5)

        def forward(self, x):
            return self.fc(flatten(self.conv(x)))

    model, x = Net().eval(), torch.randn(3, 3, 4, 4)
    frozen = bitnas.freeze(model)
    assert [step.kind for step in frozen.steps] == ["pack", "conv2d", "flatten", "float_linear"]
    assert torch.allclose(frozen(x), model(x), atol=1e-5)


def test_verify_tells_a_network_folded_from_other_statistics(vgg):
    frozen, x = bitnas.freeze(vgg), images(2, 3, 8, 8)
    assert bitnas.verify(vgg, frozen, x).ok
    vgg.bn3.running_mean += 3
    report = bitnas.verify(vgg, frozen, x)
    assert not report.ok
    assert "another network" in str(report)


def test_verify_runs_the_real_epilogue(vgg, monkeypatch):
    """The dots may be right and what the layer emits wrong: that too is counted."""
    frozen, x = bitnas.freeze(vgg), images(2, 3, 8, 8)
    run = frozen.conv3._run
    monkeypatch.setattr(frozen.conv3, "_run", lambda *args: run(*args) ^ 1)
    report = bitnas.verify(vgg, frozen, x)
    assert report.same_network
    assert report.dots == report.dots_equal
    assert not report.ok


def test_hooks_are_not_dropped_in_silence(vgg):
    handle = vgg.conv2.register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(ValueError, match="conv2 has forward hooks"):
        bitnas.freeze(vgg)
    handle.remove()
    bitnas.freeze(vgg)


def test_an_alias_changed_in_place_is_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = BinaryConv2d(3, 4, 1), nn.Linear(64, 5)

        def forward(self, x):
            y = self.conv(x)
            flat = y.flatten(1)
            flat += flat
            return self.fc(flat) + y.mean((2, 3)).sum()

    with pytest.raises(ValueError, match="in place"):
        bitnas.freeze(Net().eval())


def test_a_frozen_network_asks_for_no_gradients(vgg):
    assert not bitnas.freeze(vgg)(images(1, 3, 8, 8)).requires_grad


def test_other_float_types_are_refused_by_name(vgg):
    frozen = bitnas.freeze(vgg)
    with pytest.raises(TypeError, match="x must be float32.*float16"):
        frozen(images(1, 3, 8, 8).half())
    with pytest.raises(TypeError, match="must stay float32, got torch.float16"):
        frozen.half()
