# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of what the Lightning module does without an Engine."""

from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from unittest.mock import MagicMock

import pandas as pd
import pytest
import torch
from anomalib import LearningType
from anomalib.data import AnomalibDataModule, ImageBatch
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize

from anomalib_ddpm_st.detector import DdpmSt, lightning_model
from anomalib_ddpm_st.detector.augmentation import ENOUGH_IMAGES, MAX_REFERENCES, SYMMETRIES, turn, vary
from anomalib_ddpm_st.detector.lightning_model import SCALE_IMAGES, Augmentation, Synthesis
from anomalib_ddpm_st.detector.torch_model import (
    MIN_SPREAD,
    EncoderStudent,
    ReverseStudent,
    StudentKind,
    SymmetricStudent,
)
from anomalib_ddpm_st.synthesis import DiffusionAnomalyGenerator, TextureBank, sample_bank

LAYERS = ["layer1", "layer2"]


def make_model(**arguments: Any) -> DdpmSt:  # noqa: ANN401
    """Small model without pre-trained weights or DDPM."""
    settings: dict[str, Any] = {"layers": LAYERS, "pre_trained": False, "synthesis": "self_texture", **arguments}
    return DdpmSt(**settings)


@pytest.fixture(scope="module")
def shared_model() -> DdpmSt:
    """Model that tests only look at."""
    return make_model(training_steps=50, learning_rate=1e-2, encoder_learning_rate=1e-3)


def attach(model: DdpmSt, **trainer: Any) -> SimpleNamespace:  # noqa: ANN401
    """Give the model a stand-in for the Trainer."""
    model._trainer = SimpleNamespace(**trainer)
    return model._trainer


@pytest.fixture
def model(shared_model: DdpmSt) -> DdpmSt:
    """The shared model without a Trainer."""
    shared_model._trainer = None
    shared_model.generator = None
    shared_model.symmetries = None
    return shared_model


def test_learning_type_and_trainer_arguments(model: DdpmSt) -> None:
    """One class; nothing that would overrule the user."""
    assert model.learning_type == LearningType.ONE_CLASS
    assert not {"max_epochs", "max_steps", "accelerator", "devices"} & set(model.trainer_arguments)


def test_hyper_parameters_are_plain_data() -> None:
    """A checkpoint with them loads with ``weights_only``; no name contains "grid", which anomalib would expand."""
    model = make_model(
        strength=[0.1, 0.2],
        start=[10, 20],
        detail=[0.5, 0.6],
        contrast=[0.3, 0.4],
        blend_factor=[0.4, 0.6],
        diffusion_path="somewhere",
    )
    plain = (str, int, float, bool, type(None))
    components = {"pre_processor", "post_processor", "evaluator", "visualizer"}
    for name, value in model.hparams.items():
        assert "grid" not in name
        if name not in components:
            values = value if isinstance(value, list) else [value]
            assert all(isinstance(item, plain) for item in values), name
    assert model.hparams["strength"] == [0.1, 0.2]


def test_settings_reach_the_stages() -> None:
    """Arguments arrive where they are used."""
    model = make_model(
        cache_dir="cache",
        diffusion_steps=7,
        bank_size=5,
        perturbation="scaled",
        strength=[0.4, 0.5],
        start=[11, 12],
        sampling_steps=3,
        from_noise=0.125,
        inpaint=True,
        detail=[0.3, 0.9],
        contrast=[0.35, 0.45],
        contour=0.1,
        local=0.15,
        displacement=0.2,
        jitter=0.4,
        anomaly_probability=0.25,
        blend_factor=[0.2, 0.3],
        foreground="off",
        augmentation="flips",
        segmentation_weight=4.0,
        distance_weight=0.125,
        top_k=9,
        student="symmetric",
        head_input="both",
    )
    assert model.cache_dir == Path("cache")
    assert model.diffusion_settings["training_steps"] == 7
    assert model.bank_settings == {
        "size": 5,
        "perturbation": "scaled",
        "strength": [0.4, 0.5],
        "start": [11, 12],
        "num_inference_steps": 3,
        "from_noise": 0.125,
        "inpaint": True,
        "detail": [0.3, 0.9],
    }
    generator = DiffusionAnomalyGenerator(None, **model.generator_settings)
    assert generator.probability == pytest.approx(0.25)
    assert generator.blend_factor == (0.2, 0.3)
    assert generator.contrast == (0.35, 0.45)
    assert generator.foreground == "off"
    shares = [generator.contour, generator.local, generator.displacement, generator.jitter]
    assert shares == [0.1, 0.15, 0.2, 0.4]
    assert model.augmentation == "flips"
    assert model.loss.segmentation_weight == pytest.approx(4.0)
    assert model.model.distance_weight == pytest.approx(0.125)
    assert model.model.top_k == 9
    assert isinstance(model.model.student, SymmetricStudent)
    assert model.model.head_input == "both"


