# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the reading of normal images."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import Folder, ImageBatch
from anomalib.pre_processing import PreProcessor
from PIL import Image
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import (
    CenterCrop,
    Compose,
    Grayscale,
    Identity,
    InterpolationMode,
    Lambda,
    Normalize,
    Pad,
    RandomCrop,
    RandomHorizontalFlip,
    Resize,
    ToDtype,
    Transform,
)

from anomalib_ddpm_st.core import images as module
from anomalib_ddpm_st.core.canonical_pose import CanonicalPose, PoseFrame
from anomalib_ddpm_st.core.images import NormalImages, evenly_spaced
from anomalib_ddpm_st.core.transforms import find_transform, make_resize

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
# How far a rounded value may be from one that is not.
ROUNDING = 0.5 / 255 + 1e-4
FLIP = RandomHorizontalFlip(p=1.0)
FLIP_IMAGE = Lambda(lambda image: image.flip(-1), tv_tensors.Image)
NORMALIZE = Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
BICUBIC = {"interpolation": InterpolationMode.BICUBIC, "antialias": True}
# What a dataset may come in.
WRAPS: dict[str, Callable[[Dataset], Dataset]] = {
    "alone": lambda dataset: dataset,
    "subset": lambda dataset: Subset(dataset, [0]),
    "concatenation": lambda dataset: ConcatDataset([Subset(dataset, [0]), dataset]),
}


def save(path: Path, pixels: np.ndarray = PIXELS, mode: str | None = None) -> Path:
    """Write pixels to a file, converted to another mode if asked for."""
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)
    return path


