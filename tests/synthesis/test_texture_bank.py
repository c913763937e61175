# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the bank of textures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from anomalib_ddpm_st.diffusion import DefectPipeline
from anomalib_ddpm_st.diffusion import pipeline as pipeline_module
from anomalib_ddpm_st.synthesis import TextureBank, sample_bank
from anomalib_ddpm_st.synthesis.bank import DEFAULT_DETAIL, TENSORS_FILE, check_bank_settings, thumbnails


def make_bank(sources: list[int], levels: tuple[float, ...] = (0.1, 0.5, 0.9)) -> TextureBank:
    """Bank with flat textures whose value is their index, and flat normal images of the given brightness."""
    textures = torch.arange(len(sources)).reshape(-1, 1, 1, 1).expand(-1, 3, 16, 16).to(torch.uint8)
    normal = torch.tensor(levels).reshape(-1, 1, 1, 1).expand(-1, 3, 16, 16)
    return TextureBank(textures, torch.tensor(sources), thumbnails(normal))


def make_inpainted_bank() -> TextureBank:
    """Bank of three flat textures, each with a mask of its own."""
    bank = make_bank([0, -1, 2])
    masks = torch.zeros(3, 1, 16, 16, dtype=torch.bool)
    masks[0, :, 4:8, 2:] = True
    masks[2] = torch.rand(1, 16, 16) < 0.5
    return TextureBank(bank.textures, bank.sources, bank.source_thumbnails, masks)


def flat(*levels: float) -> torch.Tensor:
    """Flat images of the given brightness."""
    return torch.tensor(levels).reshape(-1, 1, 1, 1).expand(-1, 3, 24, 20)


def drawn(bank: TextureBank, images: torch.Tensor, times: int = 60) -> list[set[int]]:
    """Every texture that was drawn for each image."""
    source = torch.Generator().manual_seed(0)
    indices = torch.stack([bank.draw(images, source) for _ in range(times)])
    return [set(column.tolist()) for column in indices.T]


def test_thumbnails_are_means_of_blocks() -> None:
    """A thumbnail holds the mean of each block."""
    images = torch.rand(2, 3, 32, 48)
    expected = images.reshape(2, 3, 16, 2, 16, 3).mean(dim=(3, 5)).flatten(1)
    torch.testing.assert_close(thumbnails(images), expected)


def test_draw_takes_the_textures_of_the_most_similar_source() -> None:
    """Every texture of the nearest normal image is drawn at some time, and no other."""
    bank = make_bank([0, 1, 2, 1, 0, 1])
    assert drawn(bank, flat(0.15, 0.85, 0.55)) == [{0, 4}, {2}, {1, 3, 5}]


def test_noise_textures_go_with_any_image() -> None:
    """Textures from pure noise are drawn beside those of the source."""
    bank = make_bank([0, -1, 2, -1])
    assert drawn(bank, flat(0.0, 0.9)) == [{0, 1, 3}, {1, 2, 3}]
    assert drawn(make_bank([-1, -1]), flat(0.3)) == [{0, 1}]


def test_sources_without_texture_are_passed_over() -> None:
    """A normal image that no texture was made of is never the match."""
    bank = make_bank([0, 2, 2])
    assert drawn(bank, flat(0.52, 0.48, 0.5 - 0.01)) == [{1, 2}, {0}, {0}]


def test_draw_is_even_and_seeded() -> None:
    """All eligible textures are equally likely, and the generator decides."""
    bank = make_bank([0, 0, 0, 0])
    images = flat(0.1).expand(4000, -1, -1, -1)
    indices = bank.draw(images, torch.Generator().manual_seed(1))
    assert torch.equal(indices, bank.draw(images, torch.Generator().manual_seed(1)))
    assert (torch.bincount(indices, minlength=4) - 1000).abs().max() < 130


def test_draw_by_content(normal_images: torch.Tensor) -> None:
    """An image finds its own texture among others, also a little changed."""
    bank = TextureBank(normal_images, torch.arange(4), thumbnails(normal_images / 255))
    order = torch.tensor([2, 0, 3, 1])
    images = (normal_images[order] / 255 + 0.03 * torch.randn(4, 3, 32, 32)).clamp(0, 1)
    assert torch.equal(bank.draw(images), order)


