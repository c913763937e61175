# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Picture of what the detector learns from and what it finds: ``docs/images/overview.png``.

Example:
    python benchmarks/overview.py --weights WEIGHTS/magnetic_tile-1/step3000.pt --cache-dir CACHE

``curve.py --weights-dir WEIGHTS --cache-dir CACHE`` leaves both. Only categories whose images may be passed on. No
image is chosen by eye:

- Row 1 shows 32 normal training images, evenly spaced, with default defects; of these pairs, the two at the quartiles
  of the mask's size.
- Row 2 shows test images. Kinds of defects are ordered by their median score, and the two at the quartiles are shown,
  an easy and a hard kind, but neither the easiest nor the hardest; of each the image with the median score. The good
  image is that with the median score as well.

The thresholds come from good training images alone, as ``ConformalPostProcessor`` sets them without a validation set,
and scores and maps are scaled so that the threshold is 0.5.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from anomalib.data import MVTecAD
from common import REDISTRIBUTABLE, make_mvtec
from curve import load_snapshot
from jsonargparse import ArgumentParser
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from anomalib_ddpm_st import BankConfig, DdpmSt, DefectConfig, DiffusionAnomalyGenerator, DiffusionConfig
from anomalib_ddpm_st.core.images import NormalImages, evenly_spaced
from anomalib_ddpm_st.synthesis.preparation import find_prepared, prepare_bank

GOOD = "good"
CANDIDATES = 32
QUARTILES = (0.25, 0.75)
# Of the picture, in pixels.
WIDTH, SIDE, GAP, MARGIN = 1200, 172, 8, 12
TITLE, CAPTION = 46, 38
HEIGHT = 2 * (TITLE + SIDE) + CAPTION + MARGIN
FONT = 19.0
MAX_BYTES = 150_000
CAPTION_FONT = 17.0
MAP_COLOURS = "inferno"
DEFECTIVE_COLOUR, GOOD_COLOUR, OUTLINE_COLOUR, TEXT_COLOUR = "#c4320a", "#1a7f37", "#ff7a1a", "#57606a"


class Finding(NamedTuple):
    """A test image and what the detector says of it.

    Attributes:
        kind (str): Kind of defect, or ``"good"``.
        image (torch.Tensor): Image of shape ``(3, H, W)`` with values in [0, 1].
        score (float): Score; 0.5 is the threshold.
        anomaly_map (torch.Tensor): Anomaly map of shape ``(H, W)``; 0.5 is the threshold.
    """

    kind: str
    image: torch.Tensor
    score: float
    anomaly_map: torch.Tensor

    @property
    def caption(self) -> str:
        """Kind, label and score."""
        shown = "good part" if self.kind == GOOD else self.kind.replace("_", " ")
        return f"{shown}: {'defective' if self.score >= 0.5 else 'good'}, {self.score:.2f}"


def at_quantile(count: int, quantile: float) -> int:
    """Index of a quantile among sorted values."""
    return round(quantile * (count - 1))


def choose_findings(findings: list[Finding]) -> list[Finding]:
    """An easy kind, a hard kind and good images, of each the image with the median score.

    Args:
        findings (list[Finding]): All test images.

    Returns:
        list[Finding]: Three images, fewer if there are fewer kinds.
    """
    medians = {}
    for kind in {finding.kind for finding in findings}:
        ranked = sorted((finding for finding in findings if finding.kind == kind), key=lambda finding: finding.score)
        medians[kind] = ranked[at_quantile(len(ranked), 0.5)]
    good = [medians.pop(GOOD)] if GOOD in medians else []
    kinds = sorted(medians.values(), key=lambda finding: (finding.score, finding.kind), reverse=True)
    chosen = dict.fromkeys(at_quantile(len(kinds), quantile) for quantile in QUARTILES) if kinds else {}
    return [*(kinds[index] for index in chosen), *good]


def load(weights: Path, datamodule: MVTecAD, seed: int) -> DdpmSt:
    """Load weights kept by ``curve.py``, with thresholds from good training images.

    Args:
        weights (Path): File of the weights.
        datamodule (MVTecAD): Data of the training, set up.
        seed (int): Seed of the calibration.

    Returns:
        DdpmSt: Model that gives scaled scores and maps.
    """
    model = DdpmSt(pre_trained=False, evaluator=False, visualizer=False)
    # Without this, calibration leaves the thresholds as they are.
    model.post_processor.from_good_images = True
    load_snapshot(model, weights, datamodule, seed)
    return model.eval()


