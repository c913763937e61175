# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the table of variants: its cells, its data, and that it resumes."""

import sys
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Any

import ablation
import pandas as pd
import pytest
import torch
from ablation import (
    SETTINGS,
    SHORT,
    SHORT_SIZE,
    VARIANTS,
    Variant,
    equal_weights,
    gains,
    make_datamodule,
    run_cell,
    segmentation_alone,
)
from common import METRICS, merge, read_table
from lightning.pytorch.trainer.states import TrainerFn
from rule import FAMILY_METRICS, validation_datamodule
from validation import write_validation_set

from anomalib_ddpm_st import BankConfig, DdpmSt, DefectConfig, DiffusionConfig
from anomalib_ddpm_st.detector.layers import resize_map

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Nested settings by dotted names."""
    parts = (
        flat({f"{name}.{key}": item for key, item in value.items()}) if isinstance(value, dict) else {name: value}
        for name, value in settings.items()
    )
    return {name: value for part in parts for name, value in part.items()}


def default_settings() -> dict[str, Any]:
    """Defaults of the model by dotted names."""
    groups = {"diffusion": asdict(DiffusionConfig()), "bank": asdict(BankConfig()), "defects": asdict(DefectConfig())}
    arguments = {name: value.default for name, value in signature(DdpmSt.__init__).parameters.items()}
    return flat({**arguments, **groups})


# ---------------------------------------------------------------------------------------------------------------------
# Variants


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_accepted(variant: str) -> None:
    """Each is a model with its own settings and those of the short budget."""
    pre_processor = DdpmSt.configure_pre_processor(SHORT_SIZE)
    model = VARIANTS[variant].build(pre_trained=False, pre_processor=pre_processor, **SHORT)
    assert model.input_size == SHORT_SIZE
    expected = flat(merge(SHORT, VARIANTS[variant].arguments))
    assert len(expected) >= len(flat(SHORT))
    settings = flat(dict(model.hparams))
    for name, value in expected.items():
        assert settings[name] == value


def test_variants_differ_from_the_default() -> None:
    """No variant trains the default again, and no two are the same."""
    defaults = default_settings()
    unlike = {
        name: (*sorted((key, str(value)) for key, value in flat(dict(variant.arguments)).items()), variant.control)
        for name, variant in VARIANTS.items()
    }
    assert all(
        value != defaults[key] for variant in VARIANTS.values() for key, value in flat(dict(variant.arguments)).items()
    )
    assert [name for name, difference in unlike.items() if difference == (None,)] == ["default"]
    assert len(set(unlike.values())) == len(unlike)


def test_variants_are_measured() -> None:
    """Each has a row in the results."""
    measured = pd.concat([read_table(path) for path in RESULTS.glob("ablation*.csv")])
    assert set(VARIANTS) <= set(measured["variant"])


def test_other_budgets_are_shorter() -> None:
    """They name settings of the model, each smaller than the default."""
    defaults = default_settings()
    assert all(value < defaults[name] for settings in SETTINGS.values() for name, value in flat(settings).items())
    assert {name for name, value in SETTINGS["long"].items() if SHORT[name] != value} == {"training_steps"}
    assert not SETTINGS["full"]


@torch.no_grad()
def test_equal_weights() -> None:
    """The same parts, each of which counts for a third."""
    default = DdpmSt(pre_trained=False, top_k=5).model.eval()
    control = equal_weights(default).eval()
    assert (control.teacher, control.memory_bank) == (default.teacher, default.memory_bank)
    maps = [torch.full((1, 1, 8, 8), value) for value in (0.3, 0.6, 0.9)]
    torch.testing.assert_close(control.anomaly_map(maps), torch.full((1, 1, 8, 8), 0.6))


@torch.no_grad()
def test_segmentation_alone() -> None:
    """The map is the segmentation by the same parts, and the score the mean of its highest pixels."""
    default = DdpmSt(pre_trained=False, top_k=5).model.eval()
    control = segmentation_alone(default).eval()
    assert (control.teacher, control.student, control.head) == (default.teacher, default.student, default.head)
    assert control.memory_bank is None
    images = torch.rand(2, 3, 32, 32)
    teacher, _, products = default.compare(images)
    logits = resize_map(control.head(products), images.shape[-2:])
    segmentation = default.components(teacher, products, logits)[0]
    output = control(images)
    assert torch.equal(output.anomaly_map, segmentation)
    assert torch.allclose(output.pred_score, segmentation.flatten(1).topk(5)[0].mean(dim=1))


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


def test_cell(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A control trains, and is measured on all three sets."""
    monkeypatch.setattr(ablation, "SHORT_SIZE", (32, 32))
    monkeypatch.setitem(SETTINGS, "short", {"training_steps": 1, "top_k": 5})
    variant = Variant({"defects": {"source": "self_texture"}, "pre_trained": False}, segmentation_alone)
    seconds, results, families = run_cell(variant, "bottle", 1, "short", data_root, tmp_path / "cache", None)
    assert seconds > 0
    assert list(results) == ["test", "validation", "faint"]
    assert all(0 <= metrics[name] <= 100 for metrics in results.values() for name in METRICS)
    assert set(families["set"]) == {"validation", "faint"}
    assert families.groupby("set")["images"].sum().tolist() == [10, 10]
    assert families[list(FAMILY_METRICS)].map(lambda value: 0 <= value <= 100).all(axis=None)


