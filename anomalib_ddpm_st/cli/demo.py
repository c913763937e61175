# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""``anomalib-ddpm-st demo``: all three stages on embedded data, next to a baseline."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from anomalib.data import Folder
from anomalib.deploy import ExportType, OpenVINOInferencer
from anomalib.engine import Engine
from lightning.pytorch import seed_everything
from rich.console import Console
from rich.table import Table
from torchvision.io import ImageReadMode
from torchvision.io import read_image as read_tensor

from anomalib_ddpm_st.detector import DdpmSt
from anomalib_ddpm_st.diffusion import DiffusionConfig
from anomalib_ddpm_st.synthesis import DefectConfig, DiffusionAnomalyGenerator
from anomalib_ddpm_st.synthesis.config import Source
from anomalib_ddpm_st.visualization import save_contact_sheet, save_score_histogram

from .demo_data import BACKBONE, TILE, Surface, datamodule, embedded_teacher_weights, write_data

LAYERS = ["blocks.1", "blocks.2", "blocks.4"]
DEFAULT_DIFFUSION = DiffusionConfig(training_steps=250)
BANK_SIZE = 96
SHEET_ROWS = 8


def demo(
    output: Path = Path("demo_results"),
    surface: Surface = "gravel",
    training_steps: int = 250,
    diffusion: DiffusionConfig = DEFAULT_DIFFUSION,
    seed: int = 0,
    accelerator: str = "cpu",
) -> None:
    """Train, test and export on photographs that come with the package's dependencies, offline.

    Args:
        output (Path): Folder for data, results and figures.
        surface (Surface): Photograph that is cut into tiles.
        training_steps (int): Length of the detector's schedule.
        diffusion (DiffusionConfig): Training of the DDPM.
        seed (int): Seed of data and detector.
        accelerator (str): Accelerator of the Trainer.

    Raises:
        ImportError: If the extras of the demo are not installed.
    """
    console = Console()
    output.mkdir(parents=True, exist_ok=True)
    write_data(output / "data", surface, seed)
    arguments: dict[str, Any] = {
        "teacher_weights": str(embedded_teacher_weights(output / "teacher.safetensors")),
        "training_steps": training_steps,
        "diffusion": diffusion,
    }
    results: dict[str, dict[str, float]] = {}
    console.rule("Baseline: the same training, defect textures taken from the image itself")
    _, _, _, results["self_texture"] = train(output, "self_texture", seed, accelerator, **arguments)
    console.rule("DdpmSt: defect textures sampled from the perturbed DDPM")
    engine, model, data, results["diffusion"] = train(output, "diffusion", seed, accelerator, **arguments)

    save_anomaly_maps(output, model, data)
    save_synthetic_sheet(output, cast("Path", model.bank_dir), seed)

    exported = engine.export(model, ExportType.OPENVINO, export_root=output, onnx_kwargs={"opset_version": 18})
    image_path = min((output / "data" / "test" / "defect").glob("*.png"))
    prediction = OpenVINOInferencer(cast("Path", exported), device="CPU").predict(str(image_path))

    console.print(_results_table(f"Held-out {surface} tiles with drawn defects, in percent, seed {seed}", results))
    score = float(np.asarray(prediction.pred_score).reshape(-1)[0])
    label = "defective" if bool(np.asarray(prediction.pred_label).reshape(-1)[0]) else "normal"
    console.print(f"OpenVINO on {image_path.name}: score {score:.3f}, {label}. Model: {exported}")
    console.print(f"Figures in {output}: {', '.join(path.name for path in sorted(output.glob('*.png')))}.")
    (output / "metrics.json").write_text(json.dumps(results, indent=2), encoding="utf-8")


def train(
    output: Path,
    source: Source,
    seed: int,
    accelerator: str,
    **model_arguments: Any,  # noqa: ANN401
) -> tuple[Engine, DdpmSt, Folder, dict[str, float]]:
    """Train and test one detector.

    Args:
        output (Path): Folder of the demo.
        source (Source): Source of the defect textures.
        seed (int): Seed of training.
        accelerator (str): Accelerator of the Trainer.
        **model_arguments: Further arguments of :class:`DdpmSt`.

    Returns:
        tuple[Engine, DdpmSt, Folder, dict[str, float]]: Engine, model, datamodule and test metrics.
    """
    seed_everything(seed, verbose=False)
    data = datamodule(output / "data", seed)
    model = DdpmSt(
        BACKBONE,
        LAYERS,
        bank={"size": BANK_SIZE},
        defects={"source": source},
        cache_dir=str(output / "cache"),
        pre_processor=DdpmSt.configure_pre_processor((TILE, TILE)),
        visualizer=False,
        **model_arguments,
    )
    engine = Engine(
        default_root_dir=output / source,
        accelerator=accelerator,
        devices=1,
        logger=False,
        enable_model_summary=False,
    )
    metrics = engine.train(model, datamodule=data)[0]
    return engine, model, data, dict(metrics)


@torch.no_grad()
def save_anomaly_maps(output: Path, model: DdpmSt, data: Folder) -> None:
    """Save the anomaly maps of some test tiles and the histogram of all image scores.

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
        title="Held-out tiles with drawn defects",
    )
    labels = torch.tensor([bool(item.gt_label) for item in test])
    save_score_histogram(output / "score_histogram.png", prediction.pred_score.flatten(), labels)


def save_synthetic_sheet(output: Path, bank_dir: Path, seed: int) -> None:
    """Save normal tiles, the same tiles with synthetic defects, and the masks.

    Args:
        output (Path): Folder of the demo.
        bank_dir (Path): Folder of the texture bank.
        seed (int): Seed of the defects.
    """
    paths = sorted((output / "data" / "train" / "good").glob("*.png"))[: 4 * SHEET_ROWS : 4]
    images = torch.stack([read_tensor(str(path), ImageReadMode.RGB) for path in paths]).float() / 255
    defects = DefectConfig(source="diffusion", probability=1.0)
    generator = DiffusionAnomalyGenerator(bank_dir, defects, torch.Generator().manual_seed(seed))
    synthetic, masks = generator(images)
    columns = {"normal": list(images), "synthetic": list(synthetic), "mask": list(masks)}
    save_contact_sheet(output / "contact_sheet.png", columns, title="Defects with textures of the perturbed DDPM")


def _results_table(title: str, results: dict[str, dict[str, float]]) -> Table:
    """Test metrics in percent, one column per source of the defect textures."""
    table = Table(title=title)
    table.add_column("metric")
    for source in results:
        table.add_column(source, justify="right")
    for metric in results["diffusion"]:
        table.add_row(metric, *(f"{100 * result[metric]:.1f}" for result in results.values()))
    return table
