# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the bank of textures."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anomalib_ddpm_st.synthesis import TextureBank
from anomalib_ddpm_st.synthesis.texture_bank import TENSORS_FILE, thumbnails


def make_bank(sources: list[int], levels: tuple[float, ...] = (0.1, 0.5, 0.9)) -> TextureBank:
    """Bank of flat textures whose value is their index, with flat normal images of the given brightness levels."""
    textures = torch.arange(len(sources)).reshape(-1, 1, 1, 1).expand(-1, 3, 16, 16).to(torch.uint8)
    normal = torch.tensor(levels).reshape(-1, 1, 1, 1).expand(-1, 3, 16, 16)
    return TextureBank(textures, torch.tensor(sources), thumbnails(normal))


def flat(*levels: float) -> torch.Tensor:
    """Flat images of the given brightness levels."""
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
    """Every texture of the nearest normal image is drawn eventually, and no other."""
    bank = make_bank([0, 1, 2, 1, 0, 1])
    assert drawn(bank, flat(0.15, 0.85, 0.55)) == [{0, 4}, {2}, {1, 3, 5}]


def test_sources_without_texture_are_skipped() -> None:
    """A normal image without textures is never the match."""
    bank = make_bank([0, 2, 2])
    assert drawn(bank, flat(0.52, 0.48, 0.5 - 0.01)) == [{1, 2}, {0}, {0}]


def test_draw_is_even_and_seeded() -> None:
    """All eligible textures are equally likely, and the draw depends on the generator alone."""
    bank = make_bank([0, 0, 0, 0])
    images = flat(0.1).expand(4000, -1, -1, -1)
    indices = bank.draw(images, torch.Generator().manual_seed(1))
    assert torch.equal(indices, bank.draw(images, torch.Generator().manual_seed(1)))
    assert (torch.bincount(indices, minlength=4) - 1000).abs().max() < 130


def test_draw_by_content(normal_images: torch.Tensor) -> None:
    """An image finds its own texture among others, even if it is slightly changed."""
    bank = TextureBank(normal_images, torch.arange(4), thumbnails(normal_images / 255))
    order = torch.tensor([2, 0, 3, 1])
    images = (normal_images[order] / 255 + 0.03 * torch.randn(4, 3, 32, 32)).clamp(0, 1)
    assert torch.equal(bank.draw(images), order)


def test_get() -> None:
    """Textures have values in [0, 1], and are resized to the requested size."""
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
    """A saved bank is loaded unchanged."""
    bank = make_bank([0, 1, 2])
    bank.save(tmp_path)
    loaded = TextureBank.load(str(tmp_path))
    assert len(loaded) == 3
    for name in ("textures", "sources", "source_thumbnails"):
        assert torch.equal(getattr(loaded, name), getattr(bank, name))
        assert getattr(loaded, name).dtype == getattr(bank, name).dtype
    assert loaded.aspect is None


def test_to() -> None:
    """A bank that is on the device already is not copied; else all of its tensors move."""
    bank = make_bank([0, 1])
    bank.aspect = torch.tensor(1.5)
    assert bank.to(torch.device("cpu")) is bank
    moved = bank.to(torch.device("meta"))
    for name in ("textures", "sources", "source_thumbnails"):
        before, after = getattr(bank, name), getattr(moved, name)
        assert before.device.type == "cpu"
        assert after.device.type == "meta"
        assert (after.shape, after.dtype) == (before.shape, before.dtype)
    assert moved.aspect is bank.aspect


@pytest.mark.parametrize("size", [(32, 64), (64, 32), (64, 64), (16, 40), (8, 8)])
def test_textures_keep_their_aspect_ratio(size: tuple[int, int]) -> None:
    """A disc stays a disc, in the centre, on images of any aspect ratio."""
    grid = torch.linspace(-1, 1, 64)
    disc = (grid[:, None] ** 2 + grid[None] ** 2 < 0.2).expand(1, 3, -1, -1)
    bank = TextureBank((disc * 255).to(torch.uint8), torch.tensor([0]), torch.zeros(1, 768))
    texture = bank.get(torch.tensor([0]), size)
    assert texture.shape == (1, 3, *size)
    inside = texture[0, 0] > 0.5
    rows, columns = inside.any(dim=1).sum().item(), inside.any(dim=0).sum().item()
    diameter = 0.2**0.5 * max(size)
    assert columns == pytest.approx(min(diameter, size[1]), abs=2)
    assert rows == pytest.approx(min(diameter, size[0]), abs=2)
    assert torch.equal(inside, inside.flip(0, 1))


def test_textures_of_squeezed_images_are_stretched() -> None:
    """A bank of wide images that were resized to squares gives wide textures for wide images."""
    columns = torch.arange(64).expand(1, 3, 64, 64).to(torch.uint8)
    bank = TextureBank(columns, torch.tensor([0]), torch.zeros(1, 768), aspect=torch.tensor(2.0))
    wide = bank.get(torch.tensor([0]), (64, 128)) * 255
    assert wide[..., 0].max() < 0.3
    assert wide[..., -1].min() > 62.7
    square = bank.get(torch.tensor([0]), (128, 128)) * 255
    assert 15 < square[..., 0].mean() < 17
    assert bank.to(torch.device("meta")).aspect == 2


def test_aspect_is_saved(tmp_path: Path) -> None:
    """The aspect ratio is saved with the textures; another bank in the same folder leaves none behind."""
    bank = make_bank([0])
    bank.aspect = torch.tensor(1.5)
    bank.save(tmp_path)
    assert TextureBank.load(tmp_path).aspect.item() == pytest.approx(1.5)
    make_bank([0]).save(tmp_path)
    assert TextureBank.load(tmp_path).aspect is None


@pytest.mark.parametrize("size", [(48, 48), (16, 40), (40, 24)])
def test_missing_detail(size: tuple[int, int]) -> None:
    """What an image loses at the size of the textures: grain, but nothing of smooth images."""
    bank = make_bank([0])
    images = torch.rand(2, 3, *size)
    detail = bank.missing_detail(images)
    assert detail.shape == images.shape
    assert detail.std() > 0.1
    assert detail.mean().abs() < 0.01
    assert bank.missing_detail(torch.full_like(images, 0.3)).abs().max() < 1e-5


@pytest.mark.parametrize("size", [(16, 16), (9, 12)])
def test_small_images_miss_nothing(size: tuple[int, int]) -> None:
    """Textures at least as large as the images hold all of their detail."""
    assert make_bank([0]).missing_detail(torch.rand(2, 3, *size)).tolist() == 0


def test_load_nothing(tmp_path: Path) -> None:
    """The message names the folder."""
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        TextureBank.load(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "tensors"])
def test_load_damaged(damage: str, tmp_path: Path) -> None:
    """The message names the file and the remedy."""
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
    """A bank without textures raises an error at once."""
    with pytest.raises(ValueError, match="at least one"):
        TextureBank(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), torch.zeros(0), torch.zeros(1, 768))