def test_settings_are_arguments_of_sample_bank() -> None:
    """What is not given takes the defaults of the bank; the bank takes every setting."""
    parameters = signature(sample_bank).parameters
    settings = make_model().bank_settings
    assert set(settings) <= set(parameters)
    for name, value in settings.items():
        default = parameters[name].default
        assert value == (list(default) if isinstance(default, tuple) else default), name


@pytest.mark.parametrize(
    ("synthesis", "needs_bank", "shares", "probability"),
    [
        ("diffusion", True, [1.0, 0.0, 0.0], 0.75),
        ("mixture", True, [0.5, 0.5, 0.0], 0.75),
        ("self_texture", False, [0.0, 1.0, 0.0], 0.75),
        ("noise", False, [0.0, 0.0, 1.0], 0.75),
        ("none", False, [0.0, 1.0, 0.0], 0.0),
    ],
)
def test_kinds_of_synthesis(
    synthesis: Synthesis,
    needs_bank: bool,
    shares: list[float],
    probability: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each kind draws from its sources; only those that need a bank prepare one."""
    textures = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    TextureBank(textures, torch.tensor([-1, -1]), torch.zeros(1, 768)).save(tmp_path)
    asked: list[Any] = []

    def prepare(dataset: Any) -> Path:  # noqa: ANN401
        asked.append(dataset)
        return tmp_path

    model = make_model(synthesis=synthesis, augmentation="none")
    assert model.needs_bank == needs_bank
    monkeypatch.setattr(model, "_prepare_bank", prepare)
    dataset = object()
    attach(model, train_dataloader=SimpleNamespace(dataset=dataset))
    model.on_train_start()
    assert asked == ([dataset] if needs_bank else [])
    assert model.generator.shares == shares
    assert model.generator.probability == pytest.approx(probability)
    assert (model.generator.bank is not None) == needs_bank
    if needs_bank:
        assert torch.equal(model.generator.bank.textures, textures)
    images = torch.rand(16, 3, 32, 32)
    augmented, masks = model.generator(images)
    assert bool(masks.any()) == (synthesis != "none")
    assert torch.equal(augmented, images) == (synthesis == "none")


def test_kinds_are_complete() -> None:
    """Every kind that the annotation names has its sources."""
    assert set(lightning_model.SOURCES) == set(get_args(Synthesis))


def test_default_components(model: DdpmSt) -> None:
    """The default pre-processor resizes as the exported model does and does not normalise."""
    transforms = model.pre_processor.transform.transforms
    assert [type(transform) for transform in transforms] == [Resize]
    assert not transforms[0].antialias
    assert isinstance(model.post_processor, PostProcessor)
    assert model.evaluator.val_metrics
    assert model.evaluator.test_metrics


def test_configure_pre_processor() -> None:
    """Image size and centre crop are taken."""
    transform = DdpmSt.configure_pre_processor((40, 60), center_crop_size=(32, 48)).transform
    assert [type(step) for step in transform.transforms] == [Resize, CenterCrop]
    assert transform(torch.rand(3, 100, 90)).shape == (3, 32, 48)
    assert not transform.transforms[0].antialias


@pytest.mark.parametrize(
    "transform",
    [
        Compose([Resize((64, 64), antialias=False), Normalize([0.5] * 3, [0.5] * 3)]),
        Compose([Compose([Resize((64, 64)), Normalize([0.5] * 3, [0.5] * 3)])]),
        Normalize([0.5] * 3, [0.5] * 3),
    ],
)
def test_refuses_normalize(transform: Any) -> None:  # noqa: ANN401
    """A pre-processor that normalises is refused, also inside of another transform."""
    with pytest.raises(ValueError, match="Normalize"):
        make_model(pre_processor=PreProcessor(transform=transform))


def test_takes_other_pre_processors() -> None:
    """A pre-processor without Normalize, or none, is fine."""
    resize = PreProcessor(transform=Resize((64, 96), antialias=False))
    assert make_model(pre_processor=resize).pre_processor is resize
    assert make_model(pre_processor=False).pre_processor is None


def test_bad_weights_are_named_at_once(tmp_path: Path) -> None:
    """A wrong path or backbone fails when the model is made, not after an hour of stage 1."""
    with pytest.raises(FileNotFoundError, match="teacher_weights"):
        make_model(teacher_weights=str(tmp_path / "nowhere.pth"))
    with pytest.raises(ValueError, match="resnet81"):
        make_model(backbone="resnet81")


@pytest.mark.parametrize(
    "arguments",
    [
        {"synthesis": "magic"},
        {"augmentation": "spin"},
        {"student": "twin"},
        {"head_input": "sum"},
        {"contrast": [0.5, 0.1]},
        {"contour": 1.5},
        {"local": 1.5},
        {"displacement": -0.5},
        {"filled": -0.1},
        {"soft": 1.1},
        {"variation": -0.1},
        {"variation": 3.5},
        {"mixup": -0.1},
        {"mixup": 0.6},
        {"jitter": 2.0},
        {"anomaly_probability": 1.5},
        {"blend_factor": [0.9, 0.1]},
        {"foreground": "on"},
        {"perturbation": "uniform"},
        {"strength": [-0.1, 0.1]},
    ],
)
def test_bad_settings_are_named_at_once(arguments: dict[str, Any]) -> None:
    """A wrong setting fails when the model is made, not after an hour of stage 1."""
    name = next(iter(arguments)).removeprefix("anomaly_")
    with pytest.raises(ValueError, match=name):
        make_model(**arguments)


@pytest.mark.parametrize("arguments", [{"from_noise": -0.5}, {"from_noise": 1.5}, {"detail": [0.5]}])
def test_bad_settings_of_the_bank_are_named_at_once(arguments: dict[str, Any]) -> None:
    """A wrong setting of stage 2 fails when the model is made, not after an hour of stage 1."""
    with pytest.raises(ValueError, match=next(iter(arguments))):
        make_model(**arguments)


def test_diffusion_settings_are_checked_without_a_bank() -> None:
    """The check of settings needs no bank that is not there yet."""
    assert make_model(synthesis="mixture").generator is None
    with pytest.raises(ValueError, match="jitter"):
        make_model(synthesis="mixture", jitter=-1.0)


@pytest.mark.parametrize("student", ["reverse", "encoder", "symmetric"])
def test_optimizer(student: StudentKind) -> None:
    """Only a pre-trained encoder has a learning rate of its own; every weight but the teacher's is in it, once."""
    model = make_model(training_steps=50, learning_rate=1e-2, encoder_learning_rate=1e-3, student=student)
    attach(model, estimated_stepping_batches=1000)
    configured = model.configure_optimizers()
    groups = configured["optimizer"].param_groups
    assert [group["max_lr"] for group in groups] == [1e-2, 1e-3][: 2 if student == "encoder" else 1]
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(held) == len(set(held))
    learning = [*model.model.student.parameters(), *model.model.head.parameters()]
    assert set(held) == {id(value) for value in learning}
    if student == "encoder":
        encoder = {id(value) for value in model.model.student.encoder.parameters()}
        assert encoder == {id(value) for value in groups[1]["params"]}
    assert configured["lr_scheduler"]["interval"] == "step"


@pytest.mark.parametrize(
    ("student", "kind"), [("reverse", ReverseStudent), ("encoder", EncoderStudent), ("symmetric", SymmetricStudent)]
)
def test_kinds_of_student(student: StudentKind, kind: type) -> None:
    """The argument reaches the network; "reverse" is the default."""
    assert type(make_model(student=student).model.student) is kind
    assert type(make_model().model.student) is ReverseStudent


@pytest.mark.parametrize(("batches", "steps"), [(1000, 50), (20, 20), (float("inf"), 50)])
def test_schedule_ends_where_training_ends(model: DdpmSt, batches: float, steps: int) -> None:
    """The learning rate comes down by the last step, whichever of schedule and Trainer ends it."""
    attach(model, estimated_stepping_batches=batches)
    configured = model.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert max(rates) == pytest.approx(1e-2, rel=0.05)
    assert rates[-1] < 0.05 * max(rates)
    assert rates[0] < 0.5 * max(rates)


@pytest.mark.parametrize(("step", "stops"), [(49, False), (50, True)])
def test_schedule_ends_training(model: DdpmSt, step: int, stops: bool) -> None:
    """Training stops when the schedule is done, and not before."""
    trainer = attach(model, global_step=step, should_stop=False)
    model._last_step = 50
    model.on_train_batch_end(None, None, 0)
    assert trainer.should_stop is stops


def make_batch(count: int = 2) -> ImageBatch:
    """Batch of normal images."""
    return ImageBatch(image=torch.rand(count, 3, 64, 64), gt_label=torch.zeros(count, dtype=torch.bool))


@pytest.mark.parametrize("element", [(0, 0, 0), (1, 1, 0)])
def test_training_step(model: DdpmSt, element: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Defects go to the student, the clean images to the teacher, the masks to the loss, all changed alike."""
    batch = make_batch()
    augmented, masks = torch.rand(2, 3, 64, 64), (torch.rand(2, 1, 64, 64) < 0.5).float()
    logged: dict[str, Any] = {}
    model.train()
    model.generator = lambda images: (augmented, masks) if images is batch.image else None
    model.symmetries = torch.tensor([element], dtype=torch.bool)
    monkeypatch.setattr(model, "variation", 0.5)
    monkeypatch.setattr(model, "log", lambda name, value, **_: logged.update({name: value}))
    elements = model.symmetries.expand(2, -1)
    state = torch.get_rng_state()
    with torch.no_grad():
        torch.randint(1, (2,))
        clean, defective, marked = vary(*(turn(part, elements) for part in (batch.image, augmented, masks)), 0.5)
        expected = model.loss(*model.model(defective, clean), marked)
        torch.set_rng_state(state)
        loss = model.training_step(batch, 0)["loss"]
    torch.testing.assert_close(loss, expected)
    assert logged["train_loss"] is loss


@pytest.mark.parametrize("mixes", [True, False])
def test_training_step_mixes_surfaces(model: DdpmSt, mixes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blended before the defects are put in, where training is to."""
    batch = make_batch(64)
    seen: list[torch.Tensor] = []

    def generator(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(images)
        return images, images[:, :1]

    model.generator = generator
    model.symmetries = torch.tensor(SYMMETRIES[:1], dtype=torch.bool)
    monkeypatch.setattr(model, "_mixes", mixes)
    monkeypatch.setattr(model, "mixup", 0.3)
    monkeypatch.setattr(model.model, "forward", lambda *_: (None, None, None))
    monkeypatch.setattr(model.loss, "forward", lambda *_: torch.zeros(()))
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    model.training_step(batch, 0)
    changed = (seen[0] != batch.image).flatten(1).any(dim=1).sum()
    assert 10 < changed < 54 if mixes else changed == 0


def test_training_step_draws_an_element_for_each_image(model: DdpmSt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image is turned by an allowed element of its own, and with it its clean image and its mask."""
    images = torch.rand(200, 3, 4, 4)
    augmented, masks = images + 1, images[:, :1] + 2
    allowed = torch.tensor(SYMMETRIES, dtype=torch.bool)[[0, 3, 5]]
    seen: dict[str, torch.Tensor] = {}

    def forward(defects: torch.Tensor, clean: torch.Tensor) -> tuple[None, None, None]:
        seen.update(defects=defects, clean=clean)
        return None, None, None

    def loss(*arguments: Any) -> torch.Tensor:  # noqa: ANN401
        seen.update(masks=arguments[-1])
        return torch.zeros(())

    monkeypatch.setattr(model, "variation", 0)
    monkeypatch.setattr(model.model, "forward", forward)
    monkeypatch.setattr(model.loss, "forward", loss)
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    model.generator = lambda _: (augmented, masks)
    model.symmetries = allowed
    batch = ImageBatch(image=images, gt_label=torch.zeros(200, dtype=torch.bool))
    model.training_step(batch, 0)
    torch.testing.assert_close(seen["defects"], seen["clean"] + 1)
    torch.testing.assert_close(seen["masks"], seen["clean"][:, :1] + 2)
    poses = torch.stack([turn(images, element.expand(200, -1)) for element in allowed])
    drawn = (poses == seen["clean"]).flatten(2).all(dim=2)
    assert (drawn.sum(dim=0) == 1).all()
    assert drawn.sum(dim=1).min() > 40


def test_training_step_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps on one batch lower the loss and leave the teacher alone."""
    model = make_model(foreground="off", anomaly_probability=1.0)
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    attach(model, estimated_stepping_batches=1000, strategy=None)
    optimizer = torch.optim.AdamW([value for value in model.model.parameters() if value.requires_grad], lr=1e-3)
    before = {name: value.clone() for name, value in model.model.teacher.state_dict().items()}
    batch = make_batch(4)
    generator = DiffusionAnomalyGenerator(None, **model.generator_settings)
    fixed = generator(batch.image)
    model.generator = lambda _: fixed
    model.symmetries = torch.tensor(SYMMETRIES[:1], dtype=torch.bool)
    model.train()
    losses = []
    for _ in range(8):
        loss = model.training_step(batch, 0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in model.model.teacher.state_dict().items())


def test_validation_step(model: DdpmSt) -> None:
    """Map and score are added to the batch."""
    batch = make_batch()
    model.eval()
    with torch.no_grad():
        result = model.validation_step(batch, 0)
        expected = model.model(batch.image)
    torch.testing.assert_close(result.anomaly_map, expected.anomaly_map.reshape(result.anomaly_map.shape))
    torch.testing.assert_close(result.pred_score, expected.pred_score)


@pytest.mark.parametrize(("given", "norm"), [(None, 1.0), (0.25, 0.25)])
def test_gradient_clipping(
    model: DdpmSt,
    given: float | None,
    norm: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The norm is clipped to one, or to what the Trainer is given."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(model, "clip_gradients", lambda _, value, algorithm: calls.append((value, algorithm)))
    model.configure_gradient_clipping(None, given, None)
    model.configure_gradient_clipping(None, given, "value")
    assert calls == [(norm, "norm"), (norm, "value")]


@pytest.mark.parametrize("synthesis", ["self_texture", "noise", "none"])
def test_no_diffusion_without_need(synthesis: Synthesis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither DDPM nor bank is prepared, and the generator has no bank."""

    def fail(*_: Any, **__: Any) -> None:  # noqa: ANN401
        pytest.fail("stage 1 was started")

    model = make_model(synthesis=synthesis)
    monkeypatch.setattr(lightning_model, "prepare_diffusion", fail)
    monkeypatch.setattr(lightning_model, "prepare_bank", fail)
    dataset = torch.utils.data.TensorDataset(torch.rand(2, 3, 8, 8))
    attach(
        model,
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        datamodule=None,
        train_dataloader=SimpleNamespace(dataset=dataset),
    )
    model.prepare_data()
    model.on_train_start()
    assert isinstance(model.generator, DiffusionAnomalyGenerator)
    assert model.generator.bank is None
    model.teardown("fit")
    assert model.generator is None


@pytest.mark.parametrize("synthesis", ["diffusion", "mixture"])
def test_bank_is_prepared_before_training(synthesis: Synthesis, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training set of the datamodule is set up for it, once."""
    model = make_model(synthesis=synthesis)
    asked: list[Any] = []
    monkeypatch.setattr(model, "_prepare_bank", asked.append)
    datamodule = MagicMock(spec=AnomalibDataModule, train_data="images")
    attach(model, state=SimpleNamespace(fn=TrainerFn.FITTING), datamodule=datamodule)
    model.prepare_data()
    assert asked == ["images"]
    datamodule.setup.assert_called_once_with(TrainerFn.FITTING)


@pytest.mark.parametrize(
    ("augmentation", "count"),
    [("none", 1), ("flips", 4), ("flips_and_turns", 8)],
)
def test_augmentation_that_is_said(
    augmentation: Augmentation,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Nobody compares images; flips are what does not transpose."""
    monkeypatch.setattr(lightning_model, "allowed_symmetries", lambda *_: pytest.fail("images were compared"))
    model = make_model(augmentation=augmentation, memory_weight=0.0)
    attach(model, train_dataloader=SimpleNamespace(dataset=write_parts(tmp_path, 2, torch.rand(3, 16, 16))))
    model.on_train_start()
    assert model.symmetries.dtype == torch.bool
    assert [tuple(row) for row in model.symmetries.int().tolist()] == list(SYMMETRIES[:count])
    assert any(element[0] for element in SYMMETRIES[:count]) == (augmentation == "flips_and_turns")


def test_auto_augmentation_of_other_datasets(model: DdpmSt) -> None:
    """A dataset without paths is left as it is."""
    assert model.augmentation == "auto"
    dataset = torch.utils.data.TensorDataset(torch.rand(2, 3, 8, 8))
    images = model._reference_images(dataset)
    assert images is None
    assert model._symmetries(images).tolist() == [[False, False, False]]


@pytest.mark.parametrize(("count", "compared"), [(ENOUGH_IMAGES - 1, True), (ENOUGH_IMAGES, False)])
def test_auto_augmentation_of_many_images(
    count: int,
    compared: bool,
    model: DdpmSt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many images show all poses themselves: nobody compares them, and none is turned."""
    everything = torch.tensor(SYMMETRIES, dtype=torch.bool)
    monkeypatch.setattr(lightning_model, "allowed_symmetries", lambda *_: (everything, [0.0] * len(SYMMETRIES)))
    symmetries = model._symmetries(torch.zeros(count, 3, 8, 8, dtype=torch.uint8))
    assert symmetries.tolist() == (everything if compared else everything[:1]).tolist()


@pytest.mark.parametrize("poses", [1, 8])
def test_auto_augmentation(poses: int, tmp_path: Path) -> None:
    """The normal images tell: parts in every pose may be turned, parts in one pose may not."""
    model = make_model(pre_processor=DdpmSt.configure_pre_processor((64, 64)))
    part = torch.full((1, 3, 64, 64), 0.1)
    part[..., 8:56, 8:16] = 0.9
    part[..., 48:56, 8:40] = 0.6
    rows = []
    for index in range(24):
        element = torch.tensor([SYMMETRIES[index % poses]], dtype=torch.bool)
        pixels = (turn(part, element)[0] + 0.02 * torch.randn(3, 64, 64)).clamp(0, 1) * 255
        path = tmp_path / f"{index}.png"
        Image.fromarray(pixels.permute(1, 2, 0).round().byte().numpy()).save(path)
        rows.append({"image_path": str(path), "label_index": 0})
    images = model._reference_images(SimpleNamespace(samples=pd.DataFrame(rows)))
    symmetries = model._symmetries(images)
    assert {tuple(row) for row in symmetries.int().tolist()} == set(SYMMETRIES[:poses])


def write_parts(folder: Path, count: int, part: torch.Tensor) -> SimpleNamespace:
    """Dataset of noisy images of a part of shape ``(3, H, W)``."""
    folder.mkdir(exist_ok=True)
    paths = [str(folder / f"{index}.png") for index in range(count)]
    for path in paths:
        pixels = (part + 0.02 * torch.randn_like(part)).clamp(0, 1) * 255
        Image.fromarray(pixels.permute(1, 2, 0).round().byte().numpy()).save(path)
    return SimpleNamespace(samples=pd.DataFrame({"image_path": paths, "label_index": 0}))


@pytest.mark.parametrize(
    ("brightness", "mixup", "mixes"),
    [(0.2, 0.3, True), (0.2, 0.0, False), (0.9, 0.3, False)],
)
def test_surfaces_alone_are_mixed(brightness: float, mixup: float, mixes: bool, tmp_path: Path) -> None:
    """What the normal images show is found out before the first step: a bar brighter than the rest is an object."""
    images = torch.full((3, 64, 64), 0.2)
    images[:, 16:48, 24:40] = brightness
    model = make_model(pre_processor=DdpmSt.configure_pre_processor((64, 64)), memory_size=10, mixup=mixup)
    loader = SimpleNamespace(dataset=write_parts(tmp_path, 3, images))
    attach(model, train_dataloader=loader, ckpt_path=None)
    model.on_train_start()
    assert model._mixes is mixes


def test_memory_is_filled_before_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the normal images of the training set; a resumed training keeps its own, a new one forgets the old."""
    part = torch.full((3, 64, 64), 0.2)
    part[:, 8:56, 8:20] = 0.9
    model = make_model(pre_processor=DdpmSt.configure_pre_processor((64, 64)), memory_size=40)
    memory = model.model.memory
    attach(
        model,
        train_dataloader=SimpleNamespace(dataset=torch.utils.data.TensorDataset(torch.rand(2, 3, 8, 8))),
        ckpt_path=None,
    )
    model.on_train_start()
    assert not memory.is_filled
    assert "memory of normal features stays empty" in caplog.text
    model.trainer.train_dataloader = SimpleNamespace(dataset=write_parts(tmp_path / "a", 5, part))
    model.on_train_start()
    assert memory.is_filled
    assert model.stage_seconds["memory"] > 0
    with torch.no_grad():
        known, unknown = (memory.distances(model._features(images[None])) for images in (part, part.flip(-1)))
    assert 2 * known.max() < unknown.max()
    first = {name: value.clone() for name, value in memory.state_dict().items()}
    model.trainer.train_dataloader = SimpleNamespace(dataset=write_parts(tmp_path / "b", 5, part.flip(-1)))
    model.trainer.ckpt_path = "last.ckpt"
    model.on_train_start()
    assert all(torch.equal(value, first[name]) for name, value in memory.state_dict().items())
    model.trainer.ckpt_path = None
    model.on_train_start()
    with torch.no_grad():
        known, unknown = (memory.distances(model._features(images[None])) for images in (part.flip(-1), part))
    assert 2 * known.max() < unknown.max()


@pytest.mark.parametrize("augmentation", ["none", "auto", "flips_and_turns"])
def test_memory_turns_images_where_told_to(
    augmentation: Augmentation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every image once as it is, twice where the user says that it may be turned; the scale's are varied besides."""
    monkeypatch.setattr(
        lightning_model,
        "allowed_symmetries",
        lambda *_: (torch.tensor(SYMMETRIES, dtype=torch.bool), [0.0]),
    )
    part = torch.rand(3, 64, 64)
    model = make_model(
        pre_processor=DdpmSt.configure_pre_processor((64, 64)),
        augmentation=augmentation,
        memory_size=10,
    )
    seen: list[torch.Tensor] = []
    features = model._features
    monkeypatch.setattr(model, "_features", lambda images: [seen.append(images), *features(images)][1:])
    attach(model, train_dataloader=SimpleNamespace(dataset=write_parts(tmp_path, 20, part)), ckpt_path=None)
    model.on_train_start()
    images = torch.cat(seen)
    normal, varied = images[:-SCALE_IMAGES], images[-SCALE_IMAGES:]
    assert len(model.symmetries) == (1 if augmentation == "none" else 8)
    assert len(normal) == (40 if augmentation == "flips_and_turns" else 20)
    poses = torch.stack([turn(part[None], torch.tensor([element], dtype=torch.bool))[0] for element in SYMMETRIES])
    distances = (normal[:, None] - poses).abs().mean(dim=(2, 3, 4))
    assert distances.amin(dim=1).max() < 0.05
    assert (len(distances.argmin(dim=1).unique()) > 1) == (augmentation == "flips_and_turns")
    assert (varied[:, None] - poses).abs().mean(dim=(2, 3, 4)).amin(dim=1).mean() > 0.05


@pytest.mark.parametrize("memory_weight", [0.0, 1 / 3])
@pytest.mark.parametrize(("last_step", "ends"), [(6, True), (7, False)])
def test_scores_are_calibrated_when_training_ends(
    memory_weight: float,
    last_step: int,
    ends: bool,
    tmp_path: Path,
) -> None:
    """With varied normal images, at the last step, once; where training ends before its schedule, afterwards."""
    model = make_model(
        pre_processor=DdpmSt.configure_pre_processor((64, 64)),
        memory_size=10,
        memory_weight=memory_weight,
    )
    dataset = write_parts(tmp_path, 3, torch.rand(3, 64, 64))
    attach(model, train_dataloader=SimpleNamespace(dataset=dataset), ckpt_path=None, global_step=6)
    model.on_train_start()
    model._last_step = last_step
    model.model.train()
    spread = model.model.score_spread.clone()
    model.on_train_batch_end(None, None, 0)
    assert (model.model.score_spread < spread).all() == ends
    model.on_train_end()
    calibrated = model.model.score_spread.clone()
    assert (calibrated < spread).all()
    assert (calibrated >= MIN_SPREAD).all()
    assert model.model.training
    assert not model.model.teacher.training
    model.on_train_batch_end(None, None, 0)
    assert torch.equal(model.model.score_spread, calibrated)


@pytest.mark.parametrize(("stage", "calibrated"), [(TrainerFn.FITTING, True), (TrainerFn.VALIDATING, False)])
def test_scores_are_calibrated_before_a_validation(stage: TrainerFn, calibrated: bool, tmp_path: Path) -> None:
    """Of training, once a step; neither the mode of the model nor the random numbers of training are touched."""
    model = make_model(pre_processor=DdpmSt.configure_pre_processor((64, 64)), memory_size=10)
    dataset = write_parts(tmp_path, 3, torch.rand(3, 64, 64))
    loader = SimpleNamespace(dataset=dataset)
    attach(model, train_dataloader=loader, ckpt_path=None, global_step=6, state=SimpleNamespace(fn=stage))
    model.on_train_start()
    model.eval()
    spread, state = model.model.score_spread.clone(), torch.get_rng_state()
    model.on_validation_start()
    assert (model.model.score_spread < spread).all() == calibrated
    assert not model.model.training
    assert torch.equal(torch.get_rng_state(), state)

    first = model.model.score_spread.clone()
    torch.rand(3)
    model.on_validation_start()
    assert torch.equal(model.model.score_spread, first)
    attach(model, global_step=7, state=SimpleNamespace(fn=stage))
    model.on_validation_start()
    assert torch.equal(model.model.score_spread, first) != calibrated


def test_scores_of_kept_weights_are_calibrated(tmp_path: Path) -> None:
    """Without a Trainer, by a training set, with a new memory if told to; what has no images of its own is refused."""
    model = make_model(memory_size=10)
    spread = model.model.score_spread.clone()
    dataset = write_parts(tmp_path, 3, torch.rand(3, 64, 64))
    model.calibrate_scores(dataset)
    calibrated = model.model.score_spread.clone()
    assert (calibrated < spread).all()
    assert not model.model.memory.is_filled
    model.calibrate_scores(dataset, renew_memory=True)
    assert model.model.memory.is_filled
    assert model.model.score_spread[2] != calibrated[2]
    with pytest.raises(TypeError, match="TensorDataset"):
        model.calibrate_scores(torch.utils.data.TensorDataset(torch.rand(2, 3, 8, 8)))


def test_scores_of_other_datasets_are_not_calibrated(model: DdpmSt) -> None:
    """A dataset without paths has no images to calibrate by; the components count by their shares."""
    dataset = torch.utils.data.TensorDataset(torch.rand(2, 3, 8, 8))
    attach(model, train_dataloader=SimpleNamespace(dataset=dataset), ckpt_path=None, global_step=6)
    model.on_train_start()
    model.on_train_end()
    assert (model.model.score_spread == 1).all()


def test_what_auto_augmentation_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the normal images, at the size of the detector, by the teacher's two coarsest levels."""
    model = make_model(layers=["layer1", "layer2", "layer3"])
    calls: dict[str, Any] = {}

    def load(*arguments: Any) -> str:  # noqa: ANN401
        calls["load"] = arguments
        return "images"

    def allowed(images: str, features: Any) -> tuple[torch.Tensor, list[float]]:  # noqa: ANN401
        calls.update(images=images, features=features)
        return torch.tensor([[True, False, True]]), [0.5]

    monkeypatch.setattr(lightning_model, "load_normal_images", load)
    monkeypatch.setattr(lightning_model, "allowed_symmetries", allowed)
    samples = pd.DataFrame({"image_path": ["a", "b", "c"], "label_index": [0, 1, 0]})
    images = model._reference_images(SimpleNamespace(samples=samples))
    assert model._symmetries(images).tolist() == [[True, False, True]]
    assert calls["load"] == (["a", "c"], (256, 256), MAX_REFERENCES)
    assert calls["images"] == "images"
    batch = torch.rand(2, 3, 64, 64)
    teacher = model.model.teacher
    with torch.no_grad():
        expected = teacher(teacher.normalize(batch))[-2:]
        for level, other in zip(calls["features"](batch), expected, strict=True):
            torch.testing.assert_close(level, other)


@pytest.mark.parametrize("function", [TrainerFn.TESTING, TrainerFn.VALIDATING, TrainerFn.PREDICTING])
def test_nothing_is_prepared_for_testing(function: TrainerFn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only training makes defects."""
    model = make_model(synthesis="mixture")
    monkeypatch.setattr(model, "_prepare_bank", lambda *_: pytest.fail("stage 1 was started"))
    attach(model, state=SimpleNamespace(fn=function), datamodule=None)
    model.prepare_data()


def test_other_datasets_are_refused(model: DdpmSt) -> None:
    """A dataset without paths is named, with the way out."""
    with pytest.raises(TypeError, match=r"TensorDataset.*Folder.*self_texture"):
        model._prepare_bank(torch.utils.data.TensorDataset(torch.rand(2, 3, 8, 8)))


def test_only_normal_images_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages 1 and 2 see the normal training images, at the size of the detector, and nothing else."""
    model = make_model(synthesis="diffusion", cache_dir=str(tmp_path), bank_size=3, diffusion_steps=9)
    rows = []
    for index, label in enumerate((0, 1, 0)):
        path = tmp_path / f"{index}.png"
        Image.new("RGB", (40, 30), (index * 100, 0, 0)).save(path)
        rows.append({"image_path": str(path), "label_index": label})
    calls: dict[str, Any] = {}

    def prepare_diffusion(images: torch.Tensor, cache_dir: Path, settings: dict, **trainer: Any) -> Path:  # noqa: ANN401
        calls.update(images=images, cache_dir=cache_dir, steps=settings["training_steps"], trainer=trainer)
        return tmp_path / "ddpm"

    def prepare_bank(images: torch.Tensor, path: Path, cache_dir: Path, settings: dict, *_: Any, **__: Any) -> Path:  # noqa: ANN401
        calls.update(bank_images=images, path=path, bank_cache=cache_dir, size=settings["size"])
        return tmp_path / "bank"

    monkeypatch.setattr(lightning_model, "prepare_diffusion", prepare_diffusion)
    monkeypatch.setattr(lightning_model, "prepare_bank", prepare_bank)
    attach(model, strategy=SimpleNamespace(root_device=torch.device("cpu")), precision="32-true")
    folder = model._prepare_bank(SimpleNamespace(samples=pd.DataFrame(rows)))
    assert folder == tmp_path / "bank"
    assert calls["images"].shape == (2, 3, 256, 256)
    assert calls["images"][:, 0, 0, 0].tolist() == [0, 200]
    assert torch.equal(calls["bank_images"], calls["images"])
    assert calls["cache_dir"] == calls["bank_cache"] == tmp_path
    assert calls["steps"] == 9
    assert calls["size"] == 3
    assert calls["path"] == tmp_path / "ddpm"
    assert calls["trainer"]["accelerator"] == "cpu"


def test_setup_asks_the_hub_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are asked for when training starts, if they are wanted and not there yet."""
    asked: list[bool] = []
    model = make_model(pre_trained=True)

    def load(*_: Any) -> None:  # noqa: ANN401
        asked.append(True)
        model.model.teacher.has_weights.fill_(value=True)

    monkeypatch.setattr(model.model, "load_teacher_weights", load)
    model.setup("test")
    assert not asked
    model.setup("fit")
    model.setup("fit")
    assert asked == [True]

    random = make_model(pre_trained=False)
    monkeypatch.setattr(random.model, "load_teacher_weights", lambda *_: pytest.fail("the hub was asked"))
    random.setup("fit")
