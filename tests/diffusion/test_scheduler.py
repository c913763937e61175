# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the perturbed reverse step against ``diffusers.DDPMScheduler`` and the formulas of the papers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from anomalib_ddpm_st.diffusion import PerturbedDDPMScheduler
from anomalib_ddpm_st.diffusion.scheduler import Perturbation

SHAPE = (3, 2, 4, 4)
STEPS = 8


def schedulers(prediction_type: str = "sample", steps: int = STEPS) -> tuple[PerturbedDDPMScheduler, DDPMScheduler]:
    """Our scheduler and the reference, both set to the same timesteps."""
    ours = PerturbedDDPMScheduler(prediction_type=prediction_type)
    reference = DDPMScheduler(prediction_type=prediction_type)
    ours.set_timesteps(steps)
    reference.set_timesteps(steps)
    return ours, reference


def inputs(count: int = STEPS) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of a network output within the clipping range and a sample."""
    source = torch.Generator().manual_seed(11)
    for _ in range(count):
        yield torch.rand(SHAPE, generator=source) * 1.8 - 0.9, torch.randn(SHAPE, generator=source)


def posterior(pred_original: torch.Tensor, sample: torch.Tensor, t: int, prev_t: int) -> tuple[np.ndarray, float]:
    """Mean and standard deviation of the reverse step by equations (6) and (7) of Ho et al., in double precision."""
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    now, before = alpha_bar[t], alpha_bar[prev_t]
    beta = 1 - now / before
    mean = np.sqrt(before) * beta / (1 - now) * pred_original.double().numpy()
    mean += np.sqrt(1 - beta) * (1 - before) / (1 - now) * sample.double().numpy()
    return mean, float(np.sqrt((1 - before) / (1 - now) * beta))


@pytest.mark.parametrize("perturbation", ["constant", "scaled"])
@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
@pytest.mark.parametrize("delta", [0.0, torch.zeros(SHAPE[0])])
def test_delta_zero_is_ddpm(
    perturbation: Perturbation,
    prediction_type: str,
    delta: float | torch.Tensor,
) -> None:
    """A whole loop is that of ``DDPMScheduler``, bit for bit."""
    ours, reference = schedulers(prediction_type)
    mine = theirs = torch.randn(SHAPE)
    my_generator, their_generator = (torch.Generator().manual_seed(5) for _ in range(2))
    for t, (output, _) in zip(ours.timesteps, inputs(), strict=True):
        mine = ours.step(output, t, mine, generator=my_generator, perturbation=perturbation, delta=delta).prev_sample
        theirs = reference.step(output, t, theirs, generator=their_generator).prev_sample
        assert torch.equal(mine, theirs)
    assert torch.equal(my_generator.get_state(), their_generator.get_state())


@pytest.mark.parametrize("delta", [0.3, torch.tensor([0.1, 0.0, 0.7])])
def test_constant_adds_the_same_delta_at_every_timestep(delta: float | torch.Tensor) -> None:
    """The step exceeds that of DDPM by ``delta z'``; ``z`` is drawn first and ``z'`` second."""
    ours, reference = schedulers()
    shaped = torch.as_tensor(delta).reshape(-1, 1, 1, 1)
    for t, (output, sample) in zip(ours.timesteps[:-1], inputs(STEPS - 1), strict=True):
        seed = int(t)
        result = ours.step(output, t, sample, generator=torch.Generator().manual_seed(seed), delta=delta).prev_sample
        replay = torch.Generator().manual_seed(seed)
        plain = reference.step(output, t, sample, generator=replay).prev_sample
        second = torch.randn(SHAPE, generator=replay)
        assert torch.equal(result, plain + shaped * second)


@pytest.mark.parametrize("delta", [0.44, torch.tensor([0.1, 0.0, 3.0])])
def test_scaled_multiplies_the_variance(delta: float | torch.Tensor) -> None:
    """The step is ``mean + sqrt(1 + s) sigma z`` with mean and sigma by the formulas."""
    ours, _ = schedulers()
    factor = np.sqrt(1 + torch.as_tensor(delta).double().reshape(-1, 1, 1, 1).numpy())
    timesteps = ours.timesteps.tolist()
    for index, (output, sample) in enumerate(inputs(STEPS - 1)):
        result = ours.step(
            output,
            timesteps[index],
            sample,
            generator=torch.Generator().manual_seed(index),
            perturbation="scaled",
            delta=delta,
        ).prev_sample
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(index)).double().numpy()
        mean, sigma = posterior(output, sample, timesteps[index], timesteps[index + 1])
        np.testing.assert_allclose(result.numpy(), mean + factor * sigma * noise, atol=2e-5)


def test_scaled_draws_no_more_than_ddpm() -> None:
    """Scaling needs no second random draw."""
    ours, reference = schedulers()
    output, sample = next(inputs())
    first, second = (torch.Generator().manual_seed(5) for _ in range(2))
    ours.step(output, ours.timesteps[0], sample, generator=first, perturbation="scaled", delta=0.5)
    reference.step(output, ours.timesteps[0], sample, generator=second)
    assert torch.equal(first.get_state(), second.get_state())


@pytest.mark.parametrize("perturbation", ["constant", "scaled"])
@pytest.mark.parametrize("timesteps", [None, [500, 250, 40]])
def test_last_step_is_not_perturbed(perturbation: Perturbation, timesteps: list[int] | None) -> None:
    """The step that yields the image is that of DDPM, even if it starts above zero."""
    ours, reference = schedulers()
    if timesteps is not None:
        ours.set_timesteps(timesteps=timesteps)
        reference.set_timesteps(timesteps=timesteps)
    output, sample = next(inputs())
    arguments = {"perturbation": perturbation, "delta": 0.9}
    last = ours.timesteps[-1]
    result = ours.step(output, last, sample, generator=torch.Generator().manual_seed(5), **arguments).prev_sample
    plain = reference.step(output, last, sample, generator=torch.Generator().manual_seed(5)).prev_sample
    assert torch.equal(result, plain)
    before = ours.timesteps[-2]
    result = ours.step(output, before, sample, generator=torch.Generator().manual_seed(5), **arguments).prev_sample
    plain = reference.step(output, before, sample, generator=torch.Generator().manual_seed(5)).prev_sample
    assert not torch.allclose(result, plain, atol=1e-3)


def test_pred_original_sample_and_tuple() -> None:
    """The tuple holds the same two tensors, and the clean prediction is not perturbed."""
    ours, reference = schedulers("epsilon")
    output, sample = next(inputs())
    t = ours.timesteps[2]
    as_object = ours.step(output, t, sample, generator=torch.Generator().manual_seed(5), delta=0.4)
    as_tuple = ours.step(output, t, sample, generator=torch.Generator().manual_seed(5), delta=0.4, return_dict=False)
    assert torch.equal(as_object.prev_sample, as_tuple[0])
    assert torch.equal(as_object.pred_original_sample, as_tuple[1])
    expected = reference.step(output, t, sample, generator=torch.Generator().manual_seed(5)).pred_original_sample
    assert torch.equal(as_object.pred_original_sample, expected)


@pytest.mark.parametrize("perturbation", ["constant", "scaled"])
def test_list_of_generators(perturbation: Perturbation) -> None:
    """With one generator for each sample, a sample does not depend on its neighbours."""
    ours, _ = schedulers()
    output, sample = next(inputs())
    t = ours.timesteps[1]

    def step(indices: list[int]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(index) for index in indices]
        arguments = {"generator": generators, "perturbation": perturbation, "delta": 0.5}
        return ours.step(output[indices], t, sample[indices], **arguments).prev_sample

    torch.testing.assert_close(step([0, 1, 2])[2:], step([2]))


def test_unknown_perturbation() -> None:
    """The message names what was given and what there is."""
    ours, _ = schedulers()
    sample = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match="perturbation must be one of constant, scaled, got 'uniform'"):
        ours.step(sample, 0, sample, perturbation="uniform", delta=0.1)


@pytest.mark.parametrize("delta", [-0.1, torch.tensor([0.1, -0.2, 0.3])])
@pytest.mark.parametrize("perturbation", ["constant", "scaled"])
def test_negative_delta(delta: float | torch.Tensor, perturbation: Perturbation) -> None:
    """A negative delta is refused and named."""
    ours, _ = schedulers()
    sample = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match=r"negative.*-0\.[12]"):
        ours.step(sample, ours.timesteps[0], sample, perturbation=perturbation, delta=delta)


def test_save_and_load(tmp_path: Path) -> None:
    """The scheduler survives the folder format of diffusers."""
    PerturbedDDPMScheduler(prediction_type="sample", num_train_timesteps=321).save_pretrained(tmp_path)
    loaded = PerturbedDDPMScheduler.from_pretrained(tmp_path)
    assert type(loaded) is PerturbedDDPMScheduler
    assert loaded.config.num_train_timesteps == 321
    assert loaded.config.prediction_type == "sample"
