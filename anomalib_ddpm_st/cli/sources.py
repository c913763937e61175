# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Normal images of the commands that read a folder or the config of a datamodule."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import yaml
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import get_image_filenames
from jsonargparse import ArgumentError, ArgumentParser

from anomalib_ddpm_st.core.images import NormalImages
from anomalib_ddpm_st.core.transforms import make_resize


def find_normal_images(images: Path | None, data: Path | None) -> Callable[[tuple[int, int] | None], NormalImages]:
    """Normal images of a folder or of the training set of a datamodule, in the order in which DdpmSt reads them.

    A datamodule is set up only once, since it may choose its training images at random.

    Args:
        images (Path | None): Folder of normal images.
        data (Path | None): Config of an anomalib datamodule, instead of a folder.

    Returns:
        Callable[[tuple[int, int] | None], NormalImages]: Gives the images, resized to a height and width or, with
        ``None``, as they are.

    Raises:
        ValueError: If not exactly one of the two is given, or the config cannot be used.
    """
    if (images is None) == (data is None):
        msg = "Give either a folder of normal images (--images) or the config of a datamodule (--data)."
        raise ValueError(msg)
    if images is not None:
        return partial(NormalImages.from_files, get_image_filenames(images))
    data = cast("Path", data)
    try:
        config = yaml.safe_load(data.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        msg = f"The datamodule config {data} cannot be parsed: {error}"
        raise ValueError(msg) from error
    if not isinstance(config, dict):
        msg = f"The datamodule config {data} must have the keys class_path and init_args."
        raise ValueError(msg)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AnomalibDataModule, "data", required=True, fail_untyped=False)
    try:
        parsed = parser.parse_object({"data": config.get("data", config)})
    except ArgumentError as error:
        msg = f"The datamodule config {data} cannot be used: {error}"
        raise ValueError(msg) from error
    datamodule = parser.instantiate_classes(parsed)["data"]
    datamodule.prepare_data()
    datamodule.setup("fit")
    return lambda size: NormalImages.from_datamodule(datamodule, make_resize(size))
