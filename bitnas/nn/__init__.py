"""Layers that train in float and compute with one-bit weights and activations."""

from bitnas.nn.binarizers import (
    SCHEMES,
    ActivationBinarizer,
    BiRealActivation,
    BiRealWeight,
    DoReFaActivation,
    DoReFaWeight,
    Scheme,
    WeightBinarizer,
    XnorActivation,
    XnorWeight,
    get_scheme,
    sign,
)
from bitnas.nn.layers import BinaryConv2d, BinaryLinear

__all__ = [
    "SCHEMES",
    "ActivationBinarizer",
    "BiRealActivation",
    "BiRealWeight",
    "BinaryConv2d",
    "BinaryLinear",
    "DoReFaActivation",
    "DoReFaWeight",
    "Scheme",
    "WeightBinarizer",
    "XnorActivation",
    "XnorWeight",
    "get_scheme",
    "sign",
]
