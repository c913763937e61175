# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Datasets of anomalib, and what they read from files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anomalib.data import ImageItem
from anomalib.data.utils import read_image
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset

# What datasets raise for files that they cannot read.
UNREADABLE = (AttributeError, OSError, RuntimeError, SyntaxError, TypeError, ValueError)


class ImageFiles(Dataset):
    """Dataset of image files, for commands that are given a folder and no datamodule.

    Args:
        paths (Sequence[str | Path]): Image files.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self.paths = [str(path) for path in paths]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> ImageItem:
        """Item with image and path, as an anomalib dataset gives it."""
        path = self.paths[index]
        return ImageItem(image=read_image(path, as_tensor=True), image_path=path)


def list_images(dataset: Dataset) -> Iterator[tuple[Dataset, int, str, int]]:
    """List the images of a dataset.

    Args:
        dataset (Dataset): As in :class:`NormalImages`.

    Yields:
        tuple[Dataset, int, str, int]: Dataset without augmentations and position to read the item from, file, and
        label, 0 for normal images.

    Raises:
        TypeError: If the dataset does not list its images.
    """
    if isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from list_images(part)
        return
    if isinstance(dataset, Subset):
        listed = list(list_images(dataset.dataset))
        yield from (listed[index] for index in dataset.indices)
        return
    if isinstance(dataset, ImageFiles):
        yield from ((dataset, position, path, 0) for position, path in enumerate(dataset.paths))
        return
    samples = getattr(dataset, "samples", None)
    if samples is None:
        msg = (
            f"The images come from an anomalib datamodule or dataset, but were given as a {type(dataset).__name__}: "
            "wrap them in anomalib.data.Folder."
        )
        raise TypeError(msg)
    if len(samples):
        plain = without_augmentations(dataset)
        rows = zip(samples["image_path"], samples["label_index"], strict=True)
        yield from ((plain, position, str(path), int(label)) for position, (path, label) in enumerate(rows))


def without_augmentations(dataset: Dataset) -> Dataset:
    """Copy a dataset of anomalib, sharing its samples, and leave out its augmentations.

    Args:
        dataset (Dataset): Dataset.

    Returns:
        Dataset: Copy, or the dataset itself if it has none.
    """
    if getattr(dataset, "augmentations", None) is None:
        return dataset
    plain: Any = type(dataset).__new__(type(dataset))
    # By copy.copy, the files of anomalib's synthetic sets would go to the copy, which deletes them in the end.
    plain.__dict__.update(dataset.__dict__, augmentations=None, _cleanup=False)
    return plain


def read_item(dataset: Dataset, position: int, path: str) -> ImageItem:
    """Read an item of a dataset.

    Args:
        dataset (Dataset): Dataset.
        position (int): Position of the item.
        path (str): File of its image.

    Returns:
        ImageItem: Item.

    Raises:
        ValueError: If the image or its mask cannot be read.
    """
    try:
        with Image.open(path) as file:
            mode = file.mode
        if mode.startswith(("I", "F")):
            # anomalib would silently clip the values at 255.
            msg = f"it has more than 8 bits per channel (mode {mode}); save it with 8 bits"
            raise ValueError(msg)
        return dataset[position]
    except UNREADABLE as error:
        msg = f"The image {path} cannot be read ({error}): repair it or remove it."
        raise ValueError(msg) from error


def read_size(path: str) -> tuple[int, int]:
    """Read the size of an image from the header of its file.

    Args:
        path (str): File.

    Returns:
        tuple[int, int]: Height and width in pixels.

    Raises:
        ValueError: If the header cannot be read.
    """
    try:
        with Image.open(path) as file:
            return file.height, file.width
    except UNREADABLE as error:
        msg = f"The image {path} cannot be read ({error}): repair it or remove it."
        raise ValueError(msg) from error
