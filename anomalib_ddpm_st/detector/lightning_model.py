# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""DdpmSt: diffusion-made defects and an asymmetric student-teacher detector (arXiv:2604.19240)."""

import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from anomalib import LearningType
from anomalib.data import AnomalibDataModule, Batch
from anomalib.metrics import AUPR, AUPRO, AUROC, Evaluator, F1Score
from anomalib.models import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRSchedulerConfig
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize

from anomalib_ddpm_st.cache import default_cache_dir
from anomalib_ddpm_st.images import evenly, find_transform, load_normal_images
from anomalib_ddpm_st.progress import progress
from anomalib_ddpm_st.synthesis.bank import DEFAULT_DETAIL, DEFAULT_START, DEFAULT_STRENGTH, check_bank_settings
from anomalib_ddpm_st.synthesis.generator import DEFAULT_CONTRAST, SOURCES, DiffusionAnomalyGenerator, Synthesis
from anomalib_ddpm_st.synthesis.preparation import (
    normal_paths,
    prepare_bank,
    prepare_diffusion,
    trainer_arguments_for,
)

from .augmentation import ENOUGH_IMAGES, MAX_REFERENCES, SYMMETRIES, allowed_symmetries, mix, show_surface, turn, vary
from .export import ExportMixin
from .loss import DdpmStLoss
from .memory import NormalMemory
from .torch_model import DEFAULT_MEMORY_SIZE, DEFAULT_MEMORY_WEIGHT, DdpmStModel, EncoderStudent, HeadInput, StudentKind

logger = logging.getLogger(__name__)

Augmentation = Literal["auto", "flips_and_turns", "flips", "none"]
GRADIENT_CLIP_NORM = 1.0
MAX_VARIATION = 3.0
MAX_MIXUP = 0.5
MEMORY_BATCH_SIZE = 16
SCALE_IMAGES = 48


