# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Content-addressed cache of trained DDPMs and texture banks."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from platformdirs import user_cache_path
from safetensors import SafetensorError

logger = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """Folder for cached DDPMs and texture banks in the user's own cache folder."""
    return user_cache_path("anomalib_ddpm_st", appauthor=False)


def content_key(settings: Mapping[str, Any], *tensors: torch.Tensor) -> str:
    """Key that changes with any setting and any value of the tensors.

    Args:
        settings (Mapping[str, Any]): Plain data.
        *tensors (torch.Tensor): Tensors on the CPU.

    Returns:
        str: Sixteen hexadecimal digits.
    """
    digest = hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode())
    for tensor in tensors:
        digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def cached_folder(cache_dir: Path, name: str, build: Callable[[Path], None]) -> Path:
    """Return a folder of the cache, building it first if it is missing.

    The folder is built next to its final path and renamed when complete, so that a partial one is never used. The next
    build receives what an interrupted one left and may resume from it. If another process is building the same folder,
    this one waits.

    Args:
        cache_dir (Path): Root of the cache, created if it is missing.
        name (str): Name of the folder, which holds its content key.
        build (Callable[[Path], None]): Called with an existing folder to fill.

    Returns:
        Path: The complete folder.

    Raises:
        OSError: If the cache cannot be written; the message names the folder and the remedy.
    """
    folder = cache_dir / name
    partial = cache_dir / f"{name}.partial"
    lock = FileLock(cache_dir / f"{name}.lock")
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        if folder.is_dir():
            logger.info("Reusing %s", folder)
            return folder
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning("Another process is writing %s; waiting for it to finish.", folder)
            lock.acquire()
        try:
            if not folder.is_dir():
                partial.mkdir(exist_ok=True)
                build(partial)
                partial.replace(folder)
        finally:
            lock.release()
    except (OSError, SafetensorError) as error:
        msg = (
            f"The cache folder {folder} cannot be written ({error}): free some space, or choose another "
            "folder with cache_dir, and run the command again to resume."
        )
        raise OSError(msg) from error
    return folder
