"""Prefix-slice inheritance on the real networks."""

import pytest
import torch

from bitnas.methods.width import inherit
from bitnas.models import create_model

MODELS = {
    "vgg_small": {"input_size": (1, 16, 16), "base_width": 0.0625, "length": 6},
    "resnet18": {"input_size": (3, 16, 16), "base_width": 0.125, "length": 12},
}


def make(name, ratios):
    options = {k: v for k, v in MODELS[name].items() if k != "length"}
    return create_model(name, ratios=ratios, num_classes=10, **options)


def trained(name):
    """A widest network whose statistics are not those of a new one."""
    torch.manual_seed(0)
    model = make(name, 4.0)
    model.train()
    for _ in range(3):
        model(torch.rand(8, *MODELS[name]["input_size"]))
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_widest_child_reproduces_the_parent_bit_for_bit(name):
    parent = trained(name)
    child = make(name, 4.0)
    inherit(child, parent.state_dict())
    x = torch.rand(5, *MODELS[name]["input_size"])
    with torch.no_grad():
        assert torch.equal(child.eval()(x), parent(x))


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_is_the_leading_slice(name):
    parent = trained(name).state_dict()
    ratios = ([0.5, 1, 3, 2, 4, 0.25] * 2)[: MODELS[name]["length"]]
    child = make(name, ratios)
    inherit(child, parent)
    own = child.state_dict()
    assert own.keys() == parent.keys()
    for key, tensor in own.items():
        assert torch.equal(tensor, parent[key][tuple(slice(0, n) for n in tensor.shape)]), key
    assert any(tensor.shape != parent[key].shape for key, tensor in own.items())


def test_head_keeps_the_channels_it_belongs_to():
    """The head reads a flattened map; its weights for channel c must be the parent's for channel c."""
    parent = trained("vgg_small")
    child = make("vgg_small", [4, 4, 4, 4, 4, 0.5])
    inherit(child, parent.state_dict())
    channels, side = 16, 2
    wide = parent.fc.weight.view(10, -1, side, side)
    assert torch.equal(child.fc.weight.view(10, channels, side, side), wide[:, :channels])


def test_child_owns_its_tensors():
    parent = trained("vgg_small").state_dict()
    before = {key: tensor.clone() for key, tensor in parent.items()}
    child = make("vgg_small", 1.0)
    inherit(child, parent)
    with torch.no_grad():
        for parameter in child.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[key], tensor) for key, tensor in parent.items())


def test_a_parent_that_is_too_narrow_or_another_network_is_refused():
    child = make("vgg_small", 2.0)
    before = {key: tensor.clone() for key, tensor in child.state_dict().items()}
    with pytest.raises(ValueError, match="parent: .* wanted at least"):
        inherit(child, make("vgg_small", [2, 2, 2, 2, 2, 1]).state_dict())
    with pytest.raises(ValueError, match="in one of them only"):
        inherit(child, make("resnet18", 4.0).state_dict())
    assert all(torch.equal(before[key], tensor) for key, tensor in child.state_dict().items())
