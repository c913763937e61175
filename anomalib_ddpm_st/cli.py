# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""``anomalib-ddpm-st``: anomalib's command line with the plugin loaded, and three commands of its own."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from anomalib.cli import AnomalibCLI
from anomalib.data.utils import get_image_filenames
from anomalib.loggers import configure_logger
from jsonargparse import ArgumentParser
from torchvision.utils import save_image

from . import demo as demo_module
from .cache import default_cache_dir
from .diffusion import train_diffusion
from .images import load_normal_images
from .registration import keep_benchmark_results
from .synthesis import DiffusionAnomalyGenerator
from .synthesis.bank import DEFAULT_STRENGTH
from .synthesis.preparation import prepare_bank, prepare_diffusion
from .visualization import save_contact_sheet

SHEET_ROWS = 16


def diffusion(
    images: Path,
    output: Path,
    image_size: tuple[int, int] = (256, 256),
    training_steps: int = 1000,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    seed: int = 0,
    accelerator: str = "auto",
    devices: int | str = "auto",
    precision: str = "32-true",
) -> None:
    """Train the DDPM of stage 1 alone, on a folder of normal images.

    Args:
        images: Folder of normal images.
        output: Folder for the trained DDPM, in the format of diffusers. An interrupted training goes on from it.
        image_size: Height and width in pixels.
        training_steps: Number of optimiser steps.
        batch_size: Images of a step on each device.
        learning_rate: Peak learning rate.
        seed: Seed of weights, batches and noise.
        accelerator: Accelerator of the Trainer.
        devices: Devices of the Trainer.
        precision: Precision of the Trainer; bf16-mixed is faster where the processor supports it.

    Raises:
        FileExistsError: If the output folder holds a trained DDPM already.
    """
    if (output / "model_index.json").exists():
        msg = f"{output} holds a trained DDPM already: name another folder, or delete this one to train again."
        raise FileExistsError(msg)
    normal = load_normal_images(get_image_filenames(images), image_size)
    pipeline = train_diffusion(
        normal,
        output,
        training_steps=training_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        accelerator=accelerator,
        devices=devices,
        precision=precision,
    )
    generator = torch.Generator().manual_seed(seed)
    samples = pipeline(batch_size=SHEET_ROWS, generator=generator)[0]
    save_image(samples, output / "samples.png", nrow=4)
    print(f"Trained DDPM in {output}; {output / 'samples.png'} shows samples, which should look normal.")  # noqa: T201


def synthesize(
    images: Path,
    output: Path,
    count: int = 100,
    diffusion_path: Path | None = None,
    image_size: tuple[int, int] = (256, 256),
    strength: tuple[float, float] = DEFAULT_STRENGTH,
    perturbation: Literal["constant", "scaled"] = "constant",
    foreground: Literal["auto", "off"] = "auto",
    diffusion_steps: int = 1000,
    bank_size: int = 256,
    seed: int = 0,
    cache_dir: Path | None = None,
) -> None:
    """Write images with synthetic defects and their masks, for anomalib's Folder datamodule or for looking at.

    Args:
        images: Folder of normal images.
        output: Folder that gets image/, mask/ and contact_sheet.png.
        count: Number of pairs of image and mask.
        diffusion_path: Folder of a trained DDPM; without it one is trained first, or taken from the cache.
        image_size: Height and width of the pairs in pixels.
        strength: Range of the strength of the perturbation.
        perturbation: Kind of perturbation.
        foreground: Keep defects on an object that lies on a plain background, or put them anywhere.
        diffusion_steps: Training steps of the DDPM, where one is trained.
        bank_size: Number of textures sampled.
        seed: Seed of every random draw.
        cache_dir: Folder for DDPMs and banks; by default the user's cache folder.
    """
    normal = load_normal_images(get_image_filenames(images), image_size)
    cache_dir = cache_dir or default_cache_dir()
    if diffusion_path is None:
        diffusion_path = prepare_diffusion(normal, cache_dir, {"training_steps": diffusion_steps, "seed": seed})
    settings = {"size": bank_size, "strength": list(strength), "perturbation": perturbation, "seed": seed}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bank_dir = prepare_bank(normal, diffusion_path, cache_dir, settings, device)
    generator = DiffusionAnomalyGenerator(
        bank_dir,
        probability=1.0,
        foreground=foreground,
        generator=torch.Generator().manual_seed(seed),
    )
    for name in ("image", "mask"):
        (output / name).mkdir(parents=True, exist_ok=True)
    sheet: dict[str, list[torch.Tensor]] = {"normal": [], "synthetic": [], "mask": []}
    written = attempt = 0
    while written < count:
        original = normal[attempt % len(normal)].float() / 255
        attempt += 1
        synthetic, mask = generator(original)
        if not mask.any():
            # The Perlin mask missed the object: draw again.
            if attempt > 100 * (written + 1):
                msg = (
                    f"{attempt} tries gave {written} defects: the textures hardly differ from the normal images. "
                    "Raise the strength, or train the DDPM for longer."
                )
                raise RuntimeError(msg)
            continue
        save_image(synthetic, output / "image" / f"{written:05d}.png")
        save_image(mask, output / "mask" / f"{written:05d}.png")
        if written < SHEET_ROWS:
            for name, picture in zip(sheet, (original, synthetic, mask), strict=True):
                sheet[name].append(picture)
        written += 1
    save_contact_sheet(output / "contact_sheet.png", sheet)
    print(f"{written} pairs in {output}; look at {output / 'contact_sheet.png'}.")  # noqa: T201


