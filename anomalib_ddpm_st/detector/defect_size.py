# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Pre-processor whose input size follows from the smallest defect that matters."""

from typing import Any

from anomalib.data import AnomalibDataModule
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from anomalib_ddpm_st.core.images import NormalImages
from anomalib_ddpm_st.core.input_size import MAX_COST, InputSize, budget_pixels, choose_input_size, defect_pixels
from anomalib_ddpm_st.core.timing import describe_duration

from .components import make_pre_processor
from .torch_model import DdpmStModel


class DefectSizePreProcessor(PreProcessor):
    """Resizes images so that the smallest defect that matters is large enough to be found.

    The size is chosen once, when the normal images of the training set are known, see
    :func:`~anomalib_ddpm_st.choose_input_size`. Checkpoints and exported models hold the chosen size.

    Args:
        smallest_defect (float): Longer side of the smallest defect that matters, in pixels of the original images, or
            in mm with ``pixel_size``.
        pixel_size (float | None): Side of a pixel of the original images in mm. Defaults to ``None``.
        max_cost (float): Largest number of pixels of the input, in units of 256 x 256; the durations of training and
            prediction are about in proportion. Defaults to ``4.0``.

    Attributes:
        input_size (InputSize | None): Chosen size. ``None`` before it is chosen, and if a checkpoint provided it.

    Raises:
        ValueError: If a setting is not above 0.

    Example:
        >>> from anomalib_ddpm_st import DdpmSt, DefectSizePreProcessor
        >>> model = DdpmSt(pre_processor=DefectSizePreProcessor(smallest_defect=12))
    """

    def __init__(
        self,
        smallest_defect: float,
        pixel_size: float | None = None,
        max_cost: float = MAX_COST,
    ) -> None:
        super().__init__()
        defect_pixels(smallest_defect, pixel_size)
        self.smallest_defect = smallest_defect
        self.pixel_size = pixel_size
        self.max_pixels = budget_pixels(max_cost)
        self.input_size: InputSize | None = None

    def choose(self, datamodule: AnomalibDataModule) -> None:
        """Choose the size by the normal images of a training set, unless it is known.

        Args:
            datamodule (AnomalibDataModule): Datamodule that is set up for a Trainer.

        Raises:
            ValueError: If there are no images, an image cannot be read, the defect is larger than the images, or
                ``max_cost`` is too small.
        """
        if self.transform is not None:
            return
        # Not by durations, which differ from one run to the next: a resumed training must see images of the same size.
        sizes = NormalImages.from_datamodule(datamodule).shown_sizes()
        self.input_size = choose_input_size(sizes, self.smallest_defect, self.pixel_size, self.max_pixels)
        made = make_pre_processor(self.input_size.image_size)
        self.transform, self.export_transform = made.transform, made.export_transform
        # The datamodule resizes, too.
        datamodule.setup(TrainerFn.FITTING)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the size for a test or a prediction, or in another process than the one that prepares the training.

        Args:
            trainer (Trainer): Trainer.
            pl_module (LightningModule): Model.
            stage (str): ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.

        Raises:
            TypeError: If the model is not a :class:`DdpmSt`, or training has no datamodule.
        """
        if not isinstance(getattr(pl_module.model, "_orig_mod", pl_module.model), DdpmStModel):
            name = type(pl_module).__name__
            msg = (
                f"DefectSizePreProcessor does not normalise images, as {name} needs it: use "
                f"{name}.configure_pre_processor with the size that 'anomalib-ddpm-st size' prints."
            )
            raise TypeError(msg)
        del stage
        datamodule = getattr(trainer, "datamodule", None)
        if self.transform is not None or (not isinstance(datamodule, AnomalibDataModule) and trainer.ckpt_path):
            return
        if not isinstance(datamodule, AnomalibDataModule):
            msg = (
                "DefectSizePreProcessor chooses the input size by the normal images of a datamodule: pass one, or load "
                "a trained model."
            )
            raise TypeError(msg)
        self.choose(datamodule)

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Take the size from a checkpoint.

        Args:
            config (dict[str, Any]): Configuration, as anomalib saves it.

        Raises:
            ValueError: If another size has been chosen.
        """
        if self.input_size is not None and config != self.checkpoint_config():
            msg = (
                f"The checkpoint was trained at another input size than the {self.input_size} pixels that the "
                "training images now ask for: replace DefectSizePreProcessor by a Resize to the size of the checkpoint."
            )
            raise ValueError(msg)
        super().load_checkpoint_config(config)


def describe_choice(size: InputSize, milliseconds: float, minutes: float | None = None) -> str:
    """Describe a chosen size and its cost in one line.

    Args:
        size (InputSize): Size.
        milliseconds (float): Duration of the prediction of one image on this machine.
        minutes (float | None): Duration of a training on this machine. ``None`` leaves it out. Defaults to ``None``.

    Returns:
        str: Line.
    """
    # Not as 1.2e+03.
    prediction = f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.3g} ms"
    cost = f"an image takes {prediction}"
    if minutes is not None:
        cost = f"training takes {describe_duration(60 * minutes)} and an image {prediction}"
    return f"Input size {size} pixels: {size.reason}. On this machine, {cost}."
