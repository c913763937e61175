# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Page on a set of synthetic defects and on the DDPM that made them: one file, to be read without a network."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .detector.torch_model import Teacher
from .diffusion import DefectPipeline
from .images import evenly, load_image
from .synthesis.bank import MIDDLE_START
from .synthesis.health import HealthReport, health_report
from .synthesis.pairs import Pair, read_pair
from .visualization import contact_sheet, histograms

HEALTH_FILE = "health.json"
PAGE_FILE = "report.html"
SHEET_FILE = "contact_sheet.png"
SHEET_ROWS = 16
SAMPLE_ROWS = 4
STRENGTHS = (0.0, 0.3, 0.6, 1.0, 1.5, 2.0)
HEALTH_LAYERS = ("layer2", "layer3")

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
img { max-width: 100%; height: auto; background: white; }
table { border-collapse: collapse; } th, td { text-align: left; padding: 0.2rem 1rem 0.2rem 0; vertical-align: top; }
td { overflow-wrap: anywhere; }
.verdict { font-weight: 600; padding: 0.5rem 0.8rem; border-left: 0.4rem solid gray; }
.good { border-color: seagreen; } .usable { border-color: goldenrod; } .poor { border-color: firebrick; }
"""


def measure_health(
    pipeline: DefectPipeline,
    images: torch.Tensor,
    output: Path,
    teacher_weights: str | None = None,
    backbone: str = "resnet18",
) -> HealthReport | None:
    """Measure the health of a DDPM by the features of the detector's teacher, save it and print the verdict.

    Args:
        pipeline (DefectPipeline): Trained DDPM.
        images (torch.Tensor): Normal images, ``uint8`` of shape ``(N, 3, H, W)``.
        output (Path): Folder that gets ``health.json``.
        teacher_weights (str | None): Local file with the weights of the backbone. ``None`` asks timm's hub.
        backbone (str): Name of the timm CNN. Defaults to ``"resnet18"``.

    Returns:
        HealthReport | None: Report, ``None`` where there are no weights to be had.
    """
    teacher = Teacher(backbone, HEALTH_LAYERS)
    try:
        teacher.load_weights(teacher_weights)
    except ConnectionError as error:
        print(f"The health of the DDPM is not measured: {error}")  # noqa: T201
        return None
    report = health_report(pipeline, images, lambda batch: teacher(teacher.normalize(batch)))
    (output / HEALTH_FILE).write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(f"Health of the DDPM: {report['verdict']}. {report['advice']}")  # noqa: T201
    return report


def save_report(
    output: Path,
    pairs: Sequence[Pair],
    image_size: tuple[int, int] | None,
    settings: Mapping[str, Any],
    pipeline: DefectPipeline | None = None,
    normal: torch.Tensor | None = None,
    health: HealthReport | None = None,
) -> Path:
    """Save contact sheet and page of a set of pairs.

    Args:
        output (Path): Folder of the pairs, which gets ``contact_sheet.png`` and ``report.html``.
        pairs (Sequence[Pair]): Pairs.
        image_size (tuple[int, int] | None): Height and width of the pairs, ``None`` where they have that of their
            normal images.
        settings (Mapping[str, Any]): What the pairs were made with.
        pipeline (DefectPipeline | None): DDPM, to show its samples. Defaults to ``None``.
        normal (torch.Tensor | None): Normal images for the samples, ``uint8`` of shape ``(N, 3, H, W)``.
        health (HealthReport | None): Health of the DDPM. Defaults to ``None``.

    Returns:
        Path: The page.
    """
    shown = [pairs[index] for index in evenly(len(pairs), SHEET_ROWS).tolist()]
    columns: dict[str, list[torch.Tensor]] = {"normal": [], "synthetic": [], "mask": [], "difference": []}
    for pair in shown:
        original = load_image(pair.source, image_size).float() / 255
        image, mask = read_pair(output, pair)
        difference = (image - original).abs().amax(dim=0, keepdim=True)
        for name, picture in zip(columns, (original, image, mask, difference), strict=True):
            columns[name].append(picture)
    sheet = _png(contact_sheet(columns))
    (output / SHEET_FILE).write_bytes(sheet)
    spread = histograms({
        "mask area, share of the image": [pair.mask_area for pair in pairs],
        "contrast in the mask": [pair.contrast for pair in pairs],
    })
    parts = [
        _section("Pairs", f"{len(pairs)} images with a defect and a mask; {len(shown)} of them.", sheet),
        _section("Areas and contrasts", "Of all pairs. A contrast of 1 is from black to white.", _png(spread)),
    ]
    if pipeline is not None and normal is not None:
        chosen = normal[evenly(len(normal), SAMPLE_ROWS)].float() / 255
        parts += _samples(pipeline, chosen)
    rows = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in settings.items())
    parts.append(f"<section><h2>Settings</h2><table>{rows}</table></section>")
    body = f"<h1>Synthetic defects</h1>{_verdict(health)}{''.join(parts)}"
    head = f'<meta charset="utf-8"><title>Synthetic defects</title><style>{STYLE}</style>'
    page = output / PAGE_FILE
    page.write_text(f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>', encoding="utf-8")
    return page


def _samples(pipeline: DefectPipeline, images: torch.Tensor) -> list[str]:
    """Sections on the samples of a DDPM: undisturbed, and by strength."""
    columns: dict[str, list[torch.Tensor]] = {"normal": list(images)}
    for strength in STRENGTHS:
        # The same noise for all strengths, so that they differ by the perturbation alone.
        result = pipeline(
            images=images,
            start=MIDDLE_START,
            strength=strength,
            num_inference_steps=10,
            generator=torch.Generator().manual_seed(0),
            return_dict=False,
        )
        columns[f"strength {strength:g}"] = list(result[0].cpu())
    undisturbed = columns[f"strength {STRENGTHS[0]:g}"]
    difference = [(one - two).abs().amax(dim=0, keepdim=True) for one, two in zip(images, undisturbed, strict=True)]
    check = {"normal": list(images), "sample, strength 0": undisturbed, "difference": difference}
    return [
        _section(
            "Undisturbed samples",
            "Without a perturbation a sample should look like the normal image that it starts from.",
            _png(contact_sheet(check)),
        ),
        _section(
            "Strengths", "The same starts and the same noise, perturbed more and more.", _png(contact_sheet(columns))
        ),
    ]


def _verdict(health: HealthReport | None) -> str:
    """Paragraph on the health of the DDPM."""
    if health is None:
        return ""
    rows = "".join(
        f"<tr><th>{_text(name.replace('_', ' '))}</th><td>{_text(value)}</td></tr>"
        for name, value in health.items()
        if name not in {"verdict", "advice"}
    )
    sentence = f"DDPM: {health['verdict']}. {health['advice']}"
    return f'<p class="verdict {health["verdict"]}">{_text(sentence)}</p><table>{rows}</table>'


def _section(title: str, text: str, picture: bytes) -> str:
    """Section with one picture in it."""
    source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    return f'<section><h2>{_text(title)}</h2><p>{_text(text)}</p><img src="{source}" alt="{_text(title)}"></section>'


def _text(value: object) -> str:
    """Text for a page."""
    return html.escape(f"{value:.3g}" if isinstance(value, float) else str(value))


def _png(figure: Any) -> bytes:  # noqa: ANN401
    """Figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()
