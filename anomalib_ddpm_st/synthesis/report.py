# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Contact sheet and HTML page about a set of synthetic defects and the DDPM that made them."""

from collections.abc import Mapping, Sequence
from itertools import starmap
from pathlib import Path
from typing import Any

import torch

from anomalib_ddpm_st.core.images import NormalImages, evenly_spaced
from anomalib_ddpm_st.diffusion import DefectPipeline
from anomalib_ddpm_st.visualization.plots import DPI, contact_sheet, histograms
from anomalib_ddpm_st.visualization.report import Section, render_report

from .config import MIDDLE_TIMESTEP, BankConfig
from .health import HealthReport
from .pairs import Pair, read_pair

PAGE_FILE = "report.html"
SHEET_FILE = "contact_sheet.png"
SHEET_ROWS = 16
SAMPLE_ROWS = 4
DELTAS = (0.0, 0.3, 0.6, 1.0, 1.5, 2.0)


def save_report(
    output: Path,
    pairs: Sequence[Pair],
    images: NormalImages,
    settings: Mapping[str, Any],
    pipeline: DefectPipeline | None = None,
    normal: torch.Tensor | None = None,
    health: HealthReport | None = None,
) -> Path:
    """Save contact sheet and page of a set of pairs.

    Args:
        output (Path): Folder of the pairs, for ``contact_sheet.png`` and ``report.html``.
        pairs (Sequence[Pair]): Pairs.
        images (NormalImages): Normal images that the pairs were made from.
        settings (Mapping[str, Any]): Settings that the pairs were made with.
        pipeline (DefectPipeline | None): DDPM whose samples are shown. Defaults to ``None``.
        normal (torch.Tensor | None): Normal images for the samples, ``uint8`` of shape ``(N, 3, H, W)``.
        health (HealthReport | None): Health of the DDPM. Defaults to ``None``.

    Returns:
        Path: Page.
    """
    shown = [pairs[index] for index in evenly_spaced(len(pairs), SHEET_ROWS).tolist()]
    columns: dict[str, list[torch.Tensor]] = {"normal": [], "synthetic": [], "mask": [], "difference": []}
    places = {path: place for place, path in enumerate(images.paths)}
    for pair in shown:
        original = images[places[pair.source]].float() / 255
        image, mask = read_pair(output, pair)
        for name, picture in zip(columns, (original, image, mask, _difference(image, original)), strict=True):
            columns[name].append(picture)
    sheet = contact_sheet(columns)
    sheet.savefig(output / SHEET_FILE, dpi=DPI)
    spread = histograms({
        "mask area, fraction of the image": [pair.mask_area for pair in pairs],
        "contrast in the mask": [pair.contrast for pair in pairs],
    })
    sections = [
        Section("Pairs", f"{len(shown)} of {len(pairs)} images with a defect, and their masks.", sheet),
        Section("Areas and contrasts", "All pairs. A contrast of 1 is from black to white.", spread),
    ]
    if pipeline is not None and normal is not None:
        sections += _samples(pipeline, normal[evenly_spaced(len(normal), SAMPLE_ROWS)].float() / 255)
    page = output / PAGE_FILE
    page.write_text(render_report("Synthetic defects", sections, settings, health), encoding="utf-8")
    return page


def _difference(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Largest difference of any channel, of shape ``(1, H, W)``."""
    return (first - second).abs().amax(dim=0, keepdim=True)


def _samples(pipeline: DefectPipeline, images: torch.Tensor) -> list[Section]:
    """Sections on the samples of a DDPM: unperturbed, and by delta."""
    columns: dict[str, list[torch.Tensor]] = {"normal": list(images)}
    for delta in DELTAS:
        # The same noise for every delta, so that samples differ by the perturbation alone.
        result = pipeline(
            images=images,
            start_timestep=MIDDLE_TIMESTEP,
            delta=delta,
            num_inference_steps=BankConfig.num_inference_steps,
            generator=torch.Generator().manual_seed(0),
            return_dict=False,
        )
        columns[f"delta {delta:g}"] = list(result[0].cpu())
    unperturbed = columns[f"delta {DELTAS[0]:g}"]
    check = {
        "normal": list(images),
        "sample, delta 0": unperturbed,
        "difference": list(starmap(_difference, zip(unperturbed, images, strict=True))),
    }
    return [
        Section(
            "Unperturbed samples",
            "Without a perturbation a sample should look like the normal image that it starts from.",
            contact_sheet(check),
        ),
        Section(
            "Perturbations",
            "The same start and the same noise, with an increasing perturbation delta.",
            contact_sheet(columns),
        ),
    ]
