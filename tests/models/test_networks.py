"""The two networks of Shen et al. 2019: shapes, widths, what is binary, what the forward computes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bitnas.models import create_model, create_model_from_config, widths
from bitnas.nn import BinaryConv2d, BinaryLinear


def on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **options)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


@pytest.mark.parametrize("ratio", [0.25, 1, 4])
@pytest.mark.parametrize(
    ("name", "size", "classes"), [("vgg_small", (3, 32, 32), 10), ("resnet18", (3, 224, 224), 1000)]
)
def test_paper_sizes(name, size, classes, ratio):
    model = on_meta(name, ratios=ratio)
    assert model(torch.empty(2, *size, device="meta")).shape == (2, classes)


@pytest.mark.parametrize("scheme", ["dorefa", "xnor", "bireal"])
@pytest.mark.parametrize("name", ["vgg_small", "resnet18"])
def test_digits_train_one_step(name, scheme):
    torch.manual_seed(0)
    model = create_model(name, num_classes=10, input_size=(1, 8, 8), base_width=0.25, ratios=0.5, scheme=scheme)
    y = model(torch.randn(4, 1, 8, 8))
    assert y.shape == (4, 10)
    F.cross_entropy(y, torch.arange(4)).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
    assert model.eval()(torch.empty(0, 1, 8, 8)).shape == (0, 10)


def test_vgg_small_is_the_paper_s():
    model = on_meta("vgg_small")
    expected = {
        "conv1": (128, 3, 3, 3),
        "conv2": (128, 128, 3, 3),
        "conv3": (256, 128, 3, 3),
        "conv4": (256, 256, 3, 3),
        "conv5": (512, 256, 3, 3),
        "conv6": (512, 512, 3, 3),
        "fc": (10, 8192),
    }
    got = shapes(model)
    assert {name: got[f"{name}.weight"] for name in expected} == expected
    binary = [name for name, m in model.named_modules() if isinstance(m, (BinaryConv2d, BinaryLinear))]
    assert binary == ["conv2", "conv3", "conv4", "conv5", "conv6"]
    biases = [name for name in got if name.endswith("bias") and "bn" not in name]
    assert biases == ["fc.bias"]
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())


def test_vgg_small_forward_is_conv_pool_norm():
    torch.manual_seed(0)
    m = create_model("vgg_small", base_width=0.1, input_size=(3, 16, 16)).eval()
    for module in m.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 16, 16)
    y = m.bn1(m.conv1(x))
    for i in range(2, 7):
        y = getattr(m, f"conv{i}")(y)
        if i % 2 == 0:
            y = F.max_pool2d(y, 2)
        y = getattr(m, f"bn{i}")(y)
    assert torch.equal(m(x), m.fc(y.flatten(1)))


@pytest.mark.parametrize(
    ("size", "features"), [((1, 8, 8), 512), ((1, 28, 28), 512 * 9), ((3, 17, 9), 1024), ((2, 64, 32), 512 * 32)]
)
def test_vgg_small_head_follows_the_input(size, features):
    model = on_meta("vgg_small", input_size=size)
    assert model.fc.in_features == features
    assert model(torch.empty(2, *size, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("size", [(3, 7, 32), (3, 32, 7), (1, 1, 1)])
def test_vgg_small_refuses_a_small_input(size):
    with pytest.raises(ValueError, match=r"input_size: got .* wanted at least 8x8"):
        create_model("vgg_small", input_size=size)


def test_resnet18_is_the_paper_s():
    model = on_meta("resnet18")
    floats = [name for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert floats == ["conv1", "fc"]
    binary = {name: m for name, m in model.named_modules() if isinstance(m, BinaryConv2d)}
    assert len(binary) == 16 + 3
    for stage in (2, 3, 4):
        conv = binary[f"layer{stage}.0.downsample.conv"]
        assert (conv.kernel_size, conv.stride) == ((1, 1), (2, 2))
    assert model.conv1.kernel_size == (7, 7)
    assert sum(isinstance(m, nn.ReLU) for m in model.modules()) == 1
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 20


def test_resnet18_block_has_one_shortcut_over_the_pair():
    model = create_model("resnet18", ratios=0.25, input_size=(3, 16, 16), num_classes=10).eval()
    x = torch.randn(2, 16, 8, 8)
    block = model.layer1[0]
    assert torch.equal(block(x), block.bn2(block.conv2(block.bn1(block.conv1(x)))) + x)
    block = model.layer2[0]
    assert torch.equal(block(x), block.bn2(block.conv2(block.bn1(block.conv1(x)))) + block.downsample(x))
    images = torch.randn(2, 3, 16, 16)
    y = model.layer4(model.layer3(model.layer2(model.layer1(model.bn1(model.conv1(images))))))
    assert torch.equal(model(images), model.fc(y.relu().mean(dim=(2, 3))))


@pytest.mark.parametrize(
    ("size", "asked", "stem"),
    [
        ((3, 224, 224), None, "imagenet"),
        ((3, 64, 64), None, "imagenet"),
        ((3, 63, 64), None, "cifar"),
        ((1, 8, 8), None, "cifar"),
        ((3, 32, 32), "imagenet", "imagenet"),
        ((3, 224, 224), "cifar", "cifar"),
    ],
)
def test_resnet18_stem(size, asked, stem):
    model = on_meta("resnet18", input_size=size, stem=asked)
    assert model.config.stem == stem
    assert model.conv1.kernel_size == ((7, 7) if stem == "imagenet" else (3, 3))
    assert (model.maxpool is None) == (stem == "cifar")
    assert model(torch.empty(2, *size, device="meta")).shape == (2, 1000)


def test_resnet18_refuses_another_stem():
    with pytest.raises(ValueError, match="stem: got 'mnist'"):
        create_model("resnet18", stem="mnist")


def test_resnet18_published_widths():
    def of(name):
        model = on_meta(name)
        stages = (model.layer1, model.layer2, model.layer3, model.layer4)
        outputs = [stage[1].conv2.out_channels for stage in stages]
        inner = [block.conv1.out_channels for stage in stages for block in stage]
        assert model.conv1.out_channels == outputs[0]
        assert widths(model.config) == (*outputs, *inner)
        return outputs, inner

    assert of("resnet18_auto_a") == ([128, 512, 512, 1024], [128, 256, 512, 512, 1024, 1024, 2048, 2048])
    assert of("resnet18_auto_b") == ([192, 512, 1024, 1536], [64, 256, 512, 512, 768, 768, 1536, 1536])


def test_vgg_small_published_widths():
    assert widths(on_meta("vgg_auto_a").config) == (64, 256, 256, 256, 512, 256)
    assert widths(on_meta("vgg_auto_b").config) == (256, 256, 1024, 512, 2048, 256)


@pytest.mark.parametrize("name", ["vgg_small", "resnet18"])
def test_every_narrower_network_is_a_prefix_of_the_widest(name):
    widest = shapes(on_meta(name, ratios=4))
    for ratios in (0.25, 1.37, 4):
        narrow = shapes(on_meta(name, ratios=ratios))
        assert narrow.keys() == widest.keys()
        for parameter, shape in narrow.items():
            assert len(shape) == len(widest[parameter])
            assert all(small <= large for small, large in zip(shape, widest[parameter], strict=True))


@pytest.mark.parametrize("name", ["vgg_small", "resnet18"])
def test_same_seed_same_network(name):
    options = {"base_width": 0.1, "input_size": (3, 16, 16), "num_classes": 5}

    def build():
        torch.manual_seed(7)
        return create_model(name, **options)

    first, second = build().eval(), build().eval()
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(first(x), second(x))
    again = create_model_from_config(first.config)
    again.load_state_dict(first.state_dict())
    assert torch.equal(again.eval()(x), first(x))
