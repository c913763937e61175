# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the table of variants: its cells, its data and that it goes on where it was."""

import csv
import inspect
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ablation
import pytest
from ablation import (
    SETTINGS,
    SHORT,
    SHORT_SIZE,
    VARIANTS,
    append_row,
    finished_cells,
    make_datamodule,
    validation_datamodule,
)
from lightning.pytorch.trainer.states import TrainerFn
from validation import write_validation_set

from anomalib_ddpm_st import DdpmSt


@pytest.fixture
def quiet() -> Iterator[None]:
    """Undo what the script does to logging and warnings."""
    loggers = [logging.getLogger(name) for name in ("anomalib", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def cell(**values: str | float) -> dict[str, Any]:
    """Row of a cell."""
    return {"variant": "default", "category": "bottle", "seed": 1, "budget": "short", "pixel_AUROC": 97.125, **values}


def test_finished_cells_of_nothing(tmp_path: Path) -> None:
    """A table that was not begun has none."""
    assert finished_cells(tmp_path / "none.csv") == set()


def test_rows_are_found_again(tmp_path: Path) -> None:
    """Rows are appended under one header, in a folder that need not be there, and each is found."""
    path = tmp_path / "results" / "table.csv"
    rows = [cell(), cell(variant="synthesis=none", seed=2), cell(category="screw", budget="full")]
    for count, row in enumerate(rows, start=1):
        append_row(path, row)
        assert len(finished_cells(path)) == count
    assert finished_cells(path) == {
        ("default", "bottle", "1", "short"),
        ("synthesis=none", "bottle", "2", "short"),
        ("default", "screw", "1", "full"),
    }
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "variant,category,seed,budget,pixel_AUROC"
    with path.open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert read == [{name: str(value) for name, value in row.items()} for row in rows]


def test_awkward_values(tmp_path: Path) -> None:
    """Commas and quotes of a value do not move the columns."""
    path = tmp_path / "table.csv"
    append_row(path, cell(variant='strength=[1, 2], "so"'))
    assert finished_cells(path) == {('strength=[1, 2], "so"', "bottle", "1", "short")}


# ---------------------------------------------------------------------------------------------------------------------
# Variants


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_accepted(variant: str) -> None:
    """Each is a model with the settings that it names, also with those of the short budget."""
    arguments = {**SHORT, **VARIANTS[variant]}
    model = DdpmSt(pre_trained=False, pre_processor=DdpmSt.configure_pre_processor(SHORT_SIZE), **arguments)
    assert model.input_size == SHORT_SIZE
    for name, value in arguments.items():
        assert model.hparams[name] == value


def test_variants_differ_from_the_default() -> None:
    """No variant but those that name the default's own setting trains the default again, and no two are the same."""
    defaults = {name: value.default for name, value in inspect.signature(DdpmSt.__init__).parameters.items()}
    unlike = {
        name: sorted((key, str(value)) for key, value in arguments.items() if defaults[key] != value)
        for name, arguments in VARIANTS.items()
    }
    same = {name for name, difference in unlike.items() if not difference}
    assert same <= {"default", f"synthesis={defaults['synthesis']}"}
    others = [str(difference) for difference in unlike.values() if difference]
    assert len(set(others)) == len(others)


def test_other_budgets_are_shorter() -> None:
    """They name settings of the model, each smaller than the default."""
    defaults = {name: value.default for name, value in inspect.signature(DdpmSt.__init__).parameters.items()}
    assert all(value < defaults[name] for settings in SETTINGS.values() for name, value in settings.items())
    assert {name for name, value in SETTINGS["long"].items() if SHORT[name] != value} == {"training_steps"}
    assert not SETTINGS["full"]


# ---------------------------------------------------------------------------------------------------------------------
# Data


def test_full_budget_holds_nothing_out(data_root: Path, tmp_path: Path) -> None:
    """It trains on all normal images."""
    datamodule, held_out = make_datamodule(data_root, "bottle", "full", batch_size=2, cache_dir=tmp_path / "cache")
    assert held_out == []
    datamodule.setup(TrainerFn.FITTING)
    assert len(datamodule.train_data) == 10


def test_short_budget_holds_a_fifth_out(data_root: Path, tmp_path: Path) -> None:
    """It trains on four fifths and names the rest."""
    datamodule, held_out = make_datamodule(data_root, "bottle", "short", batch_size=2, cache_dir=tmp_path / "cache")
    assert [Path(path).name for path in held_out] == ["000.png", "005.png"]
    datamodule.setup(TrainerFn.FITTING)
    assert len(datamodule.train_data) == 8
    assert not set(datamodule.train_data.samples["image_path"]) & set(held_out)
    assert datamodule.train_batch_size == 2


def test_images_held_out_stay_out(data_root: Path, tmp_path: Path) -> None:
    """Also after the Trainer has set the datamodule up, as ``fit`` does, training does not see them."""
    datamodule, held_out = make_datamodule(data_root, "bottle", "short", batch_size=2, cache_dir=tmp_path / "cache")
    datamodule.setup(TrainerFn.FITTING)
    seen = {Path(path).name for batch in datamodule.train_dataloader() for path in batch.image_path}
    assert len(seen) == 8
    assert not seen & {Path(path).name for path in held_out}


def test_validation_datamodule(data_root: Path, tmp_path: Path) -> None:
    """Its test set is the validation set: every defect with its own mask, and the normal images."""
    _, held_out = make_datamodule(data_root, "bottle", "short", batch_size=2, cache_dir=tmp_path / "cache")
    folder = tmp_path / "validation"
    write_validation_set(held_out, folder)
    datamodule = validation_datamodule(folder)
    datamodule.setup(TrainerFn.TESTING)
    samples = datamodule.test_data.samples
    defects, good = samples[samples["label_index"] == 1], samples[samples["label_index"] == 0]
    expected = sorted(path.name for path in (folder / "defect").iterdir())
    assert sorted(Path(path).name for path in defects["image_path"]) == expected
    assert sorted(Path(path).name for path in good["image_path"]) == ["000.png", "001.png"]
    for image_path, mask_path in zip(defects["image_path"], defects["mask_path"], strict=True):
        assert Path(mask_path).parent.name == "mask"
        assert Path(mask_path).name == Path(image_path).name
    batch = next(iter(datamodule.test_dataloader()))
    assert batch.gt_mask.flatten(1).any(dim=1).tolist() == batch.gt_label.tolist()


# ---------------------------------------------------------------------------------------------------------------------
# The table


@pytest.mark.usefixtures("quiet")
def test_table_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells whose row is there are not run again; one that was broken off is."""
    ran: list[tuple[str, int, dict[str, Any]]] = []
    broken = {"screw"}

    def run_cell(
        arguments: dict[str, Any],
        category: str,
        seed: int,
        *_: Any,  # ruff: ignore[any-type]
    ) -> tuple[float, dict[str, dict[str, float]]]:
        if category in broken:
            raise KeyboardInterrupt
        ran.append((category, seed, arguments))
        count = len(ran)
        return 12.34, {
            "test": {"pixel_AUROC": 90.0 + count},
            "validation": {"pixel_AUROC": 80.0 + count},
            "faint": {"pixel_AUROC": 70.0 + count},
        }

    monkeypatch.setattr(ablation, "run_cell", run_cell)
    monkeypatch.setattr(ablation, "commit", lambda: "abc")
    output = tmp_path / "table.csv"
    command = ["ablation.py", "--categories", "bottle", "screw", "--variants", "synthesis=noise", "--seeds", "3"]
    monkeypatch.setattr(sys, "argv", [*command, "--output", str(output), "--teacher-weights", "weights.pth"])
    with pytest.raises(KeyboardInterrupt):
        ablation.main()
    assert finished_cells(output) == {("synthesis=noise", "bottle", "3", "short")}
    broken.clear()
    ablation.main()
    assert [category for category, *_ in ran] == ["bottle", "screw"]
    assert ran[0] == ("bottle", 3, {"teacher_weights": "weights.pth", "synthesis": "noise"})
    ablation.main()
    assert len(ran) == 2
    with output.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["category"], row["pixel_AUROC"], row["seconds"], row["commit"]) for row in rows] == [
        ("bottle", "91.0", "12.3", "abc"),
        ("screw", "92.0", "12.3", "abc"),
    ]
    for name in ("validation", "faint"):
        assert finished_cells(tmp_path / f"table_{name}.csv") == finished_cells(output)
