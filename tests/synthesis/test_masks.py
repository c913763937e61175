# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of Perlin masks, foreground and changed pixels against independent references."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.filters import threshold_otsu

from anomalib_ddpm_st.synthesis.masks import (
    FOREGROUND_SIZE,
    HISTOGRAM_BINS,
    WINDOW_AXES,
    Windows,
    changed_pixels,
    close_holes,
    foreground_mask,
    largest_change,
    limit_masks,
    otsu_threshold,
    perlin_noise,
    random_perlin_masks,
    random_windows,
    soften,
    surface_contrast,
    uniform,
)


def naive_perlin(scale: tuple[int, int], angles: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Reference: Perlin noise one pixel at a time, as in the textbook."""

    def fade(offset: float) -> float:
        return 6 * offset**5 - 15 * offset**4 + 10 * offset**3

    noise = np.zeros(size)
    for row in range(size[0]):
        for column in range(size[1]):
            y, x = row * scale[0] / size[0], column * scale[1] / size[1]
            corners = {}
            for down in (0, 1):
                for right in (0, 1):
                    angle = angles[math.floor(y) + down, math.floor(x) + right]
                    gradient = math.sin(angle), math.cos(angle)
                    offset = y - math.floor(y) - down, x - math.floor(x) - right
                    corners[down, right] = gradient[0] * offset[0] + gradient[1] * offset[1]
            weight_y, weight_x = fade(y % 1), fade(x % 1)
            top = corners[0, 0] + weight_x * (corners[0, 1] - corners[0, 0])
            bottom = corners[1, 0] + weight_x * (corners[1, 1] - corners[1, 0])
            noise[row, column] = math.sqrt(2) * (top + weight_y * (bottom - top))
    return noise


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (17, 9)])
def test_perlin_noise_equals_naive(size: tuple[int, int], generator: torch.Generator) -> None:
    """A batch with a scale for each image and axis equals the loop."""
    scales = torch.tensor([[1, 1], [4, 2], [8, 1], [3, 8]])
    angles = torch.rand(4, 9, 9, generator=generator) * 2 * torch.pi
    noise = perlin_noise(scales, angles, size)
    assert noise.shape == (4, 1, *size)
    for index in range(4):
        expected = naive_perlin(tuple(scales[index].tolist()), angles[index].numpy(), size)
        np.testing.assert_allclose(noise[index, 0].numpy(), expected, atol=2e-5)


def test_perlin_noise_properties(generator: torch.Generator) -> None:
    """Noise stays in [-1, 1] and is zero at the nodes of the lattice."""
    angles = torch.rand(32, 9, 9, generator=generator) * 2 * torch.pi
    noise = perlin_noise(torch.full((32, 2), 8), angles, (64, 64))
    assert noise.abs().max() <= 1
    assert noise.abs().max() > 0.5
    assert noise[..., ::8, ::8].abs().max() == 0


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (65, 33)])
def test_perlin_masks(size: tuple[int, int]) -> None:
    """Masks are boolean, of the size asked for, decided by the generator, and differ within the batch."""
    masks = random_perlin_masks(16, size, generator=torch.Generator().manual_seed(2))
    assert masks.shape == (16, 1, *size)
    assert masks.dtype == torch.bool
    assert torch.equal(masks, random_perlin_masks(16, size, generator=torch.Generator().manual_seed(2)))
    assert not torch.equal(masks, random_perlin_masks(16, size, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(masks[:8], masks[8:])
    assert not masks.flatten(1).all(dim=1).any()


def test_perlin_masks_are_not_empty(generator: torch.Generator) -> None:
    """Coarse noise gives a mask too; only a rotation may carry it out of the image, and seldom does."""
    masks = random_perlin_masks(300, (64, 64), rotation=0.0, generator=generator)
    assert masks.flatten(1).any(dim=1).all()
    for size in ((64, 64), (48, 96)):
        masks = random_perlin_masks(300, size, rotation=90.0, generator=generator)
        assert masks.flatten(1).any(dim=1).float().mean() > 0.9


def test_perlin_masks_leave_global_random_state(generator: torch.Generator) -> None:
    """Given a generator, nothing else is drawn from."""
    state = torch.get_rng_state()
    random_perlin_masks(4, (32, 32), generator=generator)
    assert torch.equal(torch.get_rng_state(), state)


def test_uniform(generator: torch.Generator) -> None:
    """Numbers fill the range evenly."""
    values = uniform((20_000,), -3.0, 5.0, generator)
    assert values.min() >= -3
    assert values.max() < 5
    counts = torch.histc(values, 8, -3, 5)
    assert (counts - 2500).abs().max() < 300


def between(values: np.ndarray, threshold: float) -> float:
    """Variance between the two classes of a threshold, which Otsu's is the largest of."""
    upper = values > threshold
    return upper.mean() * (1 - upper.mean()) * (values[upper].mean() - values[~upper].mean()) ** 2


@pytest.mark.parametrize("seed", range(6))
def test_otsu_equals_skimage(seed: int) -> None:
    """Thresholds of mixtures of two classes agree within one bin, or are as good."""
    source = np.random.default_rng(seed)
    low, high, share = source.uniform(0.1, 0.4), source.uniform(0.55, 0.9), source.uniform(0.2, 0.8)
    upper = source.random((3, 4000)) < share
    values = np.where(upper, source.normal(high, 0.05, upper.shape), source.normal(low, 0.04, upper.shape))
    values = np.clip(values, 0, 1)
    values[:, :2] = 0, 1  # so that the histograms of both implementations have the same range
    result = otsu_threshold(torch.from_numpy(values).float())
    assert result.shape == (3,)
    for row, threshold in zip(range(3), result.tolist(), strict=True):
        expected = threshold_otsu(values[row], nbins=HISTOGRAM_BINS)
        # Between two classes that are far apart many thresholds are equally good.
        near = abs(threshold - expected) <= 1.01 / HISTOGRAM_BINS
        assert near or between(values[row], threshold) >= 0.999 * between(values[row], expected)
        assert ((values[row] > threshold) == upper[row]).mean() > 0.97


def test_otsu_of_two_values_parts_them() -> None:
    """Two values, also if one is rare, end up on different sides."""
    values = torch.zeros(3, 1000)
    values[0, :500], values[1, :20], values[2, :990] = 1.0, 0.6, 0.3
    threshold = otsu_threshold(values)
    assert (threshold > 0).all()
    assert (threshold < torch.tensor([1.0, 0.6, 0.3])).all()


def test_otsu_of_one_value_is_finite() -> None:
    """A flat image has no two classes and no NaN."""
    assert otsu_threshold(torch.full((2, 100), 0.5)).isfinite().all()


def disc(size: tuple[int, int], centre: tuple[float, float], radius: float) -> torch.Tensor:
    """Boolean disc of shape ``(H, W)``."""
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def draw_object(
    size: tuple[int, int] = (128, 128),
    background: float = 0.9,
    colour: float = 0.25,
    hole: float = 0.9,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ring on a plain background with a little noise; the hole has the colour of the background."""
    body = disc(size, (size[0] / 2, size[1] / 2), min(size) * 0.32)
    inside = disc(size, (size[0] / 2, size[1] / 2), min(size) * 0.1)
    image = torch.full(size, background)
    image[body] = colour
    image[inside] = hole
    image = (image + 0.01 * torch.randn(3, *size)).clamp(0, 1)
    return image, body


@pytest.mark.parametrize("size", [(128, 128), (96, 160), (64, 64), (130, 70)])
@pytest.mark.parametrize(("background", "colour"), [(0.9, 0.25), (0.05, 0.7)])
def test_foreground_of_an_object(size: tuple[int, int], background: float, colour: float) -> None:
    """The object is found whole, its hole filled, up to the grain of the small image."""
    image, body = draw_object(size, background, colour, background)
    mask = foreground_mask(image[None])
    assert mask.shape == (1, 1, *size)
    assert mask.dtype == torch.bool
    found = mask[0, 0].numpy()
    grain = 3 * math.ceil(max(size) / 64)
    near = ndimage.binary_dilation(body.numpy(), iterations=grain)
    assert found[body.numpy()].all()
    assert not found[~near].any()


def test_foreground_of_a_texture() -> None:
    """Without a plain background everything is foreground."""
    noise = torch.rand(1, 3, 96, 96)
    gradient = torch.linspace(0, 1, 96).expand(1, 3, 96, 96)
    stripes = (torch.arange(96) // 8 % 2).float().expand(1, 3, 96, 96)
    flat = torch.full((1, 3, 96, 96), 0.4)
    for image in (noise, gradient, stripes, flat):
        assert foreground_mask(image).all()


def test_foreground_of_a_batch() -> None:
    """Objects and textures in one batch give what they give one by one."""
    images = torch.stack([draw_object()[0], torch.rand(3, 128, 128), draw_object(background=0.1, colour=0.8)[0]])
    together = foreground_mask(images)
    for index in range(len(images)):
        assert torch.equal(together[index], foreground_mask(images[index : index + 1])[0])
    assert together[1].all()
    assert not together[0].all()
    assert not together[2].all()


def test_largest_change() -> None:
    """The largest difference in any channel counts, up or down, within the mask alone."""
    before = torch.full((3, 2, 4, 4), 0.5)
    after = before.clone()
    after[0, 1, 1, 1] = 0.25
    after[0, 0, 3, 3] = 1.0
    after[1, 0, 2, 0] = 0.875
    masks = torch.ones(3, 1, 4, 4, dtype=torch.bool)
    masks[0, :, 3] = False
    masks[2] = False
    assert largest_change(before, after, masks).flatten().tolist() == [0.25, 0.375, 0.0]


def test_changed_pixels() -> None:
    """A pixel counts if one channel changed by more than the threshold, to either side."""
    before = torch.full((2, 3, 2, 2), 0.5)
    after = before.clone()
    after[0, 1, 0, 0] += 0.125
    after[0, 2, 0, 1] -= 0.125
    after[0, :, 1, 0] += 0.0625
    after[1, 0, 1, 1] += 0.1
    expected = torch.zeros(2, 1, 2, 2, dtype=torch.bool)
    expected[0, 0, 0, 0] = expected[0, 0, 0, 1] = expected[1, 0, 1, 1] = True
    assert torch.equal(changed_pixels(before, after, 0.0625), expected)


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.6])
def test_close_holes_equals_scipy(density: float) -> None:
    """Away from the border it is the closing of scipy; everywhere it only adds, next to what is set."""
    masks = torch.rand(4, 1, 40, 30) < density
    closed = close_holes(masks)
    assert closed.dtype == torch.bool
    square = np.ones((3, 3), dtype=bool)
    for mask, result in zip(masks[:, 0].numpy(), closed[:, 0].numpy(), strict=True):
        expected = ndimage.binary_closing(mask, square)
        np.testing.assert_array_equal(result[1:-1, 1:-1], expected[1:-1, 1:-1])
        assert result[mask].all()
        assert not result[~ndimage.binary_dilation(mask, square)].any()


def test_close_holes_of_nothing_and_everything() -> None:
    """Empty stays empty, full stays full."""
    empty = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    assert not close_holes(empty).any()
    assert close_holes(~empty).all()


# ---------------------------------------------------------------------------------------------------------------------
# Windows


def windows_at(scores: torch.Tensor, axes: list[list[float]], angles: list[float], used: list[bool]) -> Windows:
    """Windows of known shape, none of them filled."""
    shares = torch.tensor(used).reshape(-1, 1, 1, 1)
    return Windows(scores, torch.tensor(axes), torch.tensor(angles), shares, torch.zeros_like(shares))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_random_windows(share: float, generator: torch.Generator) -> None:
    """The share is kept, and small windows are as frequent as large ones."""
    windows = random_windows(2000, share, generator)
    assert windows.used.shape == (2000, 1, 1, 1)
    assert windows.used.float().mean().item() == pytest.approx(share, abs=0.04 if 0 < share < 1 else 0)
    low, high = WINDOW_AXES
    assert windows.axes.shape == (2000, 2)
    assert low <= windows.axes.min() < 1.05 * low
    assert 0.95 * high < windows.axes.max() <= high
    assert windows.axes.median().item() == pytest.approx((low * high) ** 0.5, rel=0.1)
    assert (windows.axes[:, 0] != windows.axes[:, 1]).all()
    assert 0 <= windows.angles.min() < 0.05
    assert torch.pi - 0.05 < windows.angles.max() <= torch.pi


def test_random_windows_are_seeded() -> None:
    """The generator decides, and the global random state is not touched."""
    state = torch.get_rng_state()
    first, second, other = (random_windows(3, 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("scores", "axes", "angles"):
        assert torch.equal(getattr(first, name), getattr(second, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


@pytest.mark.parametrize("size", [(64, 64), (96, 128), (40, 33)])
def test_limit_masks_by_formula(size: tuple[int, int]) -> None:
    """Pixels of the mask stay that lie in an ellipse, turned by its angle, around the pixel of largest score."""
    height, width = size
    scores = torch.rand(2, 1, FOREGROUND_SIZE, FOREGROUND_SIZE)
    scores[0, 0, 20, 40] = scores[1, 0, 50, 9] = 2
    axes, angles = [[0.3, 0.1], [0.05, 0.2]], [0.5, 2.0]
    masks = torch.ones(2, 1, height, width, dtype=torch.bool)
    masks[:, :, ::3, ::5] = False
    allowed = torch.ones_like(masks)
    allowed[:, :, :, width // 2 + 3 :: 4] = False
    result = limit_masks(masks, allowed, windows_at(scores, axes, angles, [True, True]))
    assert result.dtype == torch.bool
    for index, (row, column) in enumerate(((20, 40), (50, 9))):
        down = torch.arange(height)[:, None] + 0.5 - (row + 0.5) * height / FOREGROUND_SIZE
        right = torch.arange(width)[None, :] + 0.5 - (column + 0.5) * width / FOREGROUND_SIZE
        turn = torch.complex(right.expand(size), down.expand(size)) * torch.polar(
            torch.tensor(1.0), torch.tensor(-angles[index])
        )
        first, second = (max(axis * min(size), 1) for axis in axes[index])
        distance = (turn.real / first) ** 2 + (turn.imag / second) ** 2
        expected = masks[index, 0] & allowed[index, 0] & (distance <= 1)
        clear = (distance - 1).abs() > 1e-4
        assert torch.equal(result[index, 0][clear], expected[clear])
        assert 0 < expected.sum() < (masks & allowed)[index].sum()


def test_window_is_around_a_pixel_of_the_mask() -> None:
    """The largest score counts only where the mask is; what is left is never empty."""
    masks = torch.zeros(30, 1, 64, 64, dtype=torch.bool)
    masks[:, :, 5:9, 50:60] = True
    masks[:, :, 60, 3] = True
    result = limit_masks(masks, torch.ones_like(masks), random_windows(30, 1.0))
    assert not (result & ~masks).any()
    assert result.flatten(1).any(dim=1).all()


def test_unused_windows_leave_masks_alone() -> None:
    """Without a window the mask is limited to what is allowed."""
    masks, allowed = (torch.rand(4, 1, 32, 32) < 0.5 for _ in range(2))
    assert torch.equal(limit_masks(masks, allowed, random_windows(4, 0.0)), masks & allowed)


def test_window_in_place_of_an_empty_mask() -> None:
    """Where mask and object do not meet, the window on the object is the mask; where nothing is allowed, nothing is."""
    masks = torch.zeros(20, 1, 64, 64, dtype=torch.bool)
    masks[:, :, :8] = True
    allowed = torch.zeros_like(masks)
    allowed[:, :, 30:40, 30:50] = True
    allowed[-1] = False
    for share in (0.0, 1.0):
        result = limit_masks(masks, allowed, random_windows(20, share))
        assert result[:-1].flatten(1).any(dim=1).all()
        assert not (result & ~allowed).any()
        assert (result[:-1].flatten(1).sum(dim=1) < allowed[0].sum()).any()


def test_filled_windows_take_the_place_of_masks() -> None:
    """A filled window holds every pixel that is allowed, around one of the mask; an unused one changes nothing."""
    masks = torch.zeros(40, 1, 64, 64, dtype=torch.bool)
    masks[:, :, 30, 30] = True
    allowed = torch.ones_like(masks)
    allowed[:, :, :, 32:] = False
    filled = limit_masks(masks, allowed, random_windows(40, 1.0, filled=1.0))
    assert not (filled & ~allowed).any()
    assert filled[:, :, 30, 30].all()
    area = filled.flatten(1).sum(dim=1)
    assert area.min() > 1
    assert area.unique().numel() > 10
    assert torch.equal(limit_masks(masks, allowed, random_windows(40, 0.0, filled=1.0)), masks)
    shares = random_windows(2000, 1.0, filled=0.3).filled.float().mean().item()
    assert shares == pytest.approx(0.3, abs=0.04)


# ---------------------------------------------------------------------------------------------------------------------
# Soft edges


def test_soften_is_a_gaussian() -> None:
    """The edge of a half-plane becomes the integral of a Gaussian of the given width; width 0 leaves it."""
    masks = torch.zeros(3, 1, 100, 100, dtype=torch.bool)
    masks[..., :50] = True
    widths = torch.tensor([0.0, 0.02, 0.05])
    weights = soften(masks, widths)
    assert torch.equal(weights[0], masks[0].float())
    distance = torch.arange(100) + 0.5 - 50
    for index in (1, 2):
        expected = 0.5 * torch.erfc(distance / (100 * widths[index]) / 2**0.5)
        middle = weights[index, 0, 50]
        # Near the sides the mask is mirrored.
        assert torch.allclose(middle[20:80], expected[20:80], atol=0.02)
    assert torch.all(weights.amax(dim=(1, 2, 3)) == 1)


def test_soften_keeps_the_peak_of_small_masks() -> None:
    """A speck that is blurred away would be no defect; an empty mask stays empty."""
    masks = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    masks[0, 0, 20, 20] = True
    weights = soften(masks, torch.tensor([0.05, 0.05]))
    assert weights[0, 0, 20, 20] == 1
    assert weights[0].sum() > 20
    assert not weights[1].any()
    assert not soften(masks[1:], torch.tensor([0.05])).any()


@pytest.mark.parametrize("size", [(8, 8), (17, 33), (64, 40)])
def test_soften_images_of_any_size(size: tuple[int, int]) -> None:
    """Each mask is blurred as it would be alone."""
    masks = torch.rand(4, 1, *size) < 0.2
    widths = torch.tensor([0.05, 0.0, 0.005, 0.02])
    weights = soften(masks, widths)
    for index in range(4):
        assert torch.allclose(weights[index : index + 1], soften(masks[index : index + 1], widths[index : index + 1]))


def test_limit_masks_writes_to_nothing() -> None:
    """The masks given stay as they were."""
    masks, allowed = (torch.rand(4, 1, 32, 32) < 0.5 for _ in range(2))
    kept = masks.clone(), allowed.clone()
    limit_masks(masks, allowed, random_windows(4, 1.0))
    assert torch.equal(masks, kept[0])
    assert torch.equal(allowed, kept[1])


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (33, 40)])
def test_surface_contrast_against_blocks(size: tuple[int, int]) -> None:
    """Geometric mean of the standard deviations of blocks, one by one, weighted by how much of each is allowed."""
    images = torch.rand(2, 3, *size) * torch.tensor([0.1, 1.0])[:, None, None, None]
    allowed = torch.rand(2, 1, *size) < 0.5
    side = max(2, round(min(size) / 16))
    for image, mask, found in zip(images.double(), allowed, surface_contrast(images, allowed).flatten(), strict=True):
        logarithms, weights = [], []
        for top in range(0, size[0] - side + 1, side):
            for left in range(0, size[1] - side + 1, side):
                block = (..., slice(top, top + side), slice(left, left + side))
                logarithms.append(math.log(max(0.02, image.mean(0)[block].std(correction=0).item())))
                weights.append(max(1e-6, mask[block].double().mean().item()))
        assert found.item() == pytest.approx(math.exp(np.average(logarithms, weights=weights)), rel=1e-3)


def test_surface_contrast_of_an_object_is_not_that_of_its_background() -> None:
    """A plain background and the edge of the object hardly count; a blank image has what can just be seen."""
    images = torch.full((2, 3, 64, 64), 0.9)
    images[0, :, 16:48, 16:48] = 0.3
    images[0, :, 16:48:2, 16:48] = 0.4
    allowed = images[:, :1] < 0.8
    allowed[1] = True
    contrast = surface_contrast(images, allowed).flatten()
    assert contrast.tolist() == pytest.approx([0.05, 0.02], abs=1e-4)