def test_get() -> None:
    """Textures come back in [0, 1], and are resized where another size is asked for."""
    textures = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    bank = TextureBank(textures, torch.arange(3), torch.zeros(3, 768))
    indices = torch.tensor([2, 0, 0])
    torch.testing.assert_close(bank.get(indices, (16, 16)), textures[indices] / 255)
    halved = bank.get(indices, (8, 8))
    assert halved.shape == (3, 3, 8, 8)
    assert halved.mean().item() == pytest.approx((textures[indices] / 255).mean().item(), abs=0.03)
    wide = bank.get(indices[:1], (20, 40))
    assert wide.shape == (1, 3, 20, 40)
    assert 0 <= wide.min() <= wide.max() <= 1


def test_save_and_load(tmp_path: Path) -> None:
    """What was saved is loaded."""
    bank = make_bank([0, -1, 2])
    bank.save(tmp_path)
    loaded = TextureBank.load(str(tmp_path))
    assert len(loaded) == 3
    for name in ("textures", "sources", "source_thumbnails"):
        assert torch.equal(getattr(loaded, name), getattr(bank, name))
        assert getattr(loaded, name).dtype == getattr(bank, name).dtype
    assert loaded.masks is None


def test_save_and_load_masks(tmp_path: Path) -> None:
    """An in-painted bank keeps its masks; another one in the same folder leaves none behind."""
    bank = make_inpainted_bank()
    bank.save(tmp_path)
    loaded = TextureBank.load(tmp_path)
    assert torch.equal(loaded.masks, bank.masks)
    assert loaded.masks.dtype == torch.bool
    assert torch.equal(loaded.textures, bank.textures)
    make_bank([0]).save(tmp_path)
    assert TextureBank.load(tmp_path).masks is None


@pytest.mark.parametrize("inpainted", [False, True])
def test_to(inpainted: bool) -> None:
    """A bank that is there already is not copied; elsewhere everything that it holds goes along."""
    bank = make_inpainted_bank() if inpainted else make_bank([0, 1])
    assert bank.to(torch.device("cpu")) is bank
    moved = bank.to(torch.device("meta"))
    for name in ("textures", "sources", "source_thumbnails", "masks"):
        before, after = getattr(bank, name), getattr(moved, name)
        assert (before is None) == (after is None) == (name == "masks" and not inpainted)
        if before is not None:
            assert before.device.type == "cpu"
            assert after.device.type == "meta"
            assert (after.shape, after.dtype) == (before.shape, before.dtype)


def test_get_masks() -> None:
    """Masks come back by index, boolean also where another size is asked for."""
    bank = make_inpainted_bank()
    indices = torch.tensor([2, 0, 0])
    assert torch.equal(bank.get_masks(indices, (16, 16)), bank.masks[indices])
    enlarged = bank.get_masks(indices, (48, 48))
    assert enlarged.dtype == torch.bool
    expected = bank.masks[indices].repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    assert torch.equal(enlarged, expected)
    assert not bank.get_masks(torch.tensor([1]), (16, 16)).any()


@pytest.mark.parametrize("size", [(32, 64), (64, 32), (64, 64), (16, 40), (8, 8)])
def test_textures_keep_their_proportions(size: tuple[int, int]) -> None:
    """A disc stays a disc, in the middle, on images of any proportions."""
    grid = torch.linspace(-1, 1, 64)
    disc = (grid[:, None] ** 2 + grid[None] ** 2 < 0.2).expand(1, 3, -1, -1)
    bank = TextureBank((disc * 255).to(torch.uint8), torch.tensor([-1]), torch.zeros(1, 768))
    texture = bank.get(torch.tensor([0]), size)
    assert texture.shape == (1, 3, *size)
    inside = texture[0, 0] > 0.5
    rows, columns = inside.any(dim=1).sum().item(), inside.any(dim=0).sum().item()
    diameter = 0.2**0.5 * max(size)
    assert columns == pytest.approx(min(diameter, size[1]), abs=2)
    assert rows == pytest.approx(min(diameter, size[0]), abs=2)
    assert torch.equal(inside, inside.flip(0, 1))


