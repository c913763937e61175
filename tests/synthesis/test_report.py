# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the report on synthetic defects."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

from anomalib_ddpm_st.core.images import NormalImages
from anomalib_ddpm_st.diffusion import DefectPipeline, PerturbedDDPMScheduler, build_unet
from anomalib_ddpm_st.synthesis import DiffusionAnomalyGenerator, report
from anomalib_ddpm_st.synthesis.health import HealthReport
from anomalib_ddpm_st.synthesis.pairs import write_pairs
from anomalib_ddpm_st.synthesis.report import save_report

HEALTH: HealthReport = {
    "images": 12,
    "yardstick": 0.1,
    "paired": 1.25,
    "from_noise": 2.5,
    "equivalent_blur": 3.0,
    "verdict": "usable",
    "advice": "Samples look like the images <blurred>.",
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Report on four pairs and an untrained DDPM."""
    folder = tmp_path_factory.mktemp("page")
    paths = [folder / f"{index} & co.png" for index in range(4)]
    for path in paths:
        Image.fromarray(torch.randint(90, 160, (32, 32, 3), dtype=torch.uint8).numpy()).save(path)
    images = NormalImages.from_files(paths)
    pairs = write_pairs(DiffusionAnomalyGenerator(), images, folder / "pairs")
    pipeline = DefectPipeline(
        build_unet((32, 32), block_out_channels=(8, 8)), PerturbedDDPMScheduler(prediction_type="sample")
    )
    pipeline.set_progress_bar_config(disable=True)
    normal = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    settings = {"from": "<here>", "bank.delta": [0.3, 2.0]}
    return save_report(folder / "pairs", pairs, images, settings, pipeline, normal, HEALTH)


def test_page(page: Path) -> None:
    """Every section has its figure, nothing is fetched from the network, and names are escaped."""
    text = page.read_text(encoding="utf-8")
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles == ["Pairs", "Areas and contrasts", "Unperturbed samples", "Perturbations", "Settings"]
    assert text.count("data:image/png;base64,") == 4
    assert "4 of 4 images" in text
    assert not re.search(r"https?://", text)
    assert "&lt;here&gt;" in text
    assert "&lt;blurred&gt;" in text
    assert "<here>" not in text
    assert 'class="verdict usable"' in text
    assert (page.parent / "contact_sheet.png").stat().st_size > 0


def test_page_without_a_ddpm(page: Path, tmp_path: Path) -> None:
    """Pairs of shuffled tiles: no samples and no health."""
    shutil.copy(page.parents[1] / "0 & co.png", tmp_path / "a.png")
    images = NormalImages.from_files([tmp_path / "a.png"])
    pairs = write_pairs(DiffusionAnomalyGenerator(), images, tmp_path / "pairs")
    text = save_report(tmp_path / "pairs", pairs, images, {}).read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["Pairs", "Areas and contrasts", "Settings"]
    assert "verdict" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)


def test_contact_sheet(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pair next to the image that it was made from, at the size of the pairs: they differ in the mask alone."""
    shown: dict[str, list[torch.Tensor]] = {}
    draw = report.contact_sheet
    monkeypatch.setattr(report, "contact_sheet", lambda columns: [shown.update(columns), draw(columns)][1])
    images = NormalImages.from_files(sorted(page.parents[1].glob("*.png")), (24, 40))
    pairs = write_pairs(DiffusionAnomalyGenerator(), images, tmp_path, count=6)
    save_report(tmp_path, pairs, images, {})
    assert [picture.shape for picture in shown["normal"]] == [(3, 24, 40)] * 6
    for index, (normal, mask, difference) in enumerate(
        zip(shown["normal"], shown["mask"], shown["difference"], strict=True)
    ):
        assert torch.equal(normal, images[index % 4] / 255)
        assert difference.any()
        assert not difference[mask == 0].any()


def test_page_in_a_browser(page: Path, tmp_path: Path) -> None:
    """Headless Chromium shows text and figures, at the width of a desktop and of a phone."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    for width in (1200, 400):
        picture = tmp_path / f"{width}.png"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},3000"]
        command = [
            browser,
            *options,
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={picture}",
            page.as_uri(),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        with Image.open(picture) as image:
            assert image.width == width
            colours = image.convert("RGB").getcolors(maxcolors=2**24)
        assert colours is not None
        assert len(colours) > 200, "figures have many colours"
