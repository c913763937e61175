# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""A name for anomalib's Folder."""

from pathlib import Path

import pytest

from anomalib_ddpm_st.cli.folder import add_folder_name

TRAIN = ["train", "--model", "DdpmSt"]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--data", "Folder", "--data.root", "some/bolts"], "bolts"),
        (["--data=anomalib.data.Folder", "--data.init_args.root=bolts/"], "bolts"),
        (["--data", "Folder", "--data.normal_dir", "good"], "parts"),
        (["--data", "Folder", "--data.root", "/"], "parts"),
    ],
)
def test_name_is_added(arguments: list[str], name: str) -> None:
    assert add_folder_name([*TRAIN, *arguments]) == [*TRAIN, *arguments, "--data.name", name]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data", "Folder", "--data.name", "mine", "--data.root", "bolts"],
        ["--data", "Folder", "--data.init_args.name=mine"],
        ["--data", "MVTecAD", "--data.root", "bolts"],
        ["--data", "folder/with/images"],
        [],
    ],
)
def test_name_is_not_added(arguments: list[str]) -> None:
    assert add_folder_name([*TRAIN, *arguments]) == [*TRAIN, *arguments]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("data: {class_path: Folder, init_args: {name: mine}}", None),
        ("data: {class_path: Folder, init_args: {root: nuts}}", "nuts"),
        ("model: {class_path: DdpmSt}", "parts"),
        ("data: [", "parts"),
    ],
)
def test_name_of_a_config_counts(tmp_path: Path, content: str, name: str | None) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    arguments = ["train", "-c", str(path), "--data", "Folder"]
    added = [] if name is None else ["--data.name", name]
    assert add_folder_name(arguments) == [*arguments, *added]