class DdpmSt(ExportMixin, AnomalibModule):
    """Detector trained on defects that a perturbed DDPM of normal images makes.

    Three stages run in one ``Engine.fit``: a DDPM learns the normal images, its perturbed sampling fills a bank of
    defect textures (both kept in a cache and used again), and an asymmetric student-teacher network with a
    segmentation head learns to find the defects. Only the last stage is part of checkpoints and exported models.

    Args:
        backbone (str): Name of the timm CNN that the teacher is. Defaults to ``"resnet18"``.
        layers (list[str] | None): Layers whose features are compared, from fine to coarse. ``None`` takes ``layer1``
            to ``layer3``. Defaults to ``None``.
        teacher_weights (str | None): Local file (.pth or .safetensors) with the weights of the backbone. ``None``
            asks timm's hub when training starts. Defaults to ``None``.
        pre_trained (bool): Use pre-trained weights; ``False`` leaves teacher and student random, for tests.
            Defaults to ``True``.
        synthesis (Synthesis): Where defects come from: ``"diffusion"``, textures of the DDPM; ``"self_texture"``, tiles
            of the image itself in another order, which needs no DDPM; ``"mixture"``, half of each; ``"noise"``, plain
            colours with noise; ``"none"``, no defects. Defaults to ``"mixture"``.
        diffusion_path (str | None): Folder of a trained DDPM (``anomalib-ddpm-st diffusion``). ``None`` trains one.
            Defaults to ``None``.
        cache_dir (str | None): Folder for trained DDPMs and texture banks. ``None`` takes the user's cache folder.
            Defaults to ``None``.
        diffusion_steps (int): Training steps of the DDPM, of eight images each. Defaults to ``1000``.
        bank_size (int): Number of textures in the bank. Defaults to ``256``.
        perturbation (Literal["constant", "scaled"]): Kind of perturbation of the reverse steps.
            Defaults to ``"constant"``.
        strength (list[float] | None): Range of the strength of the perturbation. ``None`` takes ``[0.3, 2.0]``.
            Defaults to ``None``.
        start (list[int] | None): Range of the timestep that normal images are noised to before they are sampled
            again. ``None`` takes ``[200, 600]``. Defaults to ``None``.
        sampling_steps (int): Number of reverse steps of a sample. Defaults to ``10``.
        from_noise (float): Share of textures that are sampled from pure noise instead of a normal image.
            Defaults to ``0.0``.
        inpaint (bool): Perturb within Perlin masks alone while sampling, instead of everywhere. Defaults to ``False``.
        detail (list[float] | None): Range of the share of fine detail that a texture gets back from its normal image.
            ``None`` takes ``[0.0, 1.0]``. Defaults to ``None``.
        contrast (list[float] | None): Range of the largest change that a texture of the bank makes at least, in units
            of the surface's own contrast. ``None`` takes ``[3.0, 16.0]``. Defaults to ``None``.
        contour (float): Share of textures whose masks are shaped by the sampled change. Defaults to ``0.0``.
        local (float): Share of masks that are limited to a small elliptic window. Defaults to ``0.5``.
        filled (float): Share of these windows that are filled, with no Perlin mask. Defaults to ``0.5``.
        soft (float): Share of masks with blurred edges. Defaults to ``0.5``.
        displacement (float): Share of textures that are not blended in place: moved and flipped on objects, rotated and
            enlarged or shrunk on surfaces. Defaults to ``0.5``.
        jitter (float): Share of textures whose contrast and brightness are changed. Defaults to ``0.5``.
        anomaly_probability (float): Share of training images that get a defect. Defaults to ``0.75``.
        blend_factor (list[float] | None): Range of the opacity of textures. ``None`` takes ``[0.5, 1.0]``.
            Defaults to ``None``.
        foreground (Literal["auto", "off"]): Keep defects on an object that lies on a plain background, or put them
            anywhere. Defaults to ``"auto"``.
        augmentation (Augmentation): Flips and quarter turns of training images: ``"auto"`` finds out from fewer than
            100 normal images which of them still look normal, and takes none with 100 or more, which show the poses of
            the part themselves; ``"flips_and_turns"``, ``"flips"`` and ``"none"`` say so. Defaults to ``"auto"``.
        variation (float): Strength of small changes of pose and brightness of training images, ``0`` for none. At 1
            they are within 4 degrees, 6 % of size, 4 % of place, 15 % of contrast and 0.05 of brightness.
            Defaults to ``1.0``.
        mixup (float): Largest share of another normal image that is blended into half of the training images where
            these show a surface, ``0`` for none; objects are not blended. Defaults to ``0.0``.
        training_steps (int): Length of the schedule of the detector. A smaller ``max_epochs`` or ``max_steps`` of the
            Trainer ends it sooner. Defaults to ``6000``.
        learning_rate (float): Peak learning rate. Defaults to ``4e-3``.
        encoder_learning_rate (float): Peak learning rate of the encoder of an ``"encoder"`` student.
            Defaults to ``2e-4``.
        segmentation_weight (float): Weight of the segmentation loss against the cosine loss. Defaults to ``1.0``.
        distance_weight (float): Share of the cosine distance to the student in what of the anomaly map the memory
            leaves; the rest is the segmentation. Defaults to ``0.5``.
        memory_size (int): Number of normal features of each level that the memory holds. Defaults to ``1024``.
        memory_weight (float): Share of the distance to the memory of normal features in the anomaly map; with 0 there
            is no memory. With the default, a third, the three have equal shares.
        top_k (int): Number of pixels whose mean is the score of a component; the score of an image is the mean of
            these, weighted by their shares in the map over their spread among normal images. Defaults to ``100``.
        student (StudentKind): ``"reverse"`` restores the teacher's features of the normal image from its features of
            the defective one, ``"encoder"`` has an encoder of its own, ``"symmetric"`` is a copy of the teacher's
            architecture. Defaults to ``"reverse"``.
        head_input (HeadInput): What the segmentation head sees: the ``"product"`` of the directions of the teacher's
            and the student's features, their cosine ``"distance"``, or ``"both"``. Defaults to ``"product"``.
        pre_processor (PreProcessor | bool, optional): Pre-processor or flag to use the default, a resize to 256 x 256
            pixels. It must not normalise: the teacher does, by the statistics of its backbone. Defaults to ``True``.
        post_processor (PostProcessor | bool, optional): Post-processor or flag to use the default.
            Defaults to ``True``.
        evaluator (Evaluator | bool, optional): Evaluator or flag to use the default. Defaults to ``True``.
        visualizer (Visualizer | bool, optional): Visualizer or flag to use the default. Defaults to ``True``.

    Raises:
        FileNotFoundError: If ``teacher_weights`` names no file.
        ValueError: If the backbone is unknown, weights do not fit, a setting is out of its range or the pre-processor
            normalises.

    Example:
        >>> from anomalib.data import MVTecAD
        >>> from anomalib.engine import Engine
        >>> from anomalib_ddpm_st import DdpmSt
        >>> Engine().train(DdpmSt(), datamodule=MVTecAD(category="bottle"))  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        layers: list[str] | None = None,
        teacher_weights: str | None = None,
        pre_trained: bool = True,
        synthesis: Synthesis = "mixture",
        diffusion_path: str | None = None,
        cache_dir: str | None = None,
        diffusion_steps: int = 1000,
        bank_size: int = 256,
        perturbation: Literal["constant", "scaled"] = "constant",
        strength: list[float] | None = None,
        start: list[int] | None = None,
        sampling_steps: int = 10,
        from_noise: float = 0.0,
        inpaint: bool = False,
        detail: list[float] | None = None,
        contrast: list[float] | None = None,
        contour: float = 0.0,
        local: float = 0.5,
        filled: float = 0.5,
        soft: float = 0.5,
        displacement: float = 0.5,
        jitter: float = 0.5,
        anomaly_probability: float = 0.75,
        blend_factor: list[float] | None = None,
        foreground: Literal["auto", "off"] = "auto",
        augmentation: Augmentation = "auto",
        variation: float = 1.0,
        mixup: float = 0.0,
        training_steps: int = 6000,
        learning_rate: float = 4e-3,
        encoder_learning_rate: float = 2e-4,
        segmentation_weight: float = 1.0,
        distance_weight: float = 0.5,
        memory_size: int = DEFAULT_MEMORY_SIZE,
        memory_weight: float = DEFAULT_MEMORY_WEIGHT,
        top_k: int = 100,
        student: StudentKind = "reverse",
        head_input: HeadInput = "product",
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self._refuse_normalize()
        if synthesis not in get_args(Synthesis):
            msg = f"Unknown synthesis '{synthesis}': choose one of {', '.join(get_args(Synthesis))}."
            raise ValueError(msg)
        self.pre_trained = pre_trained
        self.synthesis = synthesis
        self.diffusion_path = diffusion_path
        self.cache_dir = Path(cache_dir) if cache_dir else default_cache_dir()
        self.diffusion_settings = {"training_steps": diffusion_steps, "seed": 0}
        strength = strength or list(DEFAULT_STRENGTH)
        start = start or list(DEFAULT_START)
        detail = detail or list(DEFAULT_DETAIL)
        self.bank_settings = {
            "size": bank_size,
            "perturbation": perturbation,
            "strength": strength,
            "start": start,
            "num_inference_steps": sampling_steps,
            "from_noise": from_noise,
            "inpaint": inpaint,
            "detail": detail,
        }
        self.generator_settings: dict[str, Any] = {
            "probability": 0.0 if synthesis == "none" else anomaly_probability,
            "sources": SOURCES[synthesis],
            "contrast": list(contrast or DEFAULT_CONTRAST),
            "contour": contour,
            "local": local,
            "filled": filled,
            "soft": soft,
            "displacement": displacement,
            "jitter": jitter,
            "blend_factor": list(blend_factor or (0.5, 1.0)),
            "foreground": foreground,
        }
        # Settings are checked now, not after stage 1.
        check_bank_settings(perturbation, strength, start, from_noise, detail)
        DiffusionAnomalyGenerator(None, **{**self.generator_settings, "sources": None})
        if augmentation not in get_args(Augmentation):
            msg = f"Unknown augmentation '{augmentation}': choose one of {', '.join(get_args(Augmentation))}."
            raise ValueError(msg)
        self.augmentation = augmentation
        if not 0 <= variation <= MAX_VARIATION:
            msg = f"variation must lie in [0, {MAX_VARIATION}], but is {variation}."
            raise ValueError(msg)
        self.variation = variation
        if not 0 <= mixup <= MAX_MIXUP:
            msg = f"mixup must lie in [0, {MAX_MIXUP}], but is {mixup}."
            raise ValueError(msg)
        self.mixup = mixup
        self.symmetries: torch.Tensor | None = None
        self.training_steps = training_steps
        self.learning_rate = learning_rate
        self.encoder_learning_rate = encoder_learning_rate

        self.model: DdpmStModel = DdpmStModel(
            backbone=backbone,
            layers=layers or ("layer1", "layer2", "layer3"),
            top_k=top_k,
            distance_weight=distance_weight,
            memory_size=memory_size,
            memory_weight=memory_weight,
            student=student,
            head_input=head_input,
        )
        if teacher_weights is not None:
            self.model.load_teacher_weights(teacher_weights)
        self.loss: DdpmStLoss = DdpmStLoss(segmentation_weight)
        self.generator: DiffusionAnomalyGenerator | None = None
        self.stage_seconds: dict[str, float] = {}
        self.diffusion_dir: Path | None = None
        self.bank_dir: Path | None = None
        self._train_start = 0.0
        self._scale_images: torch.Tensor | None = None
        self._mixes = False
        self._calibrated_step = -1
        self._last_step = float("inf")

    @property
    def needs_bank(self) -> bool:
        """Whether training needs textures of a DDPM."""
        return "bank" in SOURCES[self.synthesis]

    def _refuse_normalize(self) -> None:
        """Images must reach the model in [0, 1]; normalised twice, training would fail without a word."""
        transform = getattr(self.pre_processor, "transform", None)
        if find_transform(transform, Normalize) is not None:
            msg = (
                "DdpmSt normalises images itself, by the statistics of its backbone: take Normalize out of the "
                "transform of the pre-processor."
            )
            raise ValueError(msg)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args, **kwargs) -> "DdpmSt":  # type: ignore[override]
        """Load a trained model; it holds the weights of the teacher, so no weight file or hub is needed.

        Args:
            checkpoint_path (str | Path): Path of the checkpoint.
            *args: Further arguments of ``AnomalibModule.load_from_checkpoint``.
            **kwargs: Further arguments, and init arguments to replace.

        Returns:
            DdpmSt: Model with the weights of the checkpoint.
        """
        kwargs.setdefault("teacher_weights", None)
        return cast("DdpmSt", super().load_from_checkpoint(checkpoint_path, *args, **kwargs))

    # ---------------------------------------------------------------------------------------------------------------
    # Stages 1 and 2

    def prepare_data(self) -> None:
        """Train the DDPM and fill the bank of textures, where the cache does not hold them yet."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if self.trainer.state.fn != TrainerFn.FITTING or not self.needs_bank:
            return
        if isinstance(datamodule, AnomalibDataModule):
            try:
                datamodule.setup(TrainerFn.FITTING)
            except FileNotFoundError as error:
                msg = f"The images are missing ({error}): check the root and the folders of the datamodule."
                raise FileNotFoundError(msg) from error
            self.bank_dir = self._prepare_bank(datamodule.train_data)

    def _prepare_bank(self, dataset: Dataset) -> Path:
        """Folder of the bank of textures for a training set."""
        samples = getattr(dataset, "samples", None)
        if samples is None:
            msg = (
                "DdpmSt reads its normal images from an anomalib datamodule or dataset, but was given a "
                f"{type(dataset).__name__}: wrap the images in anomalib.data.Folder, or set synthesis='self_texture'."
            )
            raise TypeError(msg)
        images = load_normal_images(normal_paths(samples), self.input_size or (256, 256))
        device = self.trainer.strategy.root_device
        precision = str(self.trainer.precision)
        start = time.perf_counter()
        diffusion_path = self.diffusion_path or prepare_diffusion(
            images,
            self.cache_dir,
            self.diffusion_settings,
            **trainer_arguments_for(device),
            precision=precision,
        )
        self.diffusion_dir = Path(diffusion_path)
        middle = time.perf_counter()
        bank_dir = prepare_bank(
            images,
            diffusion_path,
            self.cache_dir,
            self.bank_settings,
            device,
            mixed_precision=precision == "bf16-mixed",
        )
        self.stage_seconds.update(diffusion=middle - start, bank=time.perf_counter() - middle)
        return bank_dir

    # ---------------------------------------------------------------------------------------------------------------
    # Stage 3

    def setup(self, stage: str) -> None:
        """Load the weights of the teacher from the hub, where neither a file nor a checkpoint gave them.

        Args:
            stage (str): ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.

        Raises:
            ConnectionError: If the weights cannot be had from the hub.
        """
        has_weights = bool(self.model.teacher.has_weights)
        if stage == "fit":
            if self.pre_trained and not has_weights:
                self.model.load_teacher_weights()
            self.model.to(memory_format=torch.channels_last)
            # Lightning keeps the modes it finds: teacher and encoder must be put into theirs.
            self.model.train()

    def on_train_start(self) -> None:
        """Make the generator of defects for the training set, and fill the memory of normal features."""
        dataset = cast("DataLoader", self.trainer.train_dataloader).dataset
        if self.needs_bank and self.bank_dir is None:
            self.bank_dir = self._prepare_bank(dataset)
        self.generator = DiffusionAnomalyGenerator(self.bank_dir, **self.generator_settings)
        images = self._look_at(dataset)
        self._mixes = self.mixup > 0 and self._scale_images is not None and show_surface(self._scale_images)
        start = time.perf_counter()
        memory = self.model.memory
        # A resumed training has its own already.
        if memory is not None and not (memory.is_filled and self.trainer.ckpt_path is not None):
            self._fill_memory(memory, images)
        self.stage_seconds["memory"] = time.perf_counter() - start
        self._train_start = time.perf_counter()

    def _look_at(self, dataset: Dataset) -> torch.Tensor | None:
        """Find out what is normal in a training set: how parts may lie, and images to calibrate the scores with."""
        images = self._reference_images(dataset)
        self.symmetries = self._symmetries(images)
        self._scale_images, self._calibrated_step = None, -1
        if images is not None:
            indices = evenly(len(images), SCALE_IMAGES)
            self._scale_images = images[indices.repeat(math.ceil(SCALE_IMAGES / len(indices)))[:SCALE_IMAGES]]
        return images

    def _reference_images(self, dataset: Dataset) -> torch.Tensor | None:
        """Normal images that show what is normal, ``uint8`` of shape ``(N, 3, H, W)``.

        ``None`` for a dataset without paths.
        """
        samples = getattr(dataset, "samples", None)
        if samples is None:
            return None
        return load_normal_images(normal_paths(samples), self.input_size or (256, 256), MAX_REFERENCES)

    def _symmetries(self, images: torch.Tensor | None) -> torch.Tensor:
        """Flips and quarter turns to train with, boolean of shape ``(A, 3)``."""
        if self.augmentation != "auto":
            allowed = {"none": SYMMETRIES[:1], "flips": SYMMETRIES[:4], "flips_and_turns": SYMMETRIES}
            return torch.tensor(allowed[self.augmentation], dtype=torch.bool, device=self.device)
        if images is None or len(images) >= ENOUGH_IMAGES:
            return torch.tensor(SYMMETRIES[:1], dtype=torch.bool, device=self.device)
        symmetries, distances = allowed_symmetries(images, lambda batch: self._features(batch)[-2:])
        named = ", ".join(f"{distance:.2f}" for distance in distances)
        logger.info("Training with %d of %d flips and turns (distances %s).", len(symmetries), len(SYMMETRIES), named)
        return symmetries.to(self.device)

    def _features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Teacher's features of images of shape ``(B, 3, H, W)`` with values in [0, 1]."""
        return self.model.teacher(self.model.teacher.normalize(images.to(self.device)))

    def _fill_memory(self, memory: NormalMemory, images: torch.Tensor | None) -> None:
        """Fill the memory of normal features."""
        if images is None:
            logger.warning("The memory of normal features stays empty: the training set is no dataset of anomalib's.")
            return
        # Twice as many where images are turned, since then there is more that is normal.
        indices = torch.arange(len(images)).repeat(min(len(self._unseen_poses), 2))
        batches = indices.split(MEMORY_BATCH_SIZE)
        with torch.no_grad():
            memory.fill(
                (self._features(self._posed(images[part])) for part in progress(batches, "Memory of normal features")),
                (self._features(batch) for batch in self._varied_images()),
                len(indices),
            )

    @property
    def _unseen_poses(self) -> torch.Tensor:
        """Flips and quarter turns, the identity first, that new parts may show and the normal images need not.

        ``"auto"`` turns images in training only where the normal images show all these poses anyway. There the memory
        has them as they are: turned by computation, light and threads are not what they are on a turned part.
        """
        symmetries = cast("torch.Tensor", self.symmetries).cpu()
        return symmetries[:1] if self.augmentation == "auto" else symmetries

    def _posed(self, images: torch.Tensor) -> torch.Tensor:
        """Images with values in [0, 1], as new parts may lie, of ``uint8`` images of shape ``(B, 3, H, W)``."""
        poses = self._unseen_poses
        return turn(images.float() / 255, poses[torch.randint(len(poses), (len(images),))])

    def _varied_images(self) -> Iterator[torch.Tensor]:
        """Batches of normal images that differ from those of the training set a little, as new ones would."""
        for images in cast("torch.Tensor", self._scale_images).split(MEMORY_BATCH_SIZE):
            posed = self._posed(images)
            yield vary(posed, posed, posed[:, :1])[0]

    def calibrate_scores(self, dataset: Dataset, renew_memory: bool = False) -> None:
        """Calibrate the scores by the normal images of a training set, as training does when it ends.

        For weights that were kept along the way: scores are calibrated whenever training validates and when it ends,
        not at every step. With a new memory a trained model also takes other good parts for normal.

        Args:
            dataset (Dataset): Training set of an anomalib datamodule.
            renew_memory (bool): Fill the memory with features of these images first, in place of those that it has.
                Defaults to ``False``.

        Raises:
            TypeError: If the dataset has no paths of images.
        """
        images = self._look_at(dataset)
        if images is None:
            msg = f"Scores are calibrated by the images of an anomalib dataset, not of a {type(dataset).__name__}."
            raise TypeError(msg)
        if renew_memory and self.model.memory is not None:
            self._fill_memory(self.model.memory, images)
        self._calibrate()
        self._scale_images = None

    def _calibrate(self) -> None:
        """Calibrate the scores with the weights of now, and leave the random numbers of training as they were."""
        if self._scale_images is None:
            return
        was_training = self.model.training
        self.model.eval()
        with torch.random.fork_rng():
            self.model.calibrate(batch.to(self.device) for batch in self._varied_images())
        self.model.train(was_training)

    def _calibrate_once(self) -> None:
        """Calibrate the scores, if that was not done at this step of training."""
        if self._calibrated_step != self.trainer.global_step:
            self._calibrate()
        self._calibrated_step = self.trainer.global_step

    def on_validation_start(self) -> None:
        """Calibrate the scores while training: thresholds and checkpoints of this validation go by them."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._calibrate_once()

    def on_train_end(self) -> None:
        """Note the time that the detector took; calibrate scores if training ended before its schedule."""
        self._calibrate_once()
        self._scale_images = None
        self.stage_seconds["detector"] = time.perf_counter() - self._train_start

    def training_step(self, batch: Batch, *args, **kwargs) -> STEP_OUTPUT:
        """Put defects into a batch of normal images and compute the joint loss.

        Args:
            batch (Batch): Batch with images of shape ``(B, 3, H, W)`` and values in [0, 1].
            *args: Unused.
            **kwargs: Unused.

        Returns:
            STEP_OUTPUT: Dictionary with the loss.
        """
        del args, kwargs
        images = cast("torch.Tensor", batch.image)
        if self._mixes:
            images = mix(images, self.mixup)
        augmented, masks = cast("DiffusionAnomalyGenerator", self.generator)(images)
        symmetries = cast("torch.Tensor", self.symmetries)
        elements = symmetries[torch.randint(len(symmetries), (len(images),), device=images.device)]
        # Turned together after the defects are in: textures of the bank belong to images as they are.
        images, augmented, masks = (turn(part, elements) for part in (images, augmented, masks))
        images, augmented, masks = vary(images, augmented, masks, self.variation)
        teacher, student, logits = self.model(augmented, images)
        loss = self.loss(teacher, student, logits, masks)
        self.log("train_loss", loss, on_epoch=True, prog_bar=True, batch_size=len(images))
        return {"loss": loss}

    def validation_step(self, batch: Batch, *args, **kwargs) -> STEP_OUTPUT:
        """Predict a batch.

        Args:
            batch (Batch): Batch with images of shape ``(B, 3, H, W)`` and values in [0, 1].
            *args: Unused.
            **kwargs: Unused.

        Returns:
            STEP_OUTPUT: Batch with score and anomaly map.
        """
        del args, kwargs
        return batch.update(**self.model(batch.image)._asdict())

    def on_train_batch_end(self, *args, **kwargs) -> None:
        """End training when the schedule is done, with calibrated scores."""
        del args, kwargs
        if self.trainer.global_step >= self._last_step:
            self._calibrate_once()
        if self.trainer.global_step >= self.training_steps:
            self.trainer.should_stop = True

    def teardown(self, stage: str) -> None:
        """Let go of the textures after training: they are no part of the model."""
        if stage == "fit":
            self.generator = None

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of gradients to 1, where the Trainer is given nothing else.

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
        student = self.model.student
        encoder = list(student.encoder.parameters()) if isinstance(student, EncoderStudent) else []
        others = {id(value) for value in encoder}
        rest = [value for value in self.model.parameters() if value.requires_grad and id(value) not in others]
        groups = [(rest, self.learning_rate), (encoder, self.encoder_learning_rate)]
        groups = [(values, rate) for values, rate in groups if values]
        rates = [rate for _, rate in groups]
        optimizer = torch.optim.AdamW([{"params": values, "lr": rate} for values, rate in groups])
        self._last_step = min(self.training_steps, self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=rates,
            total_steps=int(self._last_step) + 1,
            pct_start=0.1,
            cycle_momentum=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ---------------------------------------------------------------------------------------------------------------
    # Configuration

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments of the Trainer.

        ``max_epochs`` is left to the user: what stands here would replace what the user gives.

        Returns:
            dict[str, Any]: No sanity check of the validation, which would cost time before stage 1 is seen to start.
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
        """Configure the default pre-processor, which resizes as the exported model does and does not normalise.

        Args:
            image_size (tuple[int, int] | None): Height and width in pixels. Defaults to 256 x 256.
            center_crop_size (tuple[int, int] | None): Height and width to crop to. Defaults to ``None``, no crop.

        Returns:
            PreProcessor: Pre-processor.
        """
        transforms: list[nn.Module] = [Resize(image_size or (256, 256), antialias=False)]
        if center_crop_size is not None:
            transforms.append(CenterCrop(center_crop_size))
        return PreProcessor(transform=Compose(transforms))

    def configure_post_processor(self) -> PostProcessor:
        """Configure the default post-processor.

        Returns:
            PostProcessor: anomalib's default with thresholds and normalisation from the validation set.
        """
        return PostProcessor()

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Configure the default evaluator.

        Returns:
            Evaluator: Image and pixel AUROC for validation; these, AUPRO, pixel AUPR and F1 scores for test.
        """

        def aurocs() -> list:
            return [
                AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
                AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False),
            ]

        return Evaluator(
            val_metrics=aurocs(),
            test_metrics=[
                *aurocs(),
                AUPRO(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False),
                AUPR(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False),
                F1Score(fields=["pred_label", "gt_label"], prefix="image_"),
                F1Score(fields=["pred_mask", "gt_mask"], prefix="pixel_", strict=False),
            ],
        )
