"""Labelled images: data sets by name, their stratified splits, batches, and augmentation."""

from bitnas.data.augment import Augmentation, random_flip, random_resized_crop, random_shift
from bitnas.data.dataset import Dataset
from bitnas.data.registry import list_datasets, load
from bitnas.data.source import Source, Splits

__all__ = [
    "Augmentation",
    "Dataset",
    "Source",
    "Splits",
    "list_datasets",
    "load",
    "random_flip",
    "random_resized_crop",
    "random_shift",
]
