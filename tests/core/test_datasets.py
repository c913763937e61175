# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of what is read from anomalib's datasets."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data import ImageItem
from anomalib.data.utils import read_image
from PIL import Image
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from anomalib_ddpm_st.core.datasets import ImageFiles, list_images, read_item, read_size, without_augmentations

TENSORS = TensorDataset(torch.rand(2, 3, 8, 8))


class Samples(Dataset):
    """Dataset with samples and augmentations, as anomalib's are."""

    def __init__(self, paths: list[str], labels: list[int], augmentations: nn.Module | None = None) -> None:
        self.samples = pd.DataFrame({"image_path": paths, "label_index": labels})
        self.augmentations = augmentations

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.samples)

    def __getitem__(self, index: int) -> ImageItem:
        """Image, after the augmentations."""
        path = self.samples.image_path[index]
        image = read_image(path, as_tensor=True)
        return ImageItem(image=image if self.augmentations is None else self.augmentations(image), image_path=path)


def save(path: Path, value: int = 0) -> str:
    """Write an image of random pixels."""
    pixels = np.random.default_rng(value).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def test_image_files(tmp_path: Path) -> None:
    """Items hold the pixels and the path of each file."""
    paths = [save(tmp_path / "b.png", 1), save(tmp_path / "a.png", 2)]
    dataset = ImageFiles([paths[0], Path(paths[1])])
    assert len(dataset) == 2
    for index, path in enumerate(paths):
        item = dataset[index]
        assert item.image_path == path
        pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
        torch.testing.assert_close(torch.as_tensor(item.image), pixels / 255)


def test_images_are_listed_with_position_and_label() -> None:
    """In the order of the dataset, also of its parts."""
    first, second, files = Samples(["a", "b", "c"], [0, 1, 0]), Samples(["d"], [1]), ImageFiles(["e", "f"])
    empty = Samples([], [])
    empty.samples = pd.DataFrame()
    assert list(list_images(first)) == [(first, 0, "a", 0), (first, 1, "b", 1), (first, 2, "c", 0)]
    assert list(list_images(files)) == [(files, 0, "e", 0), (files, 1, "f", 0)]
    nested = ConcatDataset([Subset(ConcatDataset([first, second]), [3, 0]), empty, Subset(files, [1])])
    assert list(list_images(nested)) == [(second, 0, "d", 1), (first, 0, "a", 0), (files, 1, "f", 0)]
    assert not list(list_images(empty))


@pytest.mark.parametrize("dataset", [TENSORS, Subset(TENSORS, [0]), ConcatDataset([Samples(["a"], [0]), TENSORS])])
def test_other_datasets_are_named(dataset: Dataset) -> None:
    """With the remedy."""
    with pytest.raises(TypeError, match=r"TensorDataset.*wrap them in anomalib\.data\.Folder"):
        list(list_images(dataset))


def test_augmentations_are_left_out_of_a_copy() -> None:
    """The dataset itself keeps them, and shares its samples; one without augmentations is not copied."""
    dataset = Samples(["a"], [0], nn.Identity())
    plain = without_augmentations(dataset)
    assert plain.augmentations is None
    assert plain.samples is dataset.samples
    assert isinstance(dataset.augmentations, nn.Identity)
    for other in (plain, ImageFiles(["a"])):
        assert without_augmentations(other) is other


def test_item(tmp_path: Path) -> None:
    """As the dataset gives it."""
    paths = [save(tmp_path / "a.png", 1), save(tmp_path / "b.png", 2)]
    dataset = Samples(paths, [0, 0])
    item = read_item(dataset, 1, paths[1])
    assert torch.equal(item.image, dataset[1].image)


@pytest.mark.parametrize("content", [b"", b"no image", "half", None])
def test_unreadable_images_are_named(content: bytes | str | None, tmp_path: Path) -> None:
    """Empty, of another kind, half-written or missing."""
    path = Path(save(tmp_path / "broken.png"))
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:300] if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=r"broken\.png cannot be read .*: repair it or remove it"):
        read_item(ImageFiles([path]), 0, str(path))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_images_of_more_than_8_bits_are_refused(dtype: type, tmp_path: Path) -> None:
    """Reading them would clip them."""
    path = tmp_path / "deep.tif"
    Image.fromarray(np.full((4, 4), 1000, dtype=dtype)).save(path)
    with pytest.raises(ValueError, match=r"deep\.tif.*more than 8 bits per channel.*save it with 8 bits"):
        read_item(ImageFiles([path]), 0, str(path))


@pytest.mark.parametrize("error", [AttributeError, OSError, RuntimeError, SyntaxError, TypeError, ValueError])
def test_errors_of_the_dataset_are_named(error: type[Exception], tmp_path: Path) -> None:
    """Such as a mask that is missing; a mistake in the code of a dataset is none of these."""

    class Broken(Dataset):
        error: type[Exception]

        def __getitem__(self, index: int) -> ImageItem:
            raise self.error(index)

    path, dataset = save(tmp_path / "a.png"), Broken()
    dataset.error = error
    with pytest.raises(ValueError, match=r"a\.png cannot be read"):
        read_item(dataset, 0, path)
    dataset.error = IndexError
    with pytest.raises(IndexError):
        read_item(dataset, 0, path)


def test_size_from_the_header(tmp_path: Path) -> None:
    """The pixels need not be there, but the header."""
    path = tmp_path / "image.png"
    content = Path(save(path)).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert read_size(str(path)) == (12, 20)
    path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"image.png cannot be read .*: repair it or remove it\.$"):
        read_size(str(path))