def test_gains() -> None:
    """Differences are paired: only cells that both variants have count, whatever their order."""
    values = {
        ("default", "bottle", 1): 90.0,
        ("default", "screw", 1): 70.0,
        ("soft=0", "screw", 1): 71.0,
        ("soft=0", "bottle", 1): 93.0,
        ("soft=0", "bottle", 2): 10.0,
    }
    rows = [
        {"variant": variant, "category": category, "seed": seed, "budget": "short", **dict.fromkeys(METRICS, value)}
        for (variant, category, seed), value in values.items()
    ]
    table = gains(pd.DataFrame(rows), "default")
    assert table.index.tolist() == [("soft=0", metric) for metric in METRICS]
    assert table.to_numpy().tolist() == [[2.0, 1.0, 2.0]] * len(METRICS)


@pytest.mark.usefixtures("quiet")
def test_table_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells with a row are not run again; an interrupted one is."""
    ran: list[tuple[Any, ...]] = []
    broken = {"screw"}

    def run_cell(
        variant: Variant,
        category: str,
        seed: int,
        *rest: Any,  # noqa: ANN401
    ) -> tuple[float, dict[str, dict[str, float]], pd.DataFrame]:
        if category in broken:
            raise KeyboardInterrupt
        ran.append((category, seed, variant, *rest))
        count = len(ran)
        return (
            12.34,
            {
                "test": {"pixel_AUROC": 90.0 + count},
                "validation": {"pixel_AUROC": 80.0 + count},
                "faint": {"pixel_AUROC": 70.0 + count},
            },
            pd.DataFrame([{"set": name, "family": "line", "pixel_AUPR": count} for name in ("validation", "faint")]),
        )

    monkeypatch.setattr(ablation, "run_cell", run_cell)
    monkeypatch.setattr(ablation, "commit", lambda: "abc")
    output, label = tmp_path / "table.csv", "synthesis=diffusion"
    command = ["ablation.py", "--categories", "bottle", "screw", "--variants", label, "--seeds", "3"]
    monkeypatch.setattr(sys, "argv", [*command, "--output", str(output), "--teacher-weights", "weights.pth"])
    with pytest.raises(KeyboardInterrupt):
        ablation.main()
    key = ["variant", "category", "seed", "budget"]
    assert read_table(output)[key].to_numpy().tolist() == [[label, "bottle", 3, "short"]]
    broken.clear()
    ablation.main()
    assert [category for category, *_ in ran] == ["bottle", "screw"]
    assert ran[0][:4] == ("bottle", 3, VARIANTS[label], "short")
    assert "weights.pth" in ran[0]
    ablation.main()
    assert len(ran) == 2
    rows = read_table(output)
    assert rows[["category", "pixel_AUROC", "seconds", "commit"]].to_numpy().tolist() == [
        ["bottle", 91.0, 12.3, "abc"],
        ["screw", 92.0, 12.3, "abc"],
    ]
    for name in ("validation", "faint"):
        assert read_table(tmp_path / f"table_{name}.csv")[key].equals(rows[key])
    families = read_table(tmp_path / "table_families.csv")
    assert families[["category", "set", "pixel_AUPR"]].to_numpy().tolist() == [
        ["bottle", "validation", 1],
        ["bottle", "faint", 1],
        ["screw", "validation", 2],
        ["screw", "faint", 2],
    ]