@torch.no_grad()
def find(model: DdpmSt, datamodule: MVTecAD) -> list[Finding]:
    """Predict all test images.

    Args:
        model (DdpmSt): Model from :func:`load`.
        datamodule (MVTecAD): Data.

    Returns:
        list[Finding]: One for each image.
    """
    findings = []
    for batch in datamodule.test_dataloader():
        prediction = model(batch.image)
        maps = prediction.anomaly_map.reshape(len(batch.image), *prediction.anomaly_map.shape[-2:])
        rows = zip(batch.image_path, batch.image, prediction.pred_score.flatten().tolist(), maps, strict=True)
        findings += [Finding(Path(path).parent.name, *row) for path, *row in rows]
    return findings


def find_bank(model: DdpmSt, datamodule: MVTecAD, cache_dir: Path) -> Path:
    """Bank of textures of a training with the default settings.

    Args:
        model (DdpmSt): Model of the training.
        datamodule (MVTecAD): Data of the training, set up.
        cache_dir (Path): Cache of the training.

    Returns:
        Path: Folder of the bank.

    Raises:
        FileNotFoundError: If the cache has none.
    """
    images = NormalImages.from_datamodule(datamodule, model.pre_processor).turn(model.model.pose)
    settings = (images, BankConfig(), DiffusionConfig(), None, cache_dir)
    if not all(find_prepared(*settings, min_images=2)):
        msg = f"{cache_dir} holds no bank of these images: give the --cache-dir that curve.py had."
        raise FileNotFoundError(msg)
    return prepare_bank(*settings, min_images=2).bank_dir


@torch.no_grad()
def make_pairs(model: DdpmSt, datamodule: MVTecAD, bank: Path, seed: int) -> list[tuple[torch.Tensor, ...]]:
    """Draw synthetic defects.

    Args:
        model (DdpmSt): Model, whose pre-processor and pose apply.
        datamodule (MVTecAD): Data, set up.
        bank (Path): Folder of the bank.
        seed (int): Seed of the defects.

    Returns:
        list[tuple[torch.Tensor, ...]]: Normal images, the same with a defect, and masks.
    """
    chosen = evenly_spaced(len(datamodule.train_data), CANDIDATES).tolist()
    images = [datamodule.train_data[index].image[None] for index in chosen]
    normal = torch.cat([model.model.align(model.pre_processor(image)) for image in images])
    defects = replace(DefectConfig(), probability=1.0)
    augmented, masks = DiffusionAnomalyGenerator(bank, defects, torch.Generator().manual_seed(seed))(normal)
    order = masks.flatten(1).mean(dim=1).argsort(stable=True)
    order = order[masks.flatten(1).any(dim=1)[order]]
    indices = dict.fromkeys(at_quantile(len(order), quantile) for quantile in QUARTILES) if len(order) else {}
    return [(normal[order[index]], augmented[order[index]], masks[order[index]]) for index in indices]


