# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""The one way from an image file to the tensor that a detector sees."""

import copy
import logging
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from anomalib.data import AnomalibDataModule, ImageBatch
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.transforms.v2 import Normalize, functional
from torchvision.tv_tensors import Image, Mask

from .canonical_pose import CanonicalPose
from .datasets import ImageFiles, list_images, read_item, read_size
from .extent import shown_extent
from .progress import progress
from .transforms import find_transform, make_resize

logger = logging.getLogger(__name__)

# Height and width in pixels that images are resized to unless another size is given.
DEFAULT_IMAGE_SIZE = (256, 256)
MIN_IMAGES = 2
# Bounds of what is kept in memory.
MAX_IMAGES = 1000
MAX_BYTES = 2 * 1024**3
ASPECT_IMAGES = 32
# Interpolation overshoots at sharp edges, by up to 0.45 with bicubic weights; images of another scale leave [0, 1] by
# more.
OVERSHOOT = 0.47
# Fewer files are read in no time.
MIN_BAR = 100


def evenly_spaced(count: int, most: int) -> torch.Tensor:
    """Choose evenly spaced items.

    Args:
        count (int): Number of items.
        most (int): Largest number of items to choose.

    Returns:
        torch.Tensor: At most ``most`` indices.
    """
    return torch.linspace(0, count - 1, min(count, most)).round().long()


