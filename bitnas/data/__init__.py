"""Images and labels as whole tensors, their stratified splits, and augmentation of batches."""

from bitnas.data.augment import random_flip, random_shift
from bitnas.data.dataset import Dataset, Splits
from bitnas.data.registry import list_datasets, load

__all__ = ["Dataset", "Splits", "list_datasets", "load", "random_flip", "random_shift"]
