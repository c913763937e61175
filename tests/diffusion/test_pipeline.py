# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the sampling pipeline."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from anomalib_ddpm_st.diffusion import DefectPipeline, PerturbedDDPMScheduler, build_unet, load_pipeline
from anomalib_ddpm_st.diffusion import pipeline as pipeline_module
from anomalib_ddpm_st.diffusion.unet import patchify


def seeded(seed: int = 3) -> torch.Generator:
    """Seeded generator."""
    return torch.Generator().manual_seed(seed)


def replace_network(patch: pytest.MonkeyPatch, answer: torch.Tensor | None = None) -> list[int]:
    """Let the network answer with a known clean image, or with its own input; return the timesteps it is asked."""
    asked: list[int] = []

    def denoise(_: UNet2DModel, sample: torch.Tensor, timestep: torch.Tensor, *__: torch.Tensor) -> torch.Tensor:
        asked.append(int(timestep))
        return sample if answer is None else patchify(answer * 2 - 1, 4)

    patch.setattr(pipeline_module, "denoise", denoise)
    return asked


@pytest.mark.parametrize("arguments", [{"start_timestep": None}, {"start_timestep": 400}])
def test_save_and_load(pipeline: DefectPipeline, arguments: dict[str, Any], tmp_path: Path) -> None:
    """The loaded pipeline gives the same samples."""
    pipeline.save_pretrained(tmp_path)
    loaded = DefectPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.scheduler, PerturbedDDPMScheduler)
    arguments = {"images": torch.rand(2, 3, 32, 32), "num_inference_steps": 3, "delta": 0.3, **arguments}
    first = pipeline(**arguments, generator=seeded()).images
    assert torch.equal(first, loaded(**arguments, generator=seeded()).images)


@pytest.mark.parametrize("start", [None, 600])
def test_generator_decides_everything(pipeline: DefectPipeline, start: int | None) -> None:
    """Same generator, same images; another one, others; the global random state is not touched."""
    arguments: dict[str, Any] = {
        "images": torch.rand(2, 3, 32, 32),
        "num_inference_steps": 3,
        "delta": torch.tensor([0.2, 0.5]),
        "start_timestep": start,
    }
    state = torch.get_rng_state()
    first = pipeline(**arguments, generator=seeded()).images
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(first, pipeline(**arguments, generator=seeded()).images)
    assert not torch.equal(first, pipeline(**arguments, generator=seeded(4)).images)