class NormalImages:
    """Normal images of a training set, as a detector sees them.

    Every stage of a training reads its images here: an item of the datamodule's own dataset passes the datamodule's
    augmentations of test images, if there are any, and the pre-processor, as an image to be tested does. The
    datamodule's train augmentations are left out. Random transforms give the same result at each call.

    Args:
        dataset (Dataset): anomalib dataset, a subset or a concatenation of such datasets, or :class:`ImageFiles`.
        pre_processor (nn.Module | None): Pre-processor of the model. Defaults to ``None``.
        augmentations (nn.Module | None): Transform that comes before the pre-processor. Defaults to ``None``.
        normalize (Normalize | None): Normalisation among these transforms that is to be undone. Defaults to ``None``.

    Attributes:
        pose (CanonicalPose | None): Transform that turns parts to one pose, see :meth:`turn`.
        item_sizes (set[tuple[int, int]]): Heights and widths of the images before the pre-processor, as far as they
            were read.

    Raises:
        TypeError: If the dataset does not list its images.
    """

    def __init__(
        self,
        dataset: Dataset,
        pre_processor: nn.Module | None = None,
        augmentations: nn.Module | None = None,
        normalize: Normalize | None = None,
    ) -> None:
        self._items = [(part, position, path) for part, position, path, label in list_images(dataset) if label == 0]
        self.pre_processor = pre_processor
        self.augmentations = augmentations
        self.normalize = normalize
        self.item_sizes: set[tuple[int, int]] = set()
        self._kept: dict[int, torch.Tensor] = {}
        self._native_sizes: dict[int, tuple[int, int]] = {}
        self.pose: CanonicalPose | None = None

    @classmethod
    def from_files(cls, paths: Sequence[str | Path], image_size: tuple[int, int] | None = None) -> "NormalImages":
        """Image files, resized as the default pre-processor does.

        Args:
            paths (Sequence[str | Path]): Image files.
            image_size (tuple[int, int] | None): Height and width in pixels. ``None`` keeps the size of each image.

        Returns:
            NormalImages: Images.
        """
        return cls(ImageFiles(paths), make_resize(image_size))

    @classmethod
    def from_datamodule(
        cls,
        datamodule: AnomalibDataModule,
        pre_processor: nn.Module | None = None,
        normalize: Normalize | None = None,
    ) -> "NormalImages":
        """Normal training images of a datamodule that is set up.

        Args:
            datamodule (AnomalibDataModule): Datamodule.
            pre_processor (nn.Module | None): As in the constructor.
            normalize (Normalize | None): As in the constructor.

        Returns:
            NormalImages: Images.
        """
        # A datamodule that is set up by a Trainer has added the pre-processor's Resize to these.
        augmentations = datamodule.test_augmentations
        for name in ("test_data", "val_data"):
            subset = getattr(datamodule, name, None)
            if subset is not None and len(subset) and hasattr(subset, "augmentations"):
                augmentations = subset.augmentations
                break
        return cls(datamodule.train_data, pre_processor, augmentations, normalize)

    @classmethod
    def from_dataset(
        cls,
        dataset: Dataset,
        pre_processor: nn.Module | None = None,
        evaluation: Dataset | None = None,
    ) -> "NormalImages":
        """Normal images of a training set without a datamodule.

        Args:
            dataset (Dataset): Training set.
            pre_processor (nn.Module | None): As in the constructor.
            evaluation (Dataset | None): Validation or test set, whose augmentations are those of test images. ``None``
                takes those of the training set. Defaults to ``None``.

        Returns:
            NormalImages: Images.
        """
        plain = dataset if evaluation is None else evaluation
        while isinstance(plain, Subset | ConcatDataset):
            plain = plain.dataset if isinstance(plain, Subset) else plain.datasets[0]
        return cls(dataset, pre_processor, getattr(plain, "augmentations", None))

    def __len__(self) -> int:
        """Number of images."""
        return len(self._items)

    @property
    def paths(self) -> list[str]:
        """Files of the images."""
        return [path for _, _, path in self._items]

    def __getitem__(self, index: int) -> torch.Tensor:
        """Read one image.

        Args:
            index (int): Index.

        Returns:
            torch.Tensor: Image, ``uint8`` of shape ``(3, H, W)``.

        Raises:
            ValueError: If it cannot be read, or is not what a detector can see.
        """
        return self._turn(self._read(index))

    def _read(self, index: int) -> torch.Tensor:
        """Read one image with its part as it lies."""
        dataset, position, path = self._items[index]
        item = read_item(dataset, position, path)
        image = cast("torch.Tensor", item.image)
        self._native_sizes[index] = (image.shape[-2], image.shape[-1])
        seen = self._see(image, item.gt_mask, index)
        if self.normalize is not None:
            mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (self.normalize.mean, self.normalize.std))
            seen = seen * std + mean
        self._check(seen, path)
        # Decimals that are rounding errors must not decide how a half is rounded.
        return (seen.double() * 255).round(decimals=4).round().clamp(0, 255).to(torch.uint8)

    def turn(self, pose: CanonicalPose | None) -> "NormalImages":
        """From now on, turn parts to one pose, as the detector does after the pre-processor.

        Args:
            pose (CanonicalPose | None): Transform. ``None`` if parts stay as they lie.

        Returns:
            NormalImages: These images.
        """
        if pose is not self.pose:
            if self.pose is not None:
                self._kept.clear()
            self.pose = pose
            self._kept = {index: self._turn(image) for index, image in self._kept.items()}
        return self

    def as_they_lie(self) -> "NormalImages":
        """The same images without turning any part.

        Returns:
            NormalImages: Other images of the same files.
        """
        images = copy.copy(self)
        images._kept, images.pose = {}, None  # noqa: SLF001
        return images

    def _turn(self, image: torch.Tensor) -> torch.Tensor:
        """Turn the part in an image, ``uint8`` of shape ``(3, H, W)``."""
        return image if self.pose is None else self.pose.turn(image[None])[0]

    def read(self, most: int = MAX_IMAGES, min_images: int = MIN_IMAGES) -> dict[int, torch.Tensor]:
        """Read images; those that were read before are in memory.

        Args:
            most (int): Largest number of images; of more, evenly spaced ones are read, and no more than fit into 2 GiB.
                Defaults to ``1000``.
            min_images (int): Smallest number of images that is enough. Defaults to ``2``.

        Returns:
            dict[int, torch.Tensor]: Images by index, ``uint8`` of shape ``(3, H, W)``, which may differ in size.

        Raises:
            ValueError: If there are too few images, or one cannot be read.
        """
        if len(self) < min_images:
            msg = (
                f"Training needs at least {min_images} normal image{'s' * (min_images > 1)}, but found {len(self)}: "
                "check the folder of normal training images, or add more."
            )
            raise ValueError(msg)
        chosen = self._choose(most, min_images)
        if len(chosen) < len(self):
            logger.info("Using %d of %d normal images.", len(chosen), len(self))
        return {index: self._keep(index) for index in chosen}

    def load(self, most: int = MAX_IMAGES, min_images: int = MIN_IMAGES) -> torch.Tensor:
        """Read images into one tensor.

        Args:
            most (int): As in :meth:`read`. Defaults to ``1000``.
            min_images (int): As in :meth:`read`. Defaults to ``2``.

        Returns:
            torch.Tensor: Images, ``uint8`` of shape ``(N, 3, H, W)``.

        Raises:
            ValueError: As in :meth:`read`, or if images differ in size.
        """
        images = self.read(most, min_images)
        first = self._keep(0)
        for index, image in images.items():
            if image.shape != first.shape:
                sizes = " and ".join(f"{part.shape[-2]} x {part.shape[-1]}" for part in (first, image))
                msg = (
                    f"The images differ in size ({sizes} pixels, {self.paths[0]} and {self.paths[index]}): resize them "
                    "to one size in the pre-processor."
                )
                raise ValueError(msg)
        return torch.stack(list(images.values()))

    def unread(self) -> Iterator[Exception]:
        """Read all images once, those that :meth:`load` returns into memory.

        Yields:
            Exception: A problem for each image that cannot be read or is not what a detector can see.
        """
        chosen: set[int] | None = None
        indices = range(len(self))
        for index in progress(indices, "Checking training images") if len(self) >= MIN_BAR else indices:
            problem = self._problem(index, index == 0 or (chosen is not None and index in chosen))
            if problem is not None:
                yield problem
            elif index == 0:
                chosen = set(self._choose(MAX_IMAGES, MIN_IMAGES))

    def _choose(self, most: int, min_images: int) -> list[int]:
        """Indices of evenly spaced images that fit into memory, judged by the first one."""
        fitting = max(min_images, MAX_BYTES // self._keep(0).numel())
        return evenly_spaced(len(self), min(most, fitting)).tolist()

    def _problem(self, index: int, keep: bool) -> Exception | None:
        """Problem of one image, which is kept in memory or not."""
        try:
            if keep:
                self._keep(index)
            else:
                self[index]
        except ValueError as error:
            return error
        return None

    def aspect(self) -> float:
        """Width over height of what the images show, before they were resized.

        A pre-processor may crop or pad as well. So ramps of brightness that pass it measure how it stretches images.

        Returns:
            float: Median over the images, of more than 32 over evenly spaced ones.
        """
        ratios = cache(self._ratio)
        # Not over all that were read, or a bank's key would depend on what was read before.
        indices = evenly_spaced(len(self), ASPECT_IMAGES).tolist()
        ratio = median(ratios(self._native_size(index)) for index in indices)
        if self.pose is not None:
            # A turned image shows another part of what the image shows, with pixels of the same shape.
            lying = self._read(0)
            (height, width), (rows, columns) = lying.shape[-2:], self._turn(lying).shape[-2:]
            ratio *= (columns / width) / (rows / height)
        return ratio

    def shown_sizes(self) -> list[tuple[float, float]]:
        """Heights and widths of what the images show, in pixels of the files, of which only the headers are read.

        Returns:
            list[tuple[float, float]]: Size of each image, less what the transforms crop, plus what they pad.
        """
        changes = self.augmentations is not None or self.pre_processor is not None
        extents = cache(lambda size: (shown_extent(self._see, size) if changes else None) or size)
        return [extents(read_size(path)) for path in self.paths]

    def _native_size(self, index: int) -> tuple[int, int]:
        """Height and width of an image before the transforms."""
        if index not in self._native_sizes:
            self._keep(index)
        return self._native_sizes[index]

    def _ratio(self, size: tuple[int, int]) -> float:
        """Width over height of what an image of a given size shows after the transforms."""
        extent = shown_extent(self._see, size)
        return size[1] / size[0] if extent is None else round(extent[1] / extent[0], 4)

    def _keep(self, index: int) -> torch.Tensor:
        """Image that is read only once."""
        if index not in self._kept:
            self._kept[index] = self[index]
        return self._kept[index]

    def _see(self, image: torch.Tensor, mask: torch.Tensor | None = None, seed: int = 0) -> torch.Tensor:
        """Pass an image of shape ``(3, H, W)`` through all transforms."""
        try:
            # In 64 bit, or the last bit of a pixel, and with it every cache key, would depend on the thread count.
            return self._transform(image.double(), mask, seed)
        except (RuntimeError, TypeError):  # transforms that compute in 32 bit only
            return self._transform(image.float(), mask, seed)

    def _transform(self, image: torch.Tensor, mask: torch.Tensor | None, seed: int) -> torch.Tensor:
        """Apply all transforms, which get the types of tensor that they know."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.augmentations is not None:
                given = (Image(image),) if mask is None else (Image(image), mask)
                transformed = self.augmentations(*given)
                seen, mask = (transformed, None) if mask is None else transformed
                image = functional.to_dtype(seen, image.dtype, scale=True)  # as anomalib's items do
            self.item_sizes.add((image.shape[-2], image.shape[-1]))
            images, masks = Image(image[None]), None if mask is None else Mask(mask[None])
            pre_processor = self.pre_processor
            if getattr(type(pre_processor), "on_test_batch_start", None) is PreProcessor.on_test_batch_start:
                transform = cast("PreProcessor", pre_processor).transform
                return image if transform is None else transform(images, masks)[0][0]
            if isinstance(pre_processor, Callback):  # with a hook of its own, which gets batches in 32 bit
                batch = ImageBatch(image=images.float(), gt_mask=masks)
                pre_processor.on_test_batch_start(cast("Any", None), cast("Any", None), batch, 0)
                return cast("torch.Tensor", batch.image)[0]
            # Lightning calls no other pre-processor in training and testing.
            return image

    def _check(self, image: torch.Tensor, path: str) -> None:
        """Check channels and range of values of an image that passed all transforms."""
        if image.shape[0] != 3:
            msg = (
                f"The image {path} has {image.shape[0]} channel{'s' * (image.shape[0] > 1)} after the pre-processor, "
                "but the detector needs 3: set num_output_channels=3 of Grayscale."
            )
            raise ValueError(msg)
        low, high = image.min().item(), image.max().item()
        if not (low >= -OVERSHOOT and high <= 1 + OVERSHOOT):
            transforms = (self.augmentations, getattr(self.pre_processor, "transform", None))
            normalizes = any(find_transform(transform, Normalize) is not None for transform in transforms)
            remedy = "remove Normalize from the transforms" if normalizes else "scale them to [0, 1]"
            msg = (
                f"The image {path} has values from {low:.2f} to {high:.2f} after the pre-processor, but the detector "
                f"needs values in [0, 1]: {remedy}."
            )
            raise ValueError(msg)
