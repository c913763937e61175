# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""DDPM scheduler with a perturbed reverse step.

Sampling with the unperturbed step gives a normal image; the perturbed step leads the sample off the manifold of normal
images and gives a defect (arXiv:2604.19240).
"""

from typing import Literal, get_args

import torch

# DiffusionPipeline.from_pretrained looks for SchedulerMixin in this module to learn how to load the scheduler.
from diffusers import DDPMScheduler, SchedulerMixin  # noqa: F401
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor

from anomalib_ddpm_st.core.config import check_choice

Perturbation = Literal["constant", "scaled"]


class PerturbedDDPMScheduler(DDPMScheduler):
    r"""``diffusers.DDPMScheduler`` with a perturbed reverse step, Equation (1).

    With the step :math:`\mu_\theta(x_t, t) + \sigma_t z` of DDPM (Ho et al., 2020, Algorithm 2):

    .. math::
        x_{t-1} = \mu_\theta(x_t, t) + \sigma_t z + \delta z', \quad z, z' \sim N(0, I)

    - ``"constant"`` uses the same :math:`\delta` at every step. The abstract says "constant-variance Gaussian
      perturbations" and no more; constant over ``t`` is our assumption.
    - ``"scaled"`` multiplies the variance :math:`\sigma_t^2` by :math:`1 + \delta` instead, as RealNet does (Zhang et
      al., 2024).

    The last step, which yields the image, draws no noise in DDPM and is not perturbed either (assumption): noise that
    no later step removes would show as grain, not as a defect. The configuration is that of ``DDPMScheduler``.

    Example:
        >>> import torch
        >>> scheduler = PerturbedDDPMScheduler(prediction_type="sample")
        >>> scheduler.set_timesteps(10)
        >>> sample = torch.zeros(1, 3, 8, 8)
        >>> scheduler.step(sample, 900, sample, delta=0.2).prev_sample.shape
        torch.Size([1, 3, 8, 8])
    """

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        perturbation: Perturbation = "constant",
        delta: float | torch.Tensor = 0.0,
    ) -> DDPMSchedulerOutput | tuple:
        """Predict the sample of the previous timestep, perturbed.

        Args:
            model_output (torch.Tensor): Output of the network, of shape ``(B, C, H, W)``.
            timestep (int | torch.Tensor): Current timestep ``t``.
            sample (torch.Tensor): Current sample ``x_t`` of shape ``(B, C, H, W)``.
            generator (torch.Generator | list[torch.Generator] | None): Source of every random draw.
            return_dict (bool): Return a ``DDPMSchedulerOutput`` instead of a tuple.
            perturbation (Perturbation): ``"constant"`` or ``"scaled"``. Defaults to ``"constant"``.
            delta (float | torch.Tensor): Strength of the perturbation, not negative; one number or a tensor of
                shape ``(B,)``. ``0`` is exactly ``DDPMScheduler.step``. Defaults to ``0.0``.

        Returns:
            DDPMSchedulerOutput | tuple: ``prev_sample`` and ``pred_original_sample``, each of shape
            ``(B, C, H, W)``, as an object or a tuple.

        Raises:
            ValueError: If the perturbation is unknown or ``delta`` is negative.
        """
        check_choice("perturbation", perturbation, get_args(Perturbation))
        delta = torch.as_tensor(delta, dtype=sample.dtype, device=sample.device)
        if bool((delta < 0).any()):
            msg = f"delta must not be negative, got {delta.min().item()}."
            raise ValueError(msg)

        output = super().step(model_output, timestep, sample, generator=generator)
        if bool((delta > 0).any()) and self.previous_timestep(timestep) >= 0:
            delta = delta.reshape(-1, 1, 1, 1)
            if perturbation == "constant":
                noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
                output.prev_sample = output.prev_sample + delta * noise
            else:
                mean = self._posterior_mean(output.pred_original_sample, timestep, sample)
                output.prev_sample = mean + (1 + delta).sqrt() * (output.prev_sample - mean)
        return output if return_dict else (output.prev_sample, output.pred_original_sample)

    def _posterior_mean(
        self,
        pred_original_sample: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
    ) -> torch.Tensor:
        """Mean of the reverse step, equation (7) of Ho et al. (2020)."""
        alpha_prod = self.alphas_cumprod[timestep]
        alpha_prod_prev = self.alphas_cumprod[self.previous_timestep(timestep)]
        alpha = alpha_prod / alpha_prod_prev
        original_coefficient = alpha_prod_prev.sqrt() * (1 - alpha) / (1 - alpha_prod)
        sample_coefficient = alpha.sqrt() * (1 - alpha_prod_prev) / (1 - alpha_prod)
        return original_coefficient * pred_original_sample + sample_coefficient * sample