def test_textures_of_images_that_were_squeezed_are_stretched_again() -> None:
    """A bank made of wide images at a square size gives wide textures for wide images, and says so when saved."""
    columns = torch.arange(64).expand(1, 3, 64, 64).to(torch.uint8)
    bank = TextureBank(columns, torch.tensor([-1]), torch.zeros(1, 768), aspect=torch.tensor(2.0))
    wide = bank.get(torch.tensor([0]), (64, 128)) * 255
    assert wide[..., 0].max() < 0.3
    assert wide[..., -1].min() > 62.7
    square = bank.get(torch.tensor([0]), (128, 128)) * 255
    assert 15 < square[..., 0].mean() < 17
    assert bank.to(torch.device("meta")).aspect == 2


def test_aspect_is_saved(tmp_path: Path) -> None:
    """With the textures."""
    bank = make_bank([0])
    bank.aspect = torch.tensor(1.5)
    bank.save(tmp_path)
    assert TextureBank.load(tmp_path).aspect.item() == pytest.approx(1.5)


@pytest.mark.parametrize("size", [(48, 48), (16, 40), (40, 24)])
def test_missing_detail(size: tuple[int, int]) -> None:
    """What is left of an image when the size of the textures is taken away; nothing of smooth images."""
    bank = make_bank([0])
    images = torch.rand(2, 3, *size)
    detail = bank.missing_detail(images)
    assert detail.shape == images.shape
    assert detail.std() > 0.1
    assert detail.mean().abs() < 0.01
    assert bank.missing_detail(torch.full_like(images, 0.3)).abs().max() < 1e-5


@pytest.mark.parametrize("size", [(16, 16), (9, 12)])
def test_small_images_miss_nothing(size: tuple[int, int]) -> None:
    """Textures of at least the size of the images have all the detail."""
    assert make_bank([0]).missing_detail(torch.rand(2, 3, *size)).tolist() == 0


def test_no_masks() -> None:
    """A bank of textures that were perturbed all over says so."""
    with pytest.raises(ValueError, match="no masks"):
        make_bank([0, 1]).get_masks(torch.tensor([0]), (16, 16))


def test_load_nothing(tmp_path: Path) -> None:
    """The message names the folder."""
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        TextureBank.load(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "tensors"])
def test_load_damaged(damage: str, tmp_path: Path) -> None:
    """The message names the file and the way out."""
    make_bank([0, 1]).save(tmp_path)
    path = tmp_path / TENSORS_FILE
    content = path.read_bytes()
    if damage == "tensors":
        save_file({"textures": torch.zeros(1), "pictures": torch.zeros(1)}, path)
    else:
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"no tensors here"}[damage])
    with pytest.raises(ValueError, match=rf"{TENSORS_FILE}.*damaged.*delete"):
        TextureBank.load(tmp_path)


def test_empty_bank() -> None:
    """A bank without textures is refused at once."""
    with pytest.raises(ValueError, match="at least one"):
        TextureBank(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), torch.zeros(0), torch.zeros(1, 768))


SETTINGS: dict[str, Any] = {"num_inference_steps": 2, "batch_size": 3}


def test_sample_bank(pipeline: DefectPipeline, normal_images: torch.Tensor) -> None:
    """Shapes, kinds and values are those that the class describes, and every normal image gets its turn."""
    bank = sample_bank(pipeline, normal_images, size=10, **SETTINGS)
    assert len(bank) == 10
    assert bank.textures.shape == (10, 3, 32, 32)
    assert bank.textures.dtype == torch.uint8
    torch.testing.assert_close(bank.source_thumbnails, thumbnails(normal_images / 255))
    counts = torch.bincount(bank.sources, minlength=4)
    assert counts.min() >= 2
    assert counts.max() <= 3


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.3, 3), (0.5, 5), (1.0, 10)])
def test_from_noise(pipeline: DefectPipeline, normal_images: torch.Tensor, share: float, count: int) -> None:
    """The share from pure noise has no source; the rest has one."""
    bank = sample_bank(pipeline, normal_images, size=10, from_noise=share, **SETTINGS)
    assert len(bank) == 10
    assert (bank.sources == -1).sum() == count
    assert ((bank.sources >= 0) & (bank.sources < 4)).sum() == 10 - count


@pytest.mark.parametrize("size", [1, 2, 7])
def test_any_size(pipeline: DefectPipeline, normal_images: torch.Tensor, size: int) -> None:
    """Fewer textures than images, or a number that does not divide, will do."""
    bank = sample_bank(pipeline, normal_images, size=size, **SETTINGS)
    assert len(bank) == len(bank.sources) == size
    assert bank.sources.unique().numel() == min(size, 4)


