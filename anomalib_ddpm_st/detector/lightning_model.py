# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""DdpmSt: diffusion-made defects and an asymmetric student-teacher detector (arXiv:2604.19240)."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, get_args

import torch
from anomalib import LearningType
from anomalib.data import AnomalibDataModule, Batch
from anomalib.metrics import Evaluator
from anomalib.models import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRSchedulerConfig
from torch import nn
from torch.utils.data import Dataset

from anomalib_ddpm_st.core.compiled import match_compiled
from anomalib_ddpm_st.core.config import as_config, check_choice, check_integer, check_positive
from anomalib_ddpm_st.core.geometry import flip_rotate
from anomalib_ddpm_st.core.images import NormalImages
from anomalib_ddpm_st.core.optimization import allow_other_length, one_cycle_adamw
from anomalib_ddpm_st.diffusion import DiffusionConfig
from anomalib_ddpm_st.synthesis import BankConfig, DefectConfig, DiffusionAnomalyGenerator

from .augmentation import MAX_REFERENCES, Augmentation, jitter_pair
from .components import make_evaluator, make_pre_processor, refuse_normalize
from .earlier_weights import upgrade_weights
from .export import ExportMixin
from .loss import DdpmStLoss
from .memory_bank import DEFAULT_SIZE
from .normal_reference import NormalReference
from .pose_selection import PoseOption
from .post_processing import ConformalPostProcessor
from .preparation import PreparationMixin
from .torch_model import DEFAULT_TOP_K, DdpmStModel, build_model
from .training_run import TrainingRun

GRADIENT_CLIP_NORM = 1.0
# Fraction of the schedule in which the learning rate rises.
WARM_UP = 0.1


