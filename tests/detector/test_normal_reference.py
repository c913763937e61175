# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of what normal images say about symmetries, memory bank and scores."""

from collections.abc import Iterator

import pytest
import torch

from anomalib_ddpm_st.core.geometry import flip_rotate
from anomalib_ddpm_st.detector import DdpmStModel, build_model, normal_reference
from anomalib_ddpm_st.detector.augmentation import SYMMETRIES, Augmentation
from anomalib_ddpm_st.detector.normal_reference import ENOUGH_IMAGES, SCALE_IMAGES, NormalReference
from anomalib_ddpm_st.detector.position import ALIKE, ANYWHERE, SURFACE
from anomalib_ddpm_st.detector.torch_model import MIN_SPREAD

EVERYTHING = torch.tensor(SYMMETRIES, dtype=torch.bool)


@pytest.fixture(scope="module")
def shared_model() -> DdpmStModel:
    """Small detector with random weights, made once."""
    torch.manual_seed(0)
    return build_model(layers=("layer1", "layer2"), memory_size=40)


@pytest.fixture
def model(shared_model: DdpmStModel) -> Iterator[DdpmStModel]:
    """The shared detector, restored after the test."""
    state = {name: value.clone() for name, value in shared_model.state_dict().items()}
    yield shared_model.train()
    shared_model.load_state_dict(state)


def as_bytes(images: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1] with a little noise, as ``uint8``."""
    return ((images + 0.02 * torch.randn_like(images)).clamp(0, 1) * 255).round().to(torch.uint8)


def part() -> torch.Tensor:
    """A part that looks different in each of its eight poses, of shape ``(3, 64, 64)``."""
    image = torch.full((3, 64, 64), 0.1)
    image[:, 8:56, 8:16] = 0.9
    image[:, 48:56, 8:40] = 0.6
    return image


def elements(symmetries: torch.Tensor) -> list[tuple[int, ...]]:
    """Rows as tuples."""
    assert symmetries.dtype == torch.bool
    return [tuple(row) for row in symmetries.int().tolist()]


# ---------------------------------------------------------------------------------------------------------------------
# Symmetries


@pytest.mark.parametrize(("augmentation", "count"), [("none", 1), ("flips", 4), ("flips_and_turns", 8)])
def test_explicit_augmentation(
    augmentation: Augmentation,
    count: int,
    model: DdpmStModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No images are compared; flips are the elements that do not transpose, and new parts may show them all."""
    monkeypatch.setattr(normal_reference, "allowed_symmetries", lambda *_: pytest.fail("images were compared"))
    for images in (None, torch.zeros(2, 3, 16, 16, dtype=torch.uint8)):
        reference = NormalReference(model, images, augmentation)
        assert elements(reference.symmetries) == list(SYMMETRIES[:count])
        assert torch.equal(reference.unseen_symmetries, reference.symmetries)
    assert any(element[0] for element in SYMMETRIES[:count]) == (augmentation == "flips_and_turns")


def test_auto_without_images(model: DdpmStModel) -> None:
    """Only the identity."""
    assert elements(NormalReference(model, None).symmetries) == [(0, 0, 0)]


