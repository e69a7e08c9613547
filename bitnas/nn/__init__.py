"""Layers that train in float and compute with one-bit weights and activations."""

from bitnas.nn.binarizers import (
    SCHEMES,
    ActivationBinarizer,
    BarsActivation,
    BarsWeight,
    BiRealActivation,
    BiRealWeight,
    DoReFaActivation,
    DoReFaWeight,
    NasBnnWeight,
    Scheme,
    WeightBinarizer,
    XnorActivation,
    XnorWeight,
    get_scheme,
    sign,
)
from bitnas.nn.cells import FitChannels, JoinNodes
from bitnas.nn.channels import ChannelBias, RPReLU, TileChannels
from bitnas.nn.layers import BinaryConv2d, BinaryLinear
from bitnas.nn.quantized import LSQConv2d

__all__ = [
    "SCHEMES",
    "ActivationBinarizer",
    "BarsActivation",
    "BarsWeight",
    "BiRealActivation",
    "BiRealWeight",
    "BinaryConv2d",
    "BinaryLinear",
    "ChannelBias",
    "DoReFaActivation",
    "DoReFaWeight",
    "FitChannels",
    "JoinNodes",
    "LSQConv2d",
    "NasBnnWeight",
    "RPReLU",
    "Scheme",
    "TileChannels",
    "WeightBinarizer",
    "XnorActivation",
    "XnorWeight",
    "get_scheme",
    "sign",
]