def test_list_of_generators(pipeline: DefectPipeline) -> None:
    """With one generator for each sample, a sample does not depend on its neighbours."""
    images = torch.rand(2, 3, 32, 32)
    arguments: dict[str, Any] = {"num_inference_steps": 3, "delta": 0.3, "start_timestep": 300}
    both = pipeline(images=images, generator=[seeded(1), seeded(2)], **arguments).images
    alone = pipeline(images=images[1:], generator=[seeded(2)], **arguments).images
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("delta", "start"), [(0.0, 5), (0.0, 999), (0.4, 300)])
def test_perfect_network_gives_the_image_back(
    pipeline: DefectPipeline,
    delta: float,
    start: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last step shows the network's prediction: neither noise nor perturbation is left in the image."""
    images = torch.rand(2, 3, 32, 32)
    replace_network(monkeypatch, images)
    result = pipeline(
        images=images, start_timestep=start, delta=delta, num_inference_steps=6, generator=seeded()
    ).images
    torch.testing.assert_close(result, images, atol=1e-5, rtol=0)


def test_tiny_start_stays_close(pipeline: DefectPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that changes nothing, started just above zero, gives the image with almost no noise."""
    images = torch.rand(2, 3, 32, 32) * 0.8 + 0.1
    replace_network(monkeypatch)
    result = pipeline(images=images, start_timestep=1, generator=seeded()).images
    assert 0 < (result - images).abs().max() < 0.06


def test_paired_start_depends_on_the_image_and_noise_start_does_not(pipeline: DefectPipeline) -> None:
    """Only a paired sample sees the normal image."""
    one, other = torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)

    def sample(images: torch.Tensor, start: int | None) -> torch.Tensor:
        return pipeline(images=images, start_timestep=start, num_inference_steps=2, generator=seeded()).images

    assert torch.equal(sample(one, None), sample(other, None))
    assert not torch.equal(sample(one, 300), sample(other, 300))


def test_delta_changes_the_sample(pipeline: DefectPipeline) -> None:
    """A perturbation of one image leaves its neighbour alone, with one generator for each."""
    arguments: dict[str, Any] = {"images": torch.rand(2, 3, 32, 32), "num_inference_steps": 4, "start_timestep": 500}
    plain = pipeline(**arguments, delta=torch.tensor([2.0, 2.0]), generator=[seeded(1), seeded(2)]).images
    perturbed = pipeline(**arguments, delta=torch.tensor([2.0, 4.0]), generator=[seeded(1), seeded(2)]).images
    torch.testing.assert_close(perturbed[0], plain[0], atol=1e-5, rtol=0)
    assert not torch.allclose(perturbed[1], plain[1], atol=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Timesteps and sizes


@pytest.mark.parametrize(("start", "steps", "calls"), [(None, 5, 5), (400, 7, 7), (3, 20, 3), (1, 20, 1), (999, 1, 1)])
def test_timesteps(
    pipeline: DefectPipeline,
    start: int | None,
    steps: int,
    calls: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The network is asked from the start downwards, never twice, and never at zero."""
    images = torch.rand(1, 3, 32, 32)
    asked = replace_network(monkeypatch, images)
    pipeline(images=images, start_timestep=start, num_inference_steps=steps, generator=seeded())
    assert len(asked) == calls
    assert asked[0] == (999 if start is None else start)
    assert all(now > after for now, after in pairwise(asked))
    assert asked[-1] > 0


@pytest.mark.parametrize("size", [(32, 32), (30, 45), (1, 9), (40, 24)])
@pytest.mark.parametrize("start", [None, 200])
def test_shape_and_range(pipeline: DefectPipeline, size: tuple[int, int], start: int | None) -> None:
    """Any size comes out as it went in, with values in [0, 1]."""
    result = pipeline(
        images=torch.rand(2, 3, *size), start_timestep=start, num_inference_steps=2, delta=5.0, generator=seeded()
    ).images
    assert result.shape == (2, 3, *size)
    assert result.dtype == torch.float32
    assert result.min() >= 0
    assert result.max() <= 1
    assert result.std() > 0


def test_padding_does_not_move_the_image(pipeline: DefectPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is added to make the size fit is cut off at the same place."""
    images = torch.rand(1, 3, 27, 30) * 0.8 + 0.1
    replace_network(monkeypatch)
    result = pipeline(images=images, start_timestep=1, generator=seeded()).images
    assert (result - images).abs().max() < 0.06


def test_without_images() -> None:
    """Batch size and the size of the network decide."""
    pipeline = DefectPipeline(
        build_unet((32, 48), block_out_channels=(8, 8)), PerturbedDDPMScheduler(prediction_type="sample")
    )
    pipeline.set_progress_bar_config(disable=True)
    (result,) = pipeline(batch_size=3, num_inference_steps=2, generator=seeded(), return_dict=False)
    assert result.shape == (3, 3, 32, 48)


def test_paired_needs_images(pipeline: DefectPipeline) -> None:
    """The message says what to give."""
    with pytest.raises(ValueError, match="images"):
        pipeline(start_timestep=300)


@pytest.mark.parametrize("start", [0, -1, 1000])
def test_start_outside_of_the_schedule(pipeline: DefectPipeline, start: int) -> None:
    """The message names the range and what was given."""
    with pytest.raises(ValueError, match=rf"start_timestep must be a whole number between 1 and 999, got {start}"):
        pipeline(images=torch.rand(1, 3, 32, 32), start_timestep=start)


def test_errors_of_the_scheduler_reach_the_caller(pipeline: DefectPipeline) -> None:
    """Delta is checked."""
    with pytest.raises(ValueError, match="delta must not be negative"):
        pipeline(images=torch.rand(1, 3, 32, 32), start_timestep=100, delta=-1.0)


# ---------------------------------------------------------------------------------------------------------------------
# Loading


@pytest.fixture
def pipeline_dir(pipeline: DefectPipeline, tmp_path: Path) -> Path:
    """Folder with an untrained DDPM."""
    pipeline.save_pretrained(tmp_path / "ddpm")
    return tmp_path / "ddpm"


def test_load_pipeline(pipeline: DefectPipeline, pipeline_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The weights are those of the folder, in the memory format that samples fastest; there is no progress bar."""
    loaded = load_pipeline(str(pipeline_dir))
    assert loaded.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert not pipeline.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    for name, value in pipeline.unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], value)
    capsys.readouterr()
    loaded(num_inference_steps=1)
    assert not capsys.readouterr().err


def test_load_pipeline_from_nowhere(tmp_path: Path) -> None:
    """The message names the folder and how to train one."""
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}.*anomalib-ddpm-st diffusion"):
        load_pipeline(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model_index.json", b""),
        ("model_index.json", b"{}"),
        ("model_index.json", b"{not json"),
        ("unet/config.json", b"{not json"),
        ("unet/diffusion_pytorch_model.safetensors", b""),
        ("unet/diffusion_pytorch_model.safetensors", b"no weights here"),
        ("unet/diffusion_pytorch_model.safetensors", None),
        ("unet/diffusion_pytorch_model.safetensors", "cut"),
        ("scheduler/scheduler_config.json", None),
    ],
)
def test_load_damaged_pipeline(file: str, content: bytes | str | None, pipeline_dir: Path) -> None:
    """Whatever is damaged, the message names the folder and the remedy."""
    path = pipeline_dir / file
    if content is None:
        path.unlink()
    elif isinstance(content, str):
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{pipeline_dir}.*delete the folder"):
        load_pipeline(pipeline_dir)


def test_load_pipeline_asks_no_hub(pipeline_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local folder is loaded without a network."""

    def fail(*_: Any, **__: Any) -> None:  # noqa: ANN401
        pytest.fail("the hub was asked")

    monkeypatch.setattr("socket.socket.connect", fail)
    assert isinstance(load_pipeline(pipeline_dir).unet, UNet2DModel)