def test_sample_bank_is_seeded(pipeline: DefectPipeline, normal_images: torch.Tensor) -> None:
    """The seed decides, and the global random state is not touched."""
    state = torch.get_rng_state()
    arguments: dict[str, Any] = {"size": 4, "from_noise": 0.25, **SETTINGS}
    first = sample_bank(pipeline, normal_images, seed=1, **arguments)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    second = sample_bank(pipeline, normal_images, seed=1, **arguments)
    other = sample_bank(pipeline, normal_images, seed=2, **arguments)
    assert torch.equal(first.textures, second.textures)
    assert torch.equal(first.sources, second.sources)
    assert not torch.equal(first.textures, other.textures)


def test_texture_is_paired_with_its_source(
    pipeline: DefectPipeline,
    normal_images: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a network that changes nothing, a texture looks like the source it names."""
    monkeypatch.setattr(pipeline_module, "denoise", lambda _, sample, *__: sample)
    bank = sample_bank(pipeline, normal_images, size=9, strength=(0.0, 0.0), start=(1, 1), **SETTINGS)
    difference = bank.textures.float() - normal_images[bank.sources].float()
    assert difference.abs().max() < 16


def test_strength_and_start_stay_in_range(
    pipeline: DefectPipeline,
    normal_images: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each texture has a strength of its own; both ranges are kept and used, ends included."""
    strengths, starts = [], []
    original = DefectPipeline.__call__

    def spy(self: DefectPipeline, **arguments: Any) -> Any:  # ruff: ignore[any-type]
        perturbed, undisturbed = arguments["strength"].chunk(2)
        strengths.extend(perturbed.tolist())
        assert not undisturbed.any()
        starts.append(arguments["start"])
        return original(self, **{**arguments, "num_inference_steps": 1})

    monkeypatch.setattr(DefectPipeline, "__call__", spy)
    sample_bank(pipeline, normal_images, size=40, strength=(0.2, 0.6), start=(5, 7), batch_size=2)
    assert len(strengths) == 40
    assert len(set(strengths)) == 40
    assert 0.2 <= min(strengths) < 0.3
    assert 0.5 < max(strengths) <= 0.6
    assert set(starts) == {5, 6, 7}


def test_detail_is_given_back(pipeline: DefectPipeline, normal_images: torch.Tensor) -> None:
    """Without a perturbation a texture with all of its detail is the normal image itself; without detail it is not."""
    arguments: dict[str, Any] = {"size": 4, "strength": (0.0, 0.0), "start": (300, 300), "num_inference_steps": 2}
    whole = sample_bank(pipeline, normal_images, detail=(1.0, 1.0), **arguments)
    bare = sample_bank(pipeline, normal_images, detail=(0.0, 0.0), **arguments)
    normal = normal_images[whole.sources].int()
    assert (whole.textures.int() - normal).abs().max() <= 1
    assert (bare.textures.int() - normal).abs().max() > 20


def test_default_detail(pipeline: DefectPipeline, normal_images: torch.Tensor) -> None:
    """Each texture gets back a share of its own, from nothing to everything."""
    arguments: dict[str, Any] = {"size": 8, "seed": 3, **SETTINGS}
    textures = sample_bank(pipeline, normal_images, **arguments).textures
    assert DEFAULT_DETAIL == (0.0, 1.0)
    assert torch.equal(textures, sample_bank(pipeline, normal_images, detail=(0.0, 1.0), **arguments).textures)
    bare, whole = (
        sample_bank(pipeline, normal_images, detail=(share, share), **arguments).textures.float()
        for share in (0.0, 1.0)
    )
    free = (whole > 0) & (whole < 255) & (bare > 0) & (bare < 255) & ((whole - bare).abs() > 30)
    shares = []
    for index in range(8):
        pixels = free[index]
        ratio = (textures[index].float() - bare[index])[pixels] / (whole[index] - bare[index])[pixels]
        assert (ratio - ratio.median()).abs().max() < 0.1
        shares.append(ratio.median().item())
    assert len({round(share, 2) for share in shares}) > 4
    assert min(shares) > -0.02
    assert max(shares) < 1.02


def test_inpaint(pipeline: DefectPipeline, normal_images: torch.Tensor) -> None:
    """Outside of its mask a texture is the normal image, within it is not; there is a mask for every texture."""
    arguments: dict[str, Any] = {"size": 10, "strength": (1.0, 2.0), "detail": (0.0, 0.0), **SETTINGS}
    bank = sample_bank(pipeline, normal_images, inpaint=True, **arguments)
    assert bank.masks is not None
    assert bank.masks.shape == (10, 1, 32, 32)
    assert bank.masks.dtype == torch.bool
    difference = (bank.textures.int() - normal_images[bank.sources].int()).abs().amax(dim=1, keepdim=True)
    assert difference[~bank.masks].max() <= 1
    assert difference[bank.masks].float().mean() > 20
    assert len({tuple(mask.flatten().tolist()) for mask in bank.masks}) == 10
    again = sample_bank(pipeline, normal_images, inpaint=True, **arguments)
    assert torch.equal(again.masks, bank.masks)
    assert torch.equal(again.textures, bank.textures)
    assert sample_bank(pipeline, normal_images, **arguments).masks is None


def test_inpaint_both_of_a_pair(
    pipeline: DefectPipeline,
    normal_images: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The undisturbed sample is in-painted in the same masks, so that at ``r = 1`` the perturbation alone is left."""
    seen: list[torch.Tensor] = []
    original = DefectPipeline.__call__

    def spy(self: DefectPipeline, **arguments: Any) -> Any:  # ruff: ignore[any-type]
        perturbed, undisturbed = arguments["mask"].chunk(2)
        assert torch.equal(perturbed, undisturbed)
        seen.append(perturbed)
        return original(self, **arguments)

    monkeypatch.setattr(DefectPipeline, "__call__", spy)
    bank = sample_bank(
        pipeline, normal_images, size=4, strength=(0.0, 0.0), detail=(1.0, 1.0), inpaint=True, **SETTINGS
    )
    assert torch.equal(torch.cat(seen), bank.masks)
    assert (bank.textures.int() - normal_images[bank.sources].int()).abs().max() <= 1


def test_inpaint_from_noise_alone(pipeline: DefectPipeline, normal_images: torch.Tensor) -> None:
    """Textures from pure noise are perturbed all over."""
    bank = sample_bank(pipeline, normal_images, size=3, from_noise=1.0, inpaint=True, **SETTINGS)
    assert bank.masks is None
    assert (bank.sources == -1).all()


def test_inpaint_and_from_noise(pipeline: DefectPipeline, normal_images: torch.Tensor) -> None:
    """With both kinds of texture, the mask of a paired texture is still its own."""
    arguments: dict[str, Any] = {"size": 10, "strength": (1.0, 2.0), "detail": (0.0, 0.0), **SETTINGS}
    bank = sample_bank(pipeline, normal_images, from_noise=0.4, inpaint=True, **arguments)
    paired = (bank.sources >= 0).nonzero().flatten()
    masks = bank.get_masks(torch.arange(10), (32, 32))[paired]
    normal = normal_images[bank.sources[paired]].int()
    difference = (bank.textures[paired].int() - normal).abs().amax(dim=1, keepdim=True)
    assert difference[~masks].max() <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("wild", (0, 1), (1, 2)), "Unknown perturbation 'wild'"),
        (("constant", (2, 1), (1, 2)), "strength must be two numbers"),
        (("scaled", (-1, 1), (1, 2)), "strength must be two numbers"),
        (("constant", (0, 1), (0, 2)), "start must be two timesteps"),
        (("constant", (0, 1), (900, 1000)), "start must be two timesteps"),
        (("constant", (0, 1), (1, 2), -0.1), "from_noise must lie"),
        (("constant", (0, 1), (1, 2), 1.5), "from_noise must lie"),
        (("constant", (0, 1), (1, 2), 0.0, (0.5,)), "detail must be two numbers"),
        (("constant", (0, 1), (1, 2), 0.0, (0.5, 0.2)), "detail must be two numbers"),
        (("constant", (0, 1), (1, 2), 0.0, (0.5, 1.2)), "detail must be two numbers"),
    ],
)
def test_settings_are_checked(settings: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_bank_settings(*settings)
