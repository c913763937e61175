# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""The look-up tables of anomalib that registration touches."""

import logging
from pathlib import Path

import anomalib.models
import pytest
import torch
from anomalib.data import Folder
from anomalib.data.utils import synthetic
from anomalib.data.utils.generators.perlin import PerlinAnomalyGenerator
from anomalib.models import AnomalibModule
from anomalib.pipelines.benchmark.job import BenchmarkJob
from PIL import Image

from anomalib_ddpm_st import DdpmSt, DiffusionAnomalyGenerator, register, synthetic_split
from anomalib_ddpm_st.registration import PACKAGE, keep_benchmark_results


def test_anomalib_still_has_the_tables() -> None:
    """Fails loudly where a new anomalib looks models up in another way."""
    assert isinstance(anomalib.models.ALLOWED_MODULES, set)
    assert {"anomalib.models", "anomalib.models.image"} <= anomalib.models.ALLOWED_MODULES
    assert DdpmSt in AnomalibModule.__subclasses__()


def test_benchmark_collects_jobs_with_different_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where anomalib has moved or fixed its collection."""
    first, second = {"seed": 1, "image_AUROC": 0.5}, {"seed": 1, "image_AUROC": 0.6, "pixel_AUPRO": 0.7}
    monkeypatch.setattr(BenchmarkJob, "collect", staticmethod(BenchmarkJob.collect))
    with pytest.raises(KeyError):
        BenchmarkJob.collect([first, second])
    keep_benchmark_results()
    table = BenchmarkJob.collect([first, second])
    assert table["image_AUROC"].tolist() == [0.5, 0.6]
    assert table["pixel_AUPRO"].isna().tolist() == [True, False]


@pytest.mark.parametrize("size", [(40, 40), (32, 56)])
def test_synthetic_split_takes_the_generator(size: tuple[int, int], tmp_path: Path) -> None:
    """Its own images, at their own size, each with a defect; fails where anomalib makes them otherwise."""
    (tmp_path / "good").mkdir()
    normal = set()
    for index in range(12):
        pixels = torch.randint(100, 140, (*size, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "good" / f"{index}.png")
        normal.add(pixels.tobytes())
    never = {"source": "self_texture", "probability": 0.0}
    generator = DiffusionAnomalyGenerator(defects=never, generator=torch.Generator().manual_seed(0))
    calls = []
    make_defects = generator.make_defects
    generator.make_defects = lambda image: [calls.append(image), make_defects(image)][1]  # type: ignore[method-assign]
    data = Folder("parts", root=tmp_path, normal_dir="good", val_split_mode="synthetic", num_workers=0, seed=1)
    with synthetic_split(generator):
        data.setup()
    items = [item for item in data.val_data if bool(item.gt_label)]
    assert len(items) == len(calls) > 0
    for item in items:
        image, mask = (torch.as_tensor(part) for part in (item.image, item.gt_mask))
        assert tuple(image.shape) == (3, *size)
        assert mask.any()
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        assert pixels.tobytes() not in normal
    assert synthetic.PerlinAnomalyGenerator is PerlinAnomalyGenerator
    with pytest.raises(ZeroDivisionError), synthetic_split(generator):
        _ = 1 / 0
    assert synthetic.PerlinAnomalyGenerator is PerlinAnomalyGenerator


def test_register_is_idempotent() -> None:
    before = set(anomalib.models.ALLOWED_MODULES)
    register()
    register()
    assert before == anomalib.models.ALLOWED_MODULES
    assert anomalib.models.DdpmSt is DdpmSt
    assert anomalib.models.image.DdpmSt is DdpmSt


def test_only_this_package_is_allowed() -> None:
    extra = {name for name in anomalib.models.ALLOWED_MODULES if not name.startswith("anomalib.")}
    assert extra == {PACKAGE}


def test_name_clash_warns(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Other:
        pass

    monkeypatch.setattr(anomalib.models, "DdpmSt", Other)
    with caplog.at_level(logging.WARNING):
        register()
    assert "Other" in caplog.text
    assert anomalib.models.DdpmSt is DdpmSt


def test_changed_anomalib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anomalib.models, "ALLOWED_MODULES", None)
    with pytest.raises(RuntimeError, match=r"constraints\.txt"):
        register()