@pytest.mark.parametrize(("count", "compared"), [(ENOUGH_IMAGES - 1, True), (ENOUGH_IMAGES, False)])
def test_auto_with_many_images(
    count: int,
    compared: bool,
    model: DdpmStModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many images show all poses themselves: they are not compared, and none is rotated."""
    monkeypatch.setattr(normal_reference, "allowed_symmetries", lambda *_: (EVERYTHING, [0.0] * len(SYMMETRIES)))
    reference = NormalReference(model, torch.zeros(count, 3, 8, 8, dtype=torch.uint8))
    assert reference.symmetries.tolist() == (EVERYTHING if compared else EVERYTHING[:1]).tolist()
    assert reference.unseen_symmetries.tolist() == EVERYTHING[:1].tolist()


@pytest.mark.parametrize("poses", [1, 8])
def test_auto(poses: int, model: DdpmStModel) -> None:
    """The normal images tell: parts in every pose may be rotated, parts in one pose may not."""
    chosen = EVERYTHING[torch.arange(24) % poses]
    images = as_bytes(flip_rotate(part().expand(24, -1, -1, -1), chosen))
    assert set(elements(NormalReference(model, images).symmetries)) == set(SYMMETRIES[:poses])


def test_auto_compares_by_the_two_coarsest_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the teacher's features."""
    seen = {}

    def allowed(images: torch.Tensor, features: object) -> tuple[torch.Tensor, list[float]]:
        seen.update(images=images, features=features)
        return EVERYTHING[5:6], [0.5]

    monkeypatch.setattr(normal_reference, "allowed_symmetries", allowed)
    images = torch.zeros(5, 3, 16, 16, dtype=torch.uint8)
    three_levels = build_model(memory_size=10)
    assert elements(NormalReference(three_levels, images).symmetries) == [SYMMETRIES[5]]
    assert seen["images"] is images
    batch = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = three_levels.teacher(batch)[-2:]
        for level, other in zip(seen["features"](batch), expected, strict=True):
            torch.testing.assert_close(level, other)


# ---------------------------------------------------------------------------------------------------------------------
# Memory bank


def test_memory_bank_knows_the_normal_images(model: DdpmStModel) -> None:
    """Their features are near, those of a mirrored part are far; filled again, it forgets the first images."""
    images = as_bytes(part().expand(5, -1, -1, -1))
    for known, unknown, filled in ((part(), part().flip(-1), images), (part().flip(-1), part(), images.flip(-1))):
        NormalReference(model, filled, "none").fill_memory_bank(filled)
        with torch.no_grad():
            near, far = (model.memory_bank.scaled_distances(model.teacher(image[None])) for image in (known, unknown))
        assert 2 * near.max() < far.max()


def test_memory_bank_stays_empty_without_images(model: DdpmStModel, caplog: pytest.LogCaptureFixture) -> None:
    """With a warning."""
    NormalReference(model, None).fill_memory_bank(None)
    assert not model.memory_bank.is_filled
    assert "memory bank stays empty" in caplog.text


def test_model_without_a_memory_bank(model: DdpmStModel) -> None:
    """Nothing to fill; the scores of two components are calibrated."""
    images = as_bytes(torch.rand(3, 3, 32, 32))
    small = DdpmStModel(model.teacher, model.student, model.head)
    reference = NormalReference(small, images, "none")
    reference.fill_memory_bank(images)
    reference.calibrate_scores()
    assert small.score_spread.shape == (2,)
    assert (small.score_spread < 1).all()


@pytest.mark.parametrize("augmentation", ["none", "auto", "flips_and_turns"])
def test_memory_bank_holds_rotated_images_only_on_request(
    augmentation: Augmentation,
    model: DdpmStModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every image once as it is, or twice in random poses; slightly changed images set the scale of distances."""
    monkeypatch.setattr(normal_reference, "allowed_symmetries", lambda *_: (EVERYTHING, [0.0]))
    # Every second image of a batch is seen again in another light.
    monkeypatch.setattr(normal_reference, "change_light", lambda images: images - 1)
    image = torch.rand(3, 64, 64)
    images = as_bytes(image.expand(20, -1, -1, -1))
    reference = NormalReference(model, images, augmentation)
    seen: list[torch.Tensor] = []
    hook = model.teacher.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    reference.fill_memory_bank(images)
    hook.remove()
    shown = torch.cat(seen)
    lit = shown.mean(dim=(1, 2, 3)) < 0
    # The first twenty tell how much the position counts.
    normal, varied = shown[~lit][20:-SCALE_IMAGES], shown[~lit][-SCALE_IMAGES:]
    assert lit.sum() == (len(normal) + len(varied)) / 2
    assert len(reference.symmetries) == (1 if augmentation == "none" else 8)
    assert len(normal) == (40 if augmentation == "flips_and_turns" else 20)
    poses = flip_rotate(image.expand(8, -1, -1, -1), EVERYTHING)
    distances = (normal[:, None] - poses).abs().mean(dim=(2, 3, 4))
    assert distances.amin(dim=1).max() < 0.05
    assert (len(distances.argmin(dim=1).unique()) > 1) == (augmentation == "flips_and_turns")
    assert (varied[:, None] - poses).abs().mean(dim=(2, 3, 4)).amin(dim=1).mean() > 0.05


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def test_calibration_leaves_mode_and_random_state(model: DdpmStModel) -> None:
    """Scores are calibrated in evaluation mode; afterwards the model trains on as if nothing had happened."""
    reference = NormalReference(model, as_bytes(torch.rand(3, 3, 32, 32)), "none")
    spread, state = model.score_spread.clone(), torch.get_rng_state()
    reference.calibrate_scores()
    assert (model.score_spread < spread).all()
    assert (model.score_spread >= MIN_SPREAD).all()
    assert model.training
    assert not model.teacher.training
    assert torch.equal(torch.get_rng_state(), state)
    model.eval()
    reference.calibrate_scores()
    assert not model.training


def test_calibration_once_a_step(model: DdpmStModel) -> None:
    """The same step is not calibrated twice; another one is, and without a step always."""
    reference = NormalReference(model, as_bytes(torch.rand(3, 3, 32, 32)), "none")
    calibrated = []
    for step in (6, 6, 7, None, None):
        model.score_spread.fill_(1)
        reference.calibrate_scores(step)
        calibrated.append(bool((model.score_spread < 1).all()))
    assert calibrated == [True, False, True, True, True]


def test_no_calibration_without_images(model: DdpmStModel) -> None:
    """The components then count by their weights."""
    NormalReference(model, None).calibrate_scores()
    assert (model.score_spread == 1).all()


# ---------------------------------------------------------------------------------------------------------------------
# Position


@pytest.mark.parametrize(
    ("kind", "weight"),
    [("alike", ALIKE), ("surface", SURFACE), ("anywhere", ANYWHERE), ("few", ANYWHERE), ("none", ANYWHERE)],
)
def test_position_weight(kind: str, weight: float, model: DdpmStModel) -> None:
    """Parts that lie alike, a surface, parts that lie anywhere, and images that are too few to tell."""
    random = torch.Generator().manual_seed(0)
    noise = torch.rand(12, 3, 64, 64, generator=random)
    background = 0.9 + 0.02 * noise
    places = {
        "alike": [(16, 16)] * 12,
        "few": [(16, 16)] * 2,
        "anywhere": [(4 + 36 * (index % 2), 4 + 12 * (index % 4)) for index in range(12)],
    }
    images = background if kind in places else noise
    for image, (row, column) in zip(images, places.get(kind, ()), strict=False):
        image[:, row : row + 20, column : column + 20] = 0.1
    images = images[: len(places.get(kind, images))]
    reference = NormalReference(model, None if kind == "none" else as_bytes(images), "none")
    assert reference.position_weight == weight
    assert reference.parts_lie_alike == (weight == ALIKE)
    if kind != "none":
        reference.fill_memory_bank(as_bytes(images))
        assert model.memory_bank.position_weight == weight
