# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""A name for the images of anomalib's ``Folder``, which requires one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

FOLDERS = {"Folder", "anomalib.data.Folder"}
NAMES = ("--data.name", "--data.init_args.name")
ROOTS = ("--data.root", "--data.init_args.root")
DEFAULT_NAME = "parts"


def add_folder_name(args: Sequence[str]) -> list[str]:
    """Add the name of the root folder to ``--data Folder``, unless a name is given. It names the folder of results.

    Args:
        args (Sequence[str]): Arguments of a command.

    Returns:
        list[str]: Arguments, with ``--data.name`` if it was missing.
    """
    args = list(args)
    if _last(args, ("--data",)) not in FOLDERS or _last(args, NAMES) is not None:
        return args
    path = _last(args, ("-c", "--config"))
    settings = {} if path is None else _read_data_settings(Path(path))
    if "name" in settings:
        return args
    root = _last(args, ROOTS) or settings.get("root")
    return [*args, "--data.name", (Path(root).resolve().name if root else "") or DEFAULT_NAME]


def _last(args: Sequence[str], options: Sequence[str]) -> str | None:
    """Value of the last of these options, given as two arguments or with an equals sign."""
    value = None
    for arg, following in zip(args, [*args[1:], None], strict=True):
        name, sign, given = arg.partition("=")
        if name in options:
            value = given if sign else following
    return value


def _read_data_settings(path: Path) -> dict[str, Any]:
    """Settings of the datamodule in a config; empty if it cannot be read, which the parser reports."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        return dict(config["data"]["init_args"])
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return {}