def noise(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """Write images of random pixels."""
    rng = np.random.default_rng(0)
    return [save(folder / f"{index}.png", rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for index in range(count)]


def pixels_of(path: str | Path) -> torch.Tensor:
    """Pixels of a file as they are."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def make_data(root: Path, segmentation: bool = False, **settings: Any) -> Folder:  # noqa: ANN401
    """Datamodule, not set up yet, with equal images for training and for the test, in which they come first."""
    for folder in ("good", "again", "bad", "mask"):
        (root / folder).mkdir()
        noise(root / folder, 3, (40, 60))
    folders = {"normal_dir": "good", "normal_test_dir": "again"}
    if segmentation:
        folders |= {"abnormal_dir": "bad", "mask_dir": "mask"}
    return Folder(name="x", root=root, num_workers=0, **{**folders, "val_split_mode": "same_as_test", **settings})


class Scaled(Transform):
    """Multiplies and adds."""

    def __init__(self, factor: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        self.factor, self.offset = factor, offset

    def transform(self, inpt: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
        """Transform images, and leave masks as they are."""
        del params
        return inpt if isinstance(inpt, tv_tensors.Mask) else inpt * self.factor + self.offset


class Single(Transform):
    """Works with 32 bit only; halves all values."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.convolution.weight.copy_(torch.eye(3).reshape(3, 3, 1, 1) / 2)

    @torch.no_grad()
    def transform(self, inpt: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
        """Transform an image."""
        del params
        return self.convolution(inpt)


class Mirror(PreProcessor):
    """Pre-processor with a hook of its own, which keeps the batches that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[ImageBatch] = []

    def on_test_batch_start(self, trainer: Any, pl_module: Any, batch: ImageBatch, *args: int) -> None:  # noqa: ANN401
        """Flip images."""
        del trainer, pl_module, args
        self.batches.append(batch)
        batch.image = batch.image.flip(-1)


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize(
    "transform",
    [
        Resize((24, 32), antialias=True),
        Resize((24, 32), antialias=False),
        Resize((70, 50), **BICUBIC),
        Compose([Resize(24), CenterCrop(24)]),
        Compose([Resize(24), Pad((3, 9))]),
        Compose([Resize((24, 32)), Pad(4, fill={tv_tensors.Image: 0.5, "others": 0})]),
        Compose([Resize((24, 32)), Grayscale(num_output_channels=3)]),
        Compose([Resize((24, 32)), Lambda(lambda image: image.clamp(0.2, 0.6), tv_tensors.Image)]),
        CenterCrop((31, 34)),
        CenterCrop(50),
        None,
    ],
)
def test_pixels_are_those_of_a_test_batch(transform: Transform | None, attached: bool, tmp_path: Path) -> None:
    """After a real data loader and the hook that Lightning calls; a Trainer lets the datamodule resize, too."""
    data = make_data(tmp_path, segmentation=True)
    pre_processor = PreProcessor(transform)
    if attached:
        data.trainer = SimpleNamespace(model=SimpleNamespace(pre_processor=pre_processor))
    data.setup()
    assert (data.test_data.augmentations is not None) == (attached and find_transform(transform, Resize) is not None)
    batch = next(iter(data.test_dataloader()))
    pre_processor.on_test_batch_start(None, None, batch, 0)
    images = NormalImages.from_datamodule(data, pre_processor)
    assert len(images) == 3
    for index, (path, expected) in enumerate(zip(batch.image_path[:3], torch.as_tensor(batch.image), strict=False)):
        assert images.paths[index] == path.replace("again", "good")
        assert images[index].dtype == torch.uint8
        torch.testing.assert_close(images[index] / 255, expected.clamp(0, 1), atol=ROUNDING, rtol=0)


@pytest.mark.parametrize(
    ("settings", "flipped"),
    [
        ({"train_augmentations": FLIP}, False),
        ({"augmentations": FLIP}, True),
        ({"augmentations": FLIP, "segmentation": True}, True),
        ({"augmentations": FLIP_IMAGE}, True),
        ({"augmentations": FLIP_IMAGE, "segmentation": True}, True),
        ({"test_augmentations": FLIP}, True),
        ({"val_augmentations": FLIP}, False),
        ({"augmentations": FLIP, "test_augmentations": Identity()}, False),
        # Without test images it is those of the validation that count, without these it is the setting.
        ({"val_augmentations": FLIP, "test_split_mode": "none", "val_split_mode": "from_train"}, True),
        ({"val_augmentations": FLIP, "test_split_mode": "none", "val_split_mode": "none"}, False),
        ({"test_augmentations": FLIP, "test_split_mode": "none", "val_split_mode": "none"}, True),
    ],
)
def test_augmentations_of_a_datamodule(settings: dict[str, Any], flipped: bool, tmp_path: Path) -> None:
    """Those of test images count; the training set keeps its own for other readers."""
    data = make_data(tmp_path, **settings)
    data.setup()
    images = NormalImages.from_datamodule(data)
    expected = pixels_of(images.paths[0])
    assert torch.equal(images[0], expected.flip(-1) if flipped else expected)
    assert data.train_data.augmentations is data.train_augmentations


@pytest.mark.parametrize(
    ("train", "test", "flipped"),
    [(FLIP, "missing", True), (None, "missing", False), (FLIP, None, False), (None, FLIP, True)],
)
@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_augmentations_of_datasets(
    train: Transform | None,
    test: Transform | str | None,
    flipped: bool,
    wrap: Callable[[Dataset], Dataset],
    tmp_path: Path,
) -> None:
    """Those of the validation or test set, if there is one."""
    data = make_data(tmp_path)
    data.setup()
    data.train_data.augmentations, data.test_data.augmentations = train, test
    evaluation = None if test == "missing" else wrap(data.test_data)
    images = NormalImages.from_dataset(wrap(data.train_data), make_resize((40, 60)), evaluation)
    expected = pixels_of(images.paths[0])
    assert torch.equal(images[0], expected.flip(-1) if flipped else expected)


def test_augmentations_may_change_the_kind_of_values(tmp_path: Path) -> None:
    """Whole numbers are scaled again, as in anomalib's items."""
    convert = ToDtype({tv_tensors.Image: torch.uint8, "others": None}, scale=True)
    data = make_data(tmp_path, augmentations=convert)
    data.setup()
    images = NormalImages.from_datamodule(data, PreProcessor(Scaled(0.5)))
    torch.testing.assert_close(images[0] / 255, data.test_data[0].image / 2, atol=ROUNDING, rtol=0, check_dtype=False)


def test_files_of_a_synthetic_set_are_kept(tmp_path: Path) -> None:
    """They are those of the dataset, which deletes them in the end."""
    data = make_data(tmp_path, val_split_mode="synthetic", val_augmentations=FLIP)
    data.setup()
    paths = [Path(path) for path in data.val_data.samples["image_path"]]
    images = NormalImages.from_dataset(data.val_data)
    assert torch.equal(images[0], pixels_of(images.paths[0]).flip(-1))
    del images
    assert all(path.exists() for path in paths)


def test_parts_of_datasets(tmp_path: Path) -> None:
    """Every image in order, under its own file; defective images and those without a label are left out."""
    data = make_data(tmp_path)
    data.setup()
    samples = data.train_data.samples.copy()
    samples["label_index"] = [0, 1, 0]
    data.train_data.samples = samples
    samples = data.test_data.samples.copy()
    samples["label_index"] = [0, -1, 0]
    data.test_data.samples = samples
    images = NormalImages(ConcatDataset([Subset(data.train_data, [2, 1, 0]), Subset(data.test_data, [1, 2])]))
    assert images.paths == [str(tmp_path / name) for name in ("good/2.png", "good/0.png", "again/2.png")]
    assert len(images) == 3
    assert all(torch.equal(images[index], pixels_of(path)) for index, path in enumerate(images.paths))


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_dataset_without_a_list_of_images(wrap: Callable[[Dataset], Dataset]) -> None:
    """The message says what it was and what to do."""
    with pytest.raises(TypeError, match=r"given as a TensorDataset: wrap them in anomalib\.data\.Folder"):
        NormalImages.from_dataset(wrap(TensorDataset(torch.zeros(1))))


@pytest.mark.parametrize(("pre_processor", "flipped"), [(Mirror(), True), (FLIP, False), (nn.Sequential(FLIP), False)])
def test_other_pre_processors(pre_processor: nn.Module, flipped: bool, tmp_path: Path) -> None:
    """A hook is followed; what Lightning does not call is not applied."""
    path = noise(tmp_path, 1, (12, 20))[0]
    images = NormalImages(module.ImageFiles([path]), pre_processor)
    assert torch.equal(images[0], pixels_of(path).flip(-1) if flipped else pixels_of(path))
    assert images.aspect() == pytest.approx(20 / 12, rel=1e-3)


def test_hook_gets_a_batch_as_in_a_test(tmp_path: Path) -> None:
    """In 32 bit, with masks, after the augmentations."""
    data = make_data(tmp_path, segmentation=True, augmentations=Resize((24, 32)))
    data.setup()
    pre_processor = Mirror()
    images = NormalImages.from_datamodule(data, pre_processor)
    torch.testing.assert_close(images[0] / 255, data.test_data[0].image.flip(-1), atol=ROUNDING, rtol=0)
    batch = pre_processor.batches[0]
    assert batch.image.dtype == torch.float32
    assert batch.gt_mask.shape == (1, 24, 32)


def test_transform_for_32_bit_only(tmp_path: Path) -> None:
    """Gets 32 bit."""
    path = noise(tmp_path, 1, (16, 32))[0]
    images = NormalImages(
        module.ImageFiles([path]), PreProcessor(Compose([Resize((16, 16), antialias=False), Single()]))
    )
    plain = NormalImages.from_files([path], (16, 16))
    torch.testing.assert_close(images[0] / 255, plain[0] / 510, atol=2 * ROUNDING, rtol=0)
    assert images.aspect() == pytest.approx(2.0)


@pytest.mark.parametrize("place", ["pre_processor", "augmentations"])
def test_random_transforms(place: str, tmp_path: Path) -> None:
    """Equal at each call, different for each image, and other random numbers are not touched."""
    files = module.ImageFiles([save(tmp_path / "image.png")] * 8)
    crop = RandomCrop((8, 8))
    images = NormalImages(files, **{place: crop if place == "augmentations" else PreProcessor(crop)})
    first = [images[index] for index in range(len(images))]
    assert len({image.numpy().tobytes() for image in first}) > 3
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert all(torch.equal(images[index], image) for index, image in enumerate(first))
    images.aspect()
    assert torch.equal(torch.get_rng_state(), state)


def test_number_of_threads_does_not_matter(tmp_path: Path) -> None:
    """The same folder gives the same cache key on any number of cores."""
    paths = noise(tmp_path, 2, (300, 410))
    threads = torch.get_num_threads()
    loaded = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            loaded.append(NormalImages.from_files(paths, (256, 256)).load())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(loaded[0], loaded[1])
    assert torch.equal(loaded[0], loaded[2])


def test_halves_are_rounded_alike(tmp_path: Path) -> None:
    """Rounding errors of the reading do not decide: images of one pixel more and less have the mean of the two."""
    pixels = np.stack([np.arange(256), np.arange(256) ^ 1], axis=1).astype(np.uint8)[..., None].repeat(3, axis=2)
    images = NormalImages.from_files([save(tmp_path / "image.png", pixels)], (256, 1))
    means = torch.arange(256) // 2 * 2 + 0.5
    assert torch.equal(images[0][0, :, 0], means.double().round().to(torch.uint8))


def test_files_at_their_own_size(tmp_path: Path) -> None:
    """Images come out as they were written, in their order."""
    paths = [save(tmp_path / "b.png"), save(tmp_path / "a.png", 255 - PIXELS)]
    images = NormalImages.from_files(paths)
    assert images.paths == list(map(str, paths))
    assert torch.equal(images[0], torch.from_numpy(PIXELS).permute(2, 0, 1))
    assert torch.equal(images.load(), torch.stack([images[0], 255 - images[0]]))


def test_files_of_mixed_sizes(tmp_path: Path) -> None:
    """Images of any size are brought to one size, height first."""
    tall = np.zeros((60, 30, 3), dtype=np.uint8)
    tall[:30] = 200
    paths = [str(save(tmp_path / "tall.png", tall)), str(save(tmp_path / "wide.jpg"))]
    images = NormalImages.from_files(paths, (16, 8)).load()
    assert images.shape == (2, 3, 16, 8)
    assert (images[0, :, :7] == 200).all()
    assert (images[0, :, 9:] == 0).all()


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA", "CMYK"])
def test_modes(mode: str, tmp_path: Path) -> None:
    """Every mode of 8 bits becomes what PIL makes of it in RGB."""
    path = save(tmp_path / ("image.tif" if mode == "CMYK" else "image.png"), mode=mode)
    image = NormalImages.from_files([path])[0]
    assert torch.equal(image, pixels_of(path))
    if mode in {"L", "LA", "1"}:
        assert torch.equal(image[0], image[2])


def test_transparent_pixels_keep_their_colour(tmp_path: Path) -> None:
    """The alpha channel is left out."""
    pixels = np.concatenate([PIXELS, np.zeros((12, 20, 1), dtype=np.uint8)], axis=2)
    images = NormalImages.from_files([save(tmp_path / "image.png", pixels)])
    assert torch.equal(images[0], torch.from_numpy(PIXELS).permute(2, 0, 1))


@pytest.mark.parametrize(("suffix", "kind"), [(".png", np.uint16), (".tif", np.uint16), (".tif", np.float32)])
def test_more_than_eight_bits(suffix: str, kind: type, tmp_path: Path) -> None:
    """Grey images of 16 or 32 bits are not silently turned white."""
    path = save(tmp_path / f"deep{suffix}", np.linspace(0, 65535, 12 * 20).reshape(12, 20).astype(kind))
    with pytest.raises(ValueError, match=rf"deep{suffix} cannot be read \(it has more than 8 bits"):
        NormalImages.from_files([path])[0]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
@pytest.mark.parametrize("kept", [0, 10, 0.5])
def test_truncated_file(suffix: str, kept: float, tmp_path: Path) -> None:
    """The message names the file, whatever is missing of it."""
    good = save(tmp_path / f"good{suffix}", np.kron(PIXELS, np.ones((8, 8, 1), dtype=np.uint8)))
    content = good.read_bytes()
    bad = tmp_path / f"bad{suffix}"
    bad.write_bytes(content[: int(kept if kept >= 1 else kept * len(content))])
    with pytest.raises(ValueError, match=rf"bad{suffix} cannot be read"):
        NormalImages.from_files([good, bad], (12, 20)).load()


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    """A file that is not there, is no image, or is a folder is named, and all of them are found in one go."""
    good = save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    names = ("nowhere.png", "text.png", "folder.png")
    images = NormalImages.from_files([good, *(tmp_path / name for name in names)])
    for index, (name, problem) in enumerate(zip(names, images.unread(), strict=True), start=1):
        assert isinstance(problem, ValueError)
        with pytest.raises(ValueError, match=name) as error:
            images[index]
        assert str(error.value) == str(problem)


@pytest.mark.parametrize("kept", [0, 0.5])
def test_broken_file_of_a_datamodule(kept: float, tmp_path: Path) -> None:
    """Named, too, although anomalib reads it."""
    data = make_data(tmp_path)
    path = tmp_path / "good" / "1.png"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    data.setup()
    with pytest.raises(ValueError, match=r"1\.png cannot be read \(.+\): repair it or remove it"):
        NormalImages.from_datamodule(data).load()


@pytest.mark.parametrize("offset", [0.1, -0.1, 0.0])
def test_overshoot_is_cut_off(offset: float, tmp_path: Path) -> None:
    """Values that leave [0, 1] by little, as of bicubic interpolation, are clamped."""
    stripes = np.zeros((8, 16, 3), dtype=np.uint8)
    stripes[:, 4:8] = stripes[:, 12:] = 255
    path = save(tmp_path / "stripes.png", stripes)
    transform = Scaled(offset=offset) if offset else Resize((8, 50), **BICUBIC)
    seen = transform(tv_tensors.Image(pixels_of(path) / 255))
    assert seen.min() < 0 or seen.max() > 1
    image = NormalImages(module.ImageFiles([path]), PreProcessor(transform))[0]
    torch.testing.assert_close(image / 255, torch.as_tensor(seen).clamp(0, 1), atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("place", ["pre_processor", "augmentations"])
@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (Scaled(255), r"values from 0\.00 to 255\.00 .+ needs values in \[0, 1\]: scale them to \[0, 1\]\."),
        (Scaled(offset=0.7), r"to 1\.70 .+ scale them"),
        (Scaled(offset=-0.7), r"from -0\.70 .+ scale them"),
        (Scaled(float("nan")), r"from nan .+ scale them"),
        (Compose([Resize((8, 8)), NORMALIZE]), "remove Normalize from the transforms"),
        (Grayscale(), r"has 1 channel after .+ needs 3: set num_output_channels=3 of Grayscale"),
    ],
)
def test_what_a_detector_cannot_see(place: str, transform: Transform, message: str, tmp_path: Path) -> None:
    """The message names the file and what to change; Normalize only where there is one."""
    path = save(tmp_path / "image.png", np.uint8([[[0] * 3, [255] * 3]]))
    images = NormalImages(
        module.ImageFiles([path]), **{place: transform if place == "augmentations" else PreProcessor(transform)}
    )
    with pytest.raises(ValueError, match=rf"image\.png.*{message}") as error:
        images[0]
    assert ("Normalize" in str(error.value)) == (find_transform(transform, Normalize) is not None)


def test_normalisation_is_undone(tmp_path: Path) -> None:
    """The pixels are those without it."""
    data = make_data(tmp_path)
    data.setup()
    images = NormalImages.from_datamodule(data, PreProcessor(Compose([Resize((32, 32)), NORMALIZE])), NORMALIZE)
    assert torch.equal(images.load(), NormalImages.from_datamodule(data, PreProcessor(Resize((32, 32)))).load())
    assert images.aspect() == pytest.approx(1.5, rel=0.01)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images(count: int, tmp_path: Path) -> None:
    """The message says how many there are and how many are needed."""
    images = NormalImages.from_files([save(tmp_path / "one.png")] * count, (12, 20))
    with pytest.raises(ValueError, match=f"at least 2 normal images, but found {count}"):
        images.load()


def test_one_image_where_that_will_do(tmp_path: Path) -> None:
    """Said by who asks; none is never enough."""
    path = save(tmp_path / "only.png")
    assert NormalImages.from_files([path], (4, 4)).load(min_images=1).shape == (1, 3, 4, 4)
    with pytest.raises(ValueError, match="at least 1 normal image, but found 0"):
        NormalImages.from_files([], (4, 4)).load(min_images=1)


@pytest.mark.parametrize("transform", [None, Resize(8)])
def test_images_of_different_sizes(transform: Transform | None, tmp_path: Path) -> None:
    """The message names two files and both sizes."""
    paths = [save(tmp_path / "first.png", PIXELS[:10]), save(tmp_path / "odd.png", PIXELS[:, :10])]
    images = NormalImages(module.ImageFiles(paths), PreProcessor(transform))
    assert len({images[0].shape, images[1].shape}) == 2
    with pytest.raises(ValueError, match=r"differ in size \(.+ x .+ and .+ x .+ pixels, .+first\.png and .+odd\.png\)"):
        images.load()


@pytest.mark.parametrize(("count", "most"), [(10, 4), (7, 7), (9, 8), (5, 50)])
def test_most_images(count: int, most: int, tmp_path: Path) -> None:
    """Of more images, evenly spaced ones are taken, each once and in order."""
    paths = [save(tmp_path / f"{index}.png", np.full((4, 4, 3), index, dtype=np.uint8)) for index in range(count)]
    taken = NormalImages.from_files(paths).load(most)[:, 0, 0, 0].tolist()
    assert len(taken) == min(count, most)
    assert taken == sorted(set(taken))
    gaps = np.diff(taken)
    assert gaps.max() - gaps.min() <= 1
    assert (taken[0], taken[-1]) == (0, count - 1)


@pytest.mark.parametrize(("room", "expected"), [(3.5, [0, 2, 4]), (0.5, [0, 4]), (9, [0, 1, 2, 3, 4])])
def test_memory_is_bounded(room: float, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more images than fit, but as many as are needed."""
    paths = [save(tmp_path / f"{index}.png", np.full((4, 4, 3), index, dtype=np.uint8)) for index in range(5)]
    monkeypatch.setattr(module, "MAX_BYTES", int(room * 3 * 4 * 4))
    assert NormalImages.from_files(paths).load()[:, 0, 0, 0].tolist() == expected


@pytest.mark.parametrize("check_first", [False, True])
def test_each_file_is_read_once(check_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often images are loaded, and however many of them."""
    read: list[str] = []
    read_item = module.read_item
    monkeypatch.setattr(module, "read_item", lambda *entry: [read.append(entry[2]), read_item(*entry)][1])
    images = NormalImages.from_files(noise(tmp_path, 5, (12, 20)), (8, 8))
    if check_first:
        assert list(images.unread()) == []
    few = images.load(2)
    assert len(read) == (5 if check_first else 2)
    everything = images.load()
    images.aspect()
    assert torch.equal(images.load(), everything)
    assert torch.equal(everything[[0, 4]], few)
    assert sorted(read) == images.paths


@pytest.mark.parametrize(
    ("size", "transform", "aspect"),
    [
        ((40, 80), Resize((32, 32), antialias=False), 2.0),
        ((40, 80), Resize((32, 32), **BICUBIC), 2.0),
        ((80, 160), Resize((64, 64), interpolation=InterpolationMode.NEAREST), 2.0),
        ((40, 80), Compose([Resize((32, 32)), Grayscale(num_output_channels=3)]), 2.0),
        ((40, 80), Compose([Resize((32, 32)), FLIP]), 2.0),
        ((40, 80), Compose([Resize((32, 32)), Scaled(0.5, 0.2)]), 2.0),
        ((40, 80), Compose([Resize(32), CenterCrop(32)]), 1.0),
        ((40, 40), Compose([Resize((32, 64)), CenterCrop(32)]), 0.5),
        ((40, 80), None, 2.0),
        ((40, 80), Compose([Resize(32), Pad((0, 16))]), 1.0),
        ((20, 80), Compose([Resize(16), Pad((0, 24))]), 1.0),
        ((20, 80), Compose([Resize((32, 32)), Pad((0, 16), fill=1.0)]), 2.0),
        ((20, 80), Lambda(lambda image: image * 0 + 0.5, tv_tensors.Image), 4.0),
    ],
)
def test_aspect(size: tuple[int, int], transform: Transform | None, aspect: float, tmp_path: Path) -> None:
    """Of what the image shows: crops and padding do not distort it, colours do not matter."""
    images = NormalImages(module.ImageFiles(noise(tmp_path, 2, size)), PreProcessor(transform))
    assert images.aspect() == pytest.approx(aspect, rel=0.015)


@pytest.mark.parametrize(("widths", "aspect"), [((10, 20, 80), 2.0), ((10,), 1.0), ((80, 10), 4.5)])
def test_aspect_of_several_images(widths: tuple[int, ...], aspect: float, tmp_path: Path) -> None:
    """The median over the images before they are resized."""
    paths = [save(tmp_path / f"{width}.png", np.zeros((10, width, 3), dtype=np.uint8)) for width in widths]
    assert NormalImages.from_files(paths, (16, 16)).aspect() == pytest.approx(aspect)


def test_aspect_does_not_depend_on_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bank that a check of all files precedes is that of a command without such a check."""
    monkeypatch.setattr(module, "ASPECT_IMAGES", 3)
    paths = [save(tmp_path / f"{width}.png", PIXELS[:1].repeat(width, axis=0)) for width in (1, 2, 3, 4, 40, 50, 60)]
    images = [NormalImages.from_files(paths, (16, 16)) for _ in range(3)]
    images[1].load(2)
    assert list(images[2].unread()) == []
    assert len({each.aspect() for each in images}) == 1


def test_shown_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the headers alone, in pixels of the files, less what a crop leaves out."""
    paths = [save(tmp_path / f"{width}.png", np.zeros((40, width, 3), dtype=np.uint8)) for width in (40, 60, 60)]
    monkeypatch.setattr(module, "read_item", None)
    assert NormalImages.from_files(paths).shown_sizes() == [(40, 40), (40, 60), (40, 60)]
    crop = Compose([Resize((20, 20), antialias=False), CenterCrop((20, 10))])
    images = NormalImages(module.ImageFiles(paths), augmentations=crop)
    assert images.shown_sizes() == [pytest.approx(size, rel=0.1) for size in [(40, 20), (40, 30), (40, 30)]]


def write_bars(folder: Path, count: int = 4, size: tuple[int, int] = (64, 64)) -> list[Path]:
    """Images of a bar in different places."""
    paths = []
    for index in range(count):
        pixels = np.full((*size, 3), 200, dtype=np.uint8)
        pixels[10 + 3 * index : 18 + 3 * index, 8 + 2 * index : 48 + 2 * index] = 60
        paths.append(save(folder / f"{index}.png", pixels))
    return paths


@pytest.mark.parametrize("read_before", [True, False])
def test_turned_parts(read_before: bool, tmp_path: Path) -> None:
    """Images that were read before and after are turned, once; without a pose they are as they were."""
    images = NormalImages.from_files(write_bars(tmp_path))
    plain = NormalImages.from_files(images.paths).load()
    canonical = CanonicalPose(PoseFrame(20, 50))
    if read_before:
        images.load()
    expected = canonical.turn(plain)
    for _ in range(2):
        assert torch.equal(images.turn(canonical).load(), expected)
    assert torch.equal(images[2], expected[2])
    other = CanonicalPose(PoseFrame(64, 64))
    assert torch.equal(images.turn(other).load(), other.turn(plain))
    assert torch.equal(images.turn(None).load(), plain)


@pytest.mark.parametrize("size", [(64, 64), (64, 128)])
def test_aspect_of_turned_parts(size: tuple[int, int], tmp_path: Path) -> None:
    """A frame that is wider than high shows more from left to right; pixels keep their shape."""
    images = NormalImages.from_files(write_bars(tmp_path, size=size), (64, 64))
    stretch = images.aspect()
    assert stretch == pytest.approx(size[1] / size[0], rel=0.02)
    images.turn(CanonicalPose(PoseFrame(32, 128, stretch)))
    assert images.load().shape[-2:] == (64, 128)
    assert images.aspect() == pytest.approx(2 * stretch)


@pytest.mark.parametrize(("count", "most", "expected"), [(5, 5, [0, 1, 2, 3, 4]), (5, 3, [0, 2, 4]), (1, 9, [0])])
def test_evenly_spaced(count: int, most: int, expected: list[int]) -> None:
    """First and last item are chosen, and the gaps are equal."""
    assert evenly_spaced(count, most).tolist() == expected