class DdpmSt(PreparationMixin, ExportMixin, AnomalibModule):
    """Detector trained on defects that a perturbed DDPM of normal images makes.

    Three stages run in one ``Engine.fit``: a DDPM learns the normal images, its perturbed sampling fills a bank of
    defect textures (both are cached and reused), and an asymmetric student-teacher network with a segmentation head
    learns to find the defects. Only the last stage is part of checkpoints and exported models.

    Args:
        backbone (str): Name of the timm model that serves as teacher: a CNN, or a vision transformer that takes images
            of any size. Defaults to ``"resnet18"``.
        layers (list[str] | None): Layers whose features are compared, from fine to coarse. ``None`` takes the last ones
            at 1/4, 1/8 and 1/16 of the resolution, ``layer1`` to ``layer3`` of a ResNet, or of a vision transformer
            the blocks after a quarter, a half and three quarters of its depth. Defaults to ``None``.
        teacher_weights (str | None): Local file (.pth or .safetensors) with the weights of the backbone. ``None``
            downloads them from timm's hub when training starts. Defaults to ``None``.
        pre_trained (bool): Use pre-trained weights; ``False`` leaves the teacher random, for tests.
            Defaults to ``True``.
        diffusion (DiffusionConfig | dict | None): Training of the DDPM (stage 1). Defaults to ``None``, the defaults of
            :class:`~anomalib_ddpm_st.DiffusionConfig`.
        bank (BankConfig | dict | None): Sampling of the bank of defect textures (stage 2). Defaults to ``None``, the
            defaults of :class:`~anomalib_ddpm_st.BankConfig`.
        defects (DefectConfig | dict | None): Defects in the training images of the detector (stage 3). Defaults to
            ``None``, the defaults of :class:`~anomalib_ddpm_st.DefectConfig`.
        diffusion_path (str | None): Folder of a trained DDPM (``anomalib-ddpm-st diffusion``). ``None`` trains one.
            Defaults to ``None``.
        cache_dir (str | None): Folder for trained DDPMs and texture banks. ``None`` takes the user's cache folder.
            Defaults to ``None``.
        pose (PoseOption): ``"auto"`` turns parts that lie in different poses on a plain background to one pose, if the
            normal images show that it helps; ``"off"`` takes images as they are. Anomaly maps are turned back.
            Defaults to ``"auto"``.
        augmentation (Augmentation): Flips and quarter turns of training images. ``"auto"`` finds out from fewer than
            100 normal images which of them still look normal, and uses none with 100 or more, which show the poses of
            the part themselves; ``"flips_and_turns"``, ``"flips"`` and ``"none"`` override this.
            Defaults to ``"auto"``.
        training_steps (int): Length of the detector's schedule, however few images there are. A smaller ``max_epochs``
            (other than Lightning's default of 1000) or ``max_steps`` of the Trainer ends it sooner.
            Defaults to ``3000``.
        learning_rate (float): Peak learning rate. Defaults to ``4e-3``.
        memory_size (int): Number of normal features of each level in the memory bank. More of them slow down inference.
            Defaults to ``1024``.
        top_k (int): Number of pixels whose mean is the score of a component; smaller images need fewer.
            Defaults to ``100``.
        pre_processor (PreProcessor | bool, optional): Pre-processor or flag to use the default, a resize to 256 x 256
            pixels. :class:`DefectSizePreProcessor` chooses the size by the smallest defect that matters. It must not
            normalise: the teacher does, by the statistics of its backbone. Defaults to ``True``.
        post_processor (PostProcessor | bool, optional): Post-processor or flag to use the default,
            :class:`ConformalPostProcessor`, which keeps a false-alarm rate if there are only good images.
            Defaults to ``True``.
        evaluator (Evaluator | bool, optional): Evaluator or flag to use the default. Defaults to ``True``.
        visualizer (Visualizer | bool, optional): Visualizer or flag to use the default. Defaults to ``True``.

    Raises:
        FileNotFoundError: If the file ``teacher_weights`` does not exist.
        ValueError: If the backbone is unknown or cannot serve, weights do not fit, a setting is out of its range or the
            pre-processor normalises.

    Example:
        >>> from anomalib.data import MVTecAD
        >>> from anomalib.engine import Engine
        >>> from anomalib_ddpm_st import DdpmSt
        >>> model = DdpmSt(diffusion={"training_steps": 500}, bank={"size": 128}, training_steps=1000)
        >>> Engine().train(model, datamodule=MVTecAD(category="bottle"))  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        layers: list[str] | None = None,
        teacher_weights: str | None = None,
        pre_trained: bool = True,
        diffusion: DiffusionConfig | dict | None = None,
        bank: BankConfig | dict | None = None,
        defects: DefectConfig | dict | None = None,
        diffusion_path: str | None = None,
        cache_dir: str | None = None,
        pose: PoseOption = "auto",
        augmentation: Augmentation = "auto",
        training_steps: int = 3000,
        learning_rate: float = 4e-3,
        memory_size: int = DEFAULT_SIZE,
        top_k: int = DEFAULT_TOP_K,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        super().__init__(
            pre_processor=pre_processor, post_processor=post_processor, evaluator=evaluator, visualizer=visualizer
        )
        refuse_normalize(self.pre_processor)
        # Settings are checked now, not after stage 1.
        self.diffusion = as_config(DiffusionConfig, diffusion)
        self.bank = as_config(BankConfig, bank)
        self.defects = as_config(DefectConfig, defects)
        # Checkpoints hold plain data alone.
        self.hparams.update({name: asdict(getattr(self, name)) for name in ("diffusion", "bank", "defects")})
        check_choice("pose", pose, get_args(PoseOption))
        check_choice("augmentation", augmentation, get_args(Augmentation))
        check_integer("training_steps", training_steps, 1)
        check_positive("learning_rate", learning_rate)
        self.pre_trained = pre_trained
        self.diffusion_path = diffusion_path
        self.cache_dir = cache_dir
        self.pose: PoseOption = pose
        self.augmentation: Augmentation = augmentation
        self.training_steps = training_steps
        self.learning_rate = learning_rate

        self.model: DdpmStModel = build_model(backbone, layers or None, memory_size, top_k)
        if teacher_weights is not None:
            self.model.teacher.load_weights(teacher_weights)
        self.loss: DdpmStLoss = DdpmStLoss()
        self.generator: DiffusionAnomalyGenerator | None = None
        self.reference: NormalReference | None = None
        self.stage_seconds: dict[str, float] = {}
        self.diffusion_dir: Path | None = None
        self.bank_dir: Path | None = None
        # Set by our command line: identifies the settings of a run that was interrupted.
        self.fingerprint: str | None = None
        self._train_start = 0.0
        self._last_step = training_steps

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> "DdpmSt":  # type: ignore[override]  # noqa: ANN401
        """Load a trained model; it holds the weights of the teacher, so no weight file or download is needed.

        Args:
            checkpoint_path (str | Path): Path of the checkpoint.
            *args: Further arguments of ``AnomalibModule.load_from_checkpoint``.
            **kwargs: Further arguments, and init arguments to replace.

        Returns:
            DdpmSt: Model with the weights of the checkpoint.
        """
        kwargs.setdefault("teacher_weights", None)
        return cast("DdpmSt", super().load_from_checkpoint(checkpoint_path, *args, **kwargs))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the weights of a compiled model into a plain one and the other way round, and let schedules change."""
        super().on_load_checkpoint(checkpoint)
        own = self.state_dict()
        checkpoint["state_dict"] = upgrade_weights(match_compiled(checkpoint["state_dict"], own), own)
        allow_other_length(checkpoint)

    def configure_callbacks(self) -> list[Callback]:
        """Callbacks of anomalib's components, and the one that runs the schedule."""
        run = TrainingRun()
        if self._trainer is not None:
            run.attach(self.trainer)
        return [*cast("list[Callback]", super().configure_callbacks()), run]

    # ---------------------------------------------------------------------------------------------------------------
    # Stage 3

    def setup(self, stage: str) -> None:
        """Download the weights of the teacher, if neither a file nor a checkpoint provided them.

        Args:
            stage (str): ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.

        Raises:
            ConnectionError: If the weights could not be downloaded.
        """
        if stage == "fit":
            if self.pre_trained and not bool(self.model.teacher.has_weights):
                self.model.teacher.load_weights()
            self.model.to(memory_format=torch.channels_last)
            # Lightning keeps the mode of each module: the teacher must be put into its own.
            self.model.train()

    def on_train_start(self) -> None:
        """Make the generator of defects for the training set, and fill the memory bank."""
        images = (self._data or self._find_data()).images
        self._data = None
        self.generator = DiffusionAnomalyGenerator(self.bank_dir, self.defects)
        pixels = None if images is None else images.load(MAX_REFERENCES)
        self.item_size = next(iter(images.item_sizes)) if images is not None and len(images.item_sizes) == 1 else None
        self.reference = NormalReference(self.model, pixels, self.augmentation)
        self.generator.parts_lie_alike = self.reference.parts_lie_alike
        start = time.perf_counter()
        memory_bank = self.model.memory_bank
        # A resumed training has its own already.
        if memory_bank is None or not (memory_bank.is_filled and self.trainer.ckpt_path is not None):
            self.reference.fill_memory_bank(pixels)
        self.stage_seconds["memory"] = time.perf_counter() - start
        self._train_start = time.perf_counter()

    def calibrate_scores(self, data: AnomalibDataModule | Dataset, renew_memory: bool = False) -> None:
        """Calibrate the scores by the normal images of a training set, as training does when it ends.

        Scores are calibrated whenever training validates and when it ends, not at every step; weights that were saved
        in between need this. With a new memory bank a trained model also accepts other good parts as normal.

        Args:
            data (AnomalibDataModule | Dataset): Datamodule that is set up, or a training set of anomalib.
            renew_memory (bool): First replace the features in the memory bank by those of these images.
                Defaults to ``False``.

        Raises:
            TypeError: If the dataset does not list its images.
        """
        if isinstance(data, AnomalibDataModule):
            images = NormalImages.from_datamodule(data, self.pre_processor)
        else:
            images = NormalImages.from_dataset(data, self.pre_processor)
        pixels = images.turn(self.model.pose).load(MAX_REFERENCES)
        reference = NormalReference(self.model, pixels, self.augmentation)
        if renew_memory:
            reference.fill_memory_bank(pixels)
        reference.calibrate_scores()
        if isinstance(self.post_processor, ConformalPostProcessor) and self.post_processor.from_good_images:
            self.post_processor.use_good_images(reference.normal_scores, reference.num_known, None)

    def on_validation_start(self) -> None:
        """Calibrate the scores in training: the thresholds and checkpoints of this validation depend on them."""
        if self.trainer.state.fn == TrainerFn.FITTING and self.reference is not None:
            self.reference.calibrate_scores(self.trainer.global_step)

    def on_train_end(self) -> None:
        """Record the duration of the stage; :class:`TrainingRun` has calibrated the scores."""
        self.reference = None
        self.stage_seconds["detector"] = time.perf_counter() - self._train_start

    def training_step(self, batch: Batch, *args: object, **kwargs: object) -> STEP_OUTPUT:
        """Put defects into a batch of normal images of shape ``(B, 3, H, W)`` and compute the joint loss."""
        del args, kwargs
        images = self.model.align(cast("torch.Tensor", batch.image))
        augmented, masks = cast("DiffusionAnomalyGenerator", self.generator)(images)
        symmetries = cast("NormalReference", self.reference).symmetries.to(images.device)
        elements = symmetries[torch.randint(len(symmetries), (len(images),), device=images.device)]
        # Rotated together once the defects are in: textures of the bank belong to unrotated images.
        images, augmented, masks = (flip_rotate(part, elements) for part in (images, augmented, masks))
        images, augmented, masks = jitter_pair(images, augmented, masks)
        teacher, student, logits = self.model(augmented, images)
        loss = self.loss(teacher, student, logits, masks)
        self.log("train_loss", loss, on_epoch=True, prog_bar=True, batch_size=len(images))
        return {"loss": loss}

    def validation_step(self, batch: Batch, *args: object, **kwargs: object) -> STEP_OUTPUT:
        """Add scores and anomaly maps to a batch with images of shape ``(B, 3, H, W)`` and values in [0, 1]."""
        del args, kwargs
        return batch.update(**self.model(batch.image)._asdict())

    def on_train_batch_end(self, *args: object, **kwargs: object) -> None:
        """End training when the schedule is complete, or as much of it as the Trainer allows; it validates then."""
        del args, kwargs
        if self.trainer.global_step >= self._last_step:
            self.trainer.should_stop = True
        if self.trainer.should_stop:  # also by a signal or a timer
            # An interval in epochs would leave out this last validation.
            self.trainer.check_val_every_n_epoch = None

    def teardown(self, stage: str) -> None:
        """Release the textures after training: they are not part of the model."""
        if stage == TrainerFn.FITTING:
            self.generator = self.reference = self._data = None

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of gradients to 1, unless the Trainer is given another bound.

        Args:
            optimizer (torch.optim.Optimizer): Optimiser.
            gradient_clip_val (float | None): Bound given to the Trainer.
            gradient_clip_algorithm (str | None): Algorithm given to the Trainer.
        """
        if gradient_clip_val is None:
            gradient_clip_val = GRADIENT_CLIP_NORM
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm or "norm")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with a one-cycle schedule over the steps that training will really take.

        Returns:
            OptimizerLRSchedulerConfig: Optimiser and scheduler, as Lightning takes them.
        """
        self._last_step = int(min(self.training_steps, self.trainer.estimated_stepping_batches))
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return one_cycle_adamw(trained, self.learning_rate, self._last_step, warm_up=WARM_UP)

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments of the Trainer.

        ``max_epochs`` is left to the user: these arguments replace those that the user passes.

        Returns:
            dict[str, Any]: No sanity check of the validation, which would delay the start of stage 1.
        """
        return {"num_sanity_val_steps": 0}

    @property
    def learning_type(self) -> LearningType:
        """Learning type.

        Returns:
            LearningType: One class, normal images only.
        """
        return LearningType.ONE_CLASS

    @staticmethod
    def configure_pre_processor(
        image_size: tuple[int, int] | None = None,
        center_crop_size: tuple[int, int] | None = None,
    ) -> PreProcessor:
        """Default pre-processor, see :func:`make_pre_processor`."""
        return make_pre_processor(image_size, center_crop_size)

    def configure_post_processor(self) -> PostProcessor:
        """Default post-processor, see :class:`ConformalPostProcessor`."""
        return ConformalPostProcessor()

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Default evaluator, see :func:`make_evaluator`."""
        return make_evaluator()
