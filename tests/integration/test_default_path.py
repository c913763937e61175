# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""The default path gives the recorded losses, maps and defects.

``recorded/default_path.json`` names commit and machine. On the same processor and version of torch values are equal to
the last bit; other processors round differently. Change them only together with the method, never to make a refactoring
pass: ``RECORD_DEFAULT_PATH=1 pytest tests/integration/test_default_path.py`` records them again.
"""

import hashlib
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.data.utils import ValSplitMode
from anomalib.engine import Engine
from lightning.pytorch import Callback, seed_everything

from anomalib_ddpm_st import DdpmSt, DefectConfig, DiffusionAnomalyGenerator, TextureBank
from anomalib_ddpm_st.synthesis.config import Source

FILE = Path(__file__).parent / "recorded" / "default_path.json"
RECORDED = json.loads(FILE.read_text(encoding="utf-8"))
SIZE = (64, 64)
STEPS = 8


def machine() -> str:
    """Processor and version of torch."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith(("model name", "model\t", "stepping"))]
    return f"{' '.join(names[:3]) or platform.machine()}, torch {torch.__version__}"


def commit() -> str:
    """Commit that is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=FILE.parent, capture_output=True, text=True, check=True).stdout.strip()


class Losses(Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:  # noqa: ANN401
        """Keep the loss."""
        del trainer, pl_module, args
        self.values.append(outputs["loss"].item())


def check(name: str, values: torch.Tensor, rel: float) -> None:
    """Compare a tensor with what was recorded of it: all of its bits on the same machine, else some of its values."""
    flat = values.detach().double().flatten()
    some = flat[:: max(1, len(flat) // 16)][:16]
    digest = hashlib.sha256(values.detach().contiguous().numpy().tobytes()).hexdigest()
    if os.environ.get("RECORD_DEFAULT_PATH"):
        RECORDED.update({"commit": commit(), "machine": machine()})
        RECORDED[name] = {"values": some.tolist(), "mean": flat.mean().item(), "sha256": digest}
        FILE.write_text(json.dumps(RECORDED, indent=1) + "\n", encoding="utf-8")
    expected = RECORDED[name]
    assert some.tolist() == pytest.approx(expected["values"], rel=rel, abs=rel)
    assert flat.mean().item() == pytest.approx(expected["mean"], rel=rel)
    if machine() == RECORDED["machine"]:
        assert digest == expected["sha256"]


@pytest.mark.usefixtures("one_thread")
def test_default_path(mvtec_root: Path, tmp_path: Path) -> None:
    """All three stages with default settings but for their length."""
    seed_everything(1, verbose=False)
    model = DdpmSt(
        pre_trained=False,
        diffusion={"training_steps": 3},
        bank={"size": 6},
        cache_dir=str(tmp_path / "cache"),
        training_steps=STEPS,
        memory_size=64,
        pre_processor=DdpmSt.configure_pre_processor(SIZE),
        visualizer=False,
    )
    data = MVTecAD(
        root=mvtec_root,
        category="gravel",
        train_batch_size=3,
        eval_batch_size=2,
        num_workers=0,
        val_split_mode=ValSplitMode.NONE,
    )
    losses = Losses()
    engine = Engine(
        default_root_dir=tmp_path,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[losses],
        limit_val_batches=0,
        max_epochs=-1,
    )
    engine.fit(model, datamodule=data)
    assert len(losses.values) == STEPS
    check("losses", torch.tensor(losses.values), rel=1e-3)

    bank = TextureBank.load(model.bank_dir)
    check("bank", bank.textures, rel=1e-2)
    model.eval().cpu()
    images = torch.stack([data.test_data[index].image for index in range(len(data.test_data))])
    with torch.no_grad():
        prediction = model.model(torch.nn.functional.interpolate(images, SIZE))
    check("maps", prediction.anomaly_map, rel=1e-2)
    check("scores", prediction.pred_score, rel=1e-2)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("source", ["diffusion", "mixture", "self_texture"])
def test_defects(source: Source) -> None:
    """Parameters drawn from one seed, and what they make of fixed images."""
    random = torch.Generator().manual_seed(5)
    images = torch.rand(6, 3, 48, 40, generator=random)
    images[3:, :, :8] = images[3:, :, -8:] = images[3:, :, :, :8] = images[3:, :, :, -8:] = 0.9
    bank = TextureBank(
        torch.randint(256, (5, 3, 48, 40), dtype=torch.uint8, generator=random),
        torch.tensor([0, 1, 1, 2, 0]),
        torch.rand(3, 768, generator=random),
    )
    transform = DiffusionAnomalyGenerator(bank, DefectConfig(source, probability=0.75), generator=random)
    for turn in range(3):
        augmented, masks = transform.apply_parameters(images, transform.sample_parameters(images))
        check(f"augmented_{source}_{turn}", augmented, rel=1e-4)
        check(f"masks_{source}_{turn}", masks, rel=1e-4)
