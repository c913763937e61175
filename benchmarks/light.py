# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""How much a change of light costs: the same models on test images as they are and in another light.

Example:
    python benchmarks/light.py --categories bottle screw magnetic_tile --models Patchcore Stfpm --max-epochs 100
    python benchmarks/light.py --categories bottle screw magnetic_tile --weights-dir WEIGHTS

Each model is trained on the images as they are and measured twice. Exposure, gamma, a linear and a spot gradient are
drawn for each test image, the same for all models (:func:`anomalib_ddpm_st.detector.augmentation.change_light`; with
other draws it fills the memory bank of DdpmSt). ``false_alarms`` is the share of good test images, in percent, whose
score is above the score that 90 % of the good ones in the original light are below.
DdpmSt can take trained weights of ``benchmarks/curve.py`` from ``--weights-dir``, of the last step that there is.
"""

import itertools
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from accuracy import with_canonical_pose
from anomalib.data import MVTecAD
from anomalib.models import AnomalibModule, get_model
from anomalib.pre_processing import PreProcessor
from common import (
    append_row,
    commit,
    ddpm_st_arguments,
    has_row,
    make_mvtec,
    make_parser,
    make_training_engine,
    measure,
    raw_evaluator,
)
from curve import load_snapshot
from lightning.pytorch import Callback, seed_everything
from torchvision.transforms.v2 import Compose, Transform

from anomalib_ddpm_st import DdpmSt
from anomalib_ddpm_st.core.transforms import flatten_transform
from anomalib_ddpm_st.detector.augmentation import change_light

logger = logging.getLogger(__name__)

CLEAN_QUANTILE = 0.9
LIGHTS = ("original", "changed")


class ChangedLight(Transform):
    """Draws another light for each image of a batch.

    Args:
        seed (int): Seed of the light.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, images: torch.Tensor, *others: Any) -> Any:  # noqa: ANN401
        """Change the light of images of shape ``(B, 3, H, W)`` with values in [0, 1]; masks stay as they are."""
        changed = change_light(images, self.generator)
        return (changed, *others) if others else changed


class GoodScores(Callback):
    """Keeps the scores of good test images."""

    def __init__(self) -> None:
        self.values = torch.empty(0)

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:  # noqa: ANN401
        """Keep the scores of a batch."""
        del trainer, pl_module, args
        good = ~outputs.gt_label.bool().flatten()
        self.values = torch.cat([self.values, outputs.pred_score.flatten()[good].float().cpu()])


def measure_lights(model: AnomalibModule, datamodule: MVTecAD, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Measure a trained model in both lights.

    Args:
        model (AnomalibModule): Model without post-processor.
        datamodule (MVTecAD): Data.
        seed (int): Seed of the light.
        folder (Path): Folder for what the engine writes.

    Returns:
        dict[str, dict[str, float]]: Metrics in percent for each of ``LIGHTS``.
    """
    original = model.pre_processor
    results: dict[str, dict[str, float]] = {}
    limit = torch.inf
    for light in LIGHTS:
        if light != LIGHTS[0]:
            steps = flatten_transform(original.transform)
            model.pre_processor = PreProcessor(transform=Compose([ChangedLight(seed), *steps]))
        scores = GoodScores()
        figures = measure(model, datamodule, verbose=False, default_root_dir=folder, callbacks=[scores])
        if light == LIGHTS[0]:
            limit = float(scores.values.quantile(CLEAN_QUANTILE))
        results[light] = {**figures, "false_alarms": round(100 * float((scores.values > limit).float().mean()), 1)}
    model.pre_processor = original
    return results


def main() -> None:
    """Write one row for each model, category, seed and light."""
    parser = make_parser(__doc__, ["bottle", "screw", "magnetic_tile"], "benchmarks/results/light.csv")
    parser.add_argument("--models", nargs="+", default=[DdpmSt.__name__], help="Names for anomalib's get_model.")
    parser.add_argument("--model-arguments", type=dict, default={}, help="Further init arguments of models, as JSON.")
    parser.add_argument("--max-epochs", type=int | None, default=None, help="For models without a schedule.")
    parser.add_argument("--canonical-pose", type=bool, default=False, help="Turn parts first, for other models.")
    parser.add_argument("--weights-dir", type=Path | None, default=None, help="Trained weights of DdpmSt.")
    parser.add_argument("--cache-dir", type=str | None, default=None, help="Cache of DDPMs and banks.")
    options = parser.parse_args()
    for name, category, seed in itertools.product(options.models, options.categories, options.seeds):
        label = f"{name}, canonical pose" if options.canonical_pose else name
        key = {"model": label, "category": category, "seed": seed}
        if has_row(options.output, **key):
            continue
        seed_everything(seed, verbose=False)
        datamodule = make_mvtec(options.data_root, category)
        with tempfile.TemporaryDirectory() as work_dir:
            arguments = dict(options.model_arguments)
            if name == DdpmSt.__name__:
                arguments = ddpm_st_arguments(options.teacher_weights, options.cache_dir, work_dir, arguments)
            model = get_model(name, evaluator=raw_evaluator(), post_processor=False, visualizer=False, **arguments)
            if options.canonical_pose:
                model.pre_processor = with_canonical_pose(model.pre_processor)
            if isinstance(model, DdpmSt) and options.weights_dir is not None:
                files = (options.weights_dir / f"{category}-{seed}").glob("step*.pt")
                datamodule.setup()
                load_snapshot(model, max(files, key=lambda path: int(path.stem[4:])), datamodule, seed)
            else:
                bounds = {} if options.max_epochs is None else {"max_epochs": options.max_epochs}
                engine = make_training_engine(options.precision, default_root_dir=work_dir, **bounds)
                engine.fit(model, datamodule=datamodule)
            results = measure_lights(model, datamodule, seed, Path(work_dir))
        for light, figures in results.items():
            append_row(options.output, {**key, "commit": commit(), "light": light, **figures})
        logger.warning("%s on %s, seed %d: %s", label, category, seed, results)


if __name__ == "__main__":
    main()