def demo(
    output: Path = Path("demo_results"),
    surface: demo_module.Surface = demo_module.DEFAULT_SURFACE,
    training_steps: int = demo_module.TRAINING_STEPS,
    diffusion_steps: int = demo_module.DIFFUSION_STEPS,
    seed: int = 0,
    accelerator: str = "cpu",
) -> None:
    """Train, test and export on photographs that come with the package's dependencies, offline.

    Args:
        output: Folder for data, results and pictures.
        surface: Photograph that is cut into tiles.
        training_steps: Length of the schedule of the detector.
        diffusion_steps: Training steps of the DDPM.
        seed: Seed of data and training.
        accelerator: Accelerator of the Trainer.
    """
    demo_module.run(output, surface, training_steps, diffusion_steps, seed, accelerator)


COMMANDS: dict[str, Callable] = {"diffusion": diffusion, "synthesize": synthesize, "demo": demo}


class DdpmStCLI(AnomalibCLI):
    """anomalib's command line with ``diffusion``, ``synthesize`` and ``demo`` added.

    Args:
        args (Sequence[str] | None): Command line arguments. Defaults to those of the process.
        run (bool): Whether to run the command. Defaults to ``True``.
    """

    def __init__(self, args: Sequence[str] | None = None, run: bool = True) -> None:
        args = list(sys.argv[1:] if args is None else args)
        if args[:1] == ["benchmark"]:
            # The one command of anomalib that knows only the long name.
            args = ["--config" if arg == "-c" else arg for arg in args]
            keep_benchmark_results()
        super().__init__(args, run)

    @staticmethod
    def anomalib_subcommands() -> dict[str, dict[str, str]]:
        """Return the subcommands of anomalib and of this package with their descriptions."""
        own = {
            name: {"description": (function.__doc__ or "").split("\n", maxsplit=1)[0]}
            for name, function in COMMANDS.items()
        }
        return {**AnomalibCLI.anomalib_subcommands(), **own}

    def add_diffusion_arguments(self, parser: ArgumentParser) -> None:
        """Add the arguments of ``diffusion``."""
        self._add_function_arguments("diffusion", parser)

    def add_synthesize_arguments(self, parser: ArgumentParser) -> None:
        """Add the arguments of ``synthesize``."""
        self._add_function_arguments("synthesize", parser)

    def add_demo_arguments(self, parser: ArgumentParser) -> None:
        """Add the arguments of ``demo``."""
        self._add_function_arguments("demo", parser)

    @staticmethod
    def _add_function_arguments(name: str, parser: ArgumentParser) -> None:
        parser.add_function_arguments(COMMANDS[name])

    def _run_subcommand(self) -> None:
        """Run a command of this package, or leave it to anomalib."""
        if self.subcommand not in COMMANDS:
            super()._run_subcommand()
            return
        arguments = self.config_init[self.subcommand].as_dict()
        arguments.pop("config", None)
        COMMANDS[self.subcommand](**arguments)


def main() -> None:
    """Entry point of ``anomalib-ddpm-st``."""
    configure_logger()
    try:
        DdpmStCLI()
    except KeyboardInterrupt as interruption:
        sys.exit(f"Interrupted. {interruption}")
    except (ConnectionError, OSError, TypeError, ValueError, RuntimeError) as error:
        if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
            sys.exit(f"anomalib-ddpm-st {sys.argv[1]}: {error}")
        raise


if __name__ == "__main__":
    main()