def draw(pairs: list[tuple[torch.Tensor, ...]], findings: list[Finding]) -> Figure:
    """Draw both rows.

    Args:
        pairs (list[tuple[torch.Tensor, ...]]): See :func:`make_pairs`.
        findings (list[Finding]): See :func:`choose_findings`.

    Returns:
        Figure: Picture.
    """
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor="white")

    def title(y: float, bold: str, text: str) -> None:
        shown = figure.text(MARGIN / WIDTH, 1 - y / HEIGHT, bold, fontsize=FONT, weight="bold", va="center")
        end = shown.get_window_extent().x1
        figure.text((end + 14) / WIDTH, 1 - y / HEIGHT, text, fontsize=FONT, color=TEXT_COLOUR, va="center")

    def show(x: float, y: float, pixels: torch.Tensor, finding: Finding | None = None) -> None:
        axes = figure.add_axes((x / WIDTH, 1 - (y + SIDE) / HEIGHT, SIDE / WIDTH, SIDE / HEIGHT))
        axes.set_axis_off()
        axes.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=1, aspect="auto", extent=(0, 1, 1, 0))
        if finding is not None and bool((finding.anomaly_map >= 0.5).any()):
            mask = (finding.anomaly_map >= 0.5).float().numpy()
            axes.contour(mask, levels=[0.5], colors=OUTLINE_COLOUR, linewidths=2.2, extent=(0, 1, 0, 1))
            axes.set(xlim=(0, 1), ylim=(1, 0))

    def starts(groups: int, size: int) -> list[list[float]]:
        width = size * SIDE + (size - 1) * GAP
        between = (WIDTH - 2 * MARGIN - groups * width) / max(groups - 1, 1)
        return [[MARGIN + group * (width + between) + i * (SIDE + GAP) for i in range(size)] for group in range(groups)]

    title(TITLE / 2, "Learns from", "a good image, a synthetic defect in it, and its mask")
    for places, (normal, augmented, mask) in zip(starts(len(pairs), 3), pairs, strict=True):
        for x, pixels in zip(places, (normal.permute(1, 2, 0), augmented.permute(1, 2, 0), mask[0]), strict=True):
            show(x, TITLE, pixels.float())
    top = TITLE + SIDE + TITLE
    title(top - TITLE / 2 + 4, "Finds", "real defects: outline, anomaly map, verdict and score (threshold 0.5)")
    for (first, second), finding in zip(starts(len(findings), 2), findings, strict=True):
        show(first, top, finding.image.permute(1, 2, 0).float(), finding)
        show(second, top, torch.from_numpy(colormaps[MAP_COLOURS](finding.anomaly_map.clamp(0, 1).numpy())[..., :3]))
        colour = DEFECTIVE_COLOUR if finding.score >= 0.5 else GOOD_COLOUR
        place = (first + SIDE + GAP / 2) / WIDTH, (CAPTION / 2 + 4) / HEIGHT
        figure.text(
            *place, finding.caption, fontsize=CAPTION_FONT, color=colour, weight="bold", ha="center", va="center"
        )
    return figure


def make_palette(shades: int) -> Image.Image:
    """Colours of the picture: greys, those of anomaly maps, and those of text and outlines, fading to their background.

    Args:
        shades (int): Number of greys, and of colours of anomaly maps.

    Returns:
        Image.Image: Image with this palette, of at most 256 colours.
    """
    fading = [(DEFECTIVE_COLOUR, "white"), (GOOD_COLOUR, "white"), (TEXT_COLOUR, "white"), (OUTLINE_COLOUR, "#404040")]
    colours = [colormaps[name](torch.linspace(0, 1, shades).numpy())[:, :3] for name in ("gray", MAP_COLOURS)]
    weights = torch.linspace(0, 1, 6)[1:, None]
    for colour, back in fading:
        start, end = (torch.tensor(to_rgb(name)) for name in (back, colour))
        colours.append((start + weights * (end - start)).numpy())
    values = (torch.cat([torch.as_tensor(part) for part in colours]) * 255).round().byte()
    palette = Image.new("P", (1, 1))
    palette.putpalette(values.flatten().tolist())
    return palette


def save(figure: Figure, path: Path) -> None:
    """Save a picture as PNG with so few shades that it stays below ``MAX_BYTES``.

    Args:
        figure (Figure): Picture.
        path (Path): PNG file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    for shades in (96, 64, 48, 32, 24, 16):
        picture.quantize(palette=make_palette(shades), dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= MAX_BYTES:
            break


def main() -> None:
    """Draw the picture."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data/mvtec_layout"))
    parser.add_argument("--category", default="magnetic_tile")
    parser.add_argument("--weights", type=Path, required=True, help="File of the weights, from curve.py.")
    parser.add_argument("--cache-dir", type=Path, required=True, help="Cache of the same training.")
    parser.add_argument("--seed", type=int, default=1, help="Of the training, and of the defects.")
    parser.add_argument("--output", type=Path, default=Path("docs/images/overview.png"))
    options = parser.parse_args()
    if options.category not in REDISTRIBUTABLE:
        parser.error(f"Images of {options.category} may not be passed on, only those of {', '.join(REDISTRIBUTABLE)}.")
    datamodule = make_mvtec(options.data_root, options.category, num_workers=0)
    datamodule.setup()
    model = load(options.weights, datamodule, options.seed)
    pairs = make_pairs(model, datamodule, find_bank(model, datamodule, options.cache_dir), options.seed)
    save(draw(pairs, choose_findings(find(model, datamodule))), options.output)


if __name__ == "__main__":
    main()
