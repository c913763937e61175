# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""The look-up tables of anomalib that registration touches."""

import logging

import anomalib.models
import pytest
from anomalib.models import AnomalibModule
from anomalib.pipelines.benchmark.job import BenchmarkJob

from anomalib_ddpm_st import DdpmSt, register
from anomalib_ddpm_st.registration import PACKAGE, keep_benchmark_results


def test_anomalib_still_has_the_tables() -> None:
    """Fails loudly where a new anomalib looks models up in another way."""
    assert isinstance(anomalib.models.ALLOWED_MODULES, set)
    assert {"anomalib.models", "anomalib.models.image"} <= anomalib.models.ALLOWED_MODULES
    assert DdpmSt in AnomalibModule.__subclasses__()


def test_benchmark_collects_jobs_with_different_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where anomalib has moved or mended its collection."""
    first, second = {"seed": 1, "image_AUROC": 0.5}, {"seed": 1, "image_AUROC": 0.6, "pixel_AUPRO": 0.7}
    monkeypatch.setattr(BenchmarkJob, "collect", staticmethod(BenchmarkJob.collect))
    with pytest.raises(KeyError):
        BenchmarkJob.collect([first, second])
    keep_benchmark_results()
    table = BenchmarkJob.collect([first, second])
    assert table["image_AUROC"].tolist() == [0.5, 0.6]
    assert table["pixel_AUPRO"].isna().tolist() == [True, False]


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
