# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""``anomalib-ddpm-st``: anomalib's command line with the plugin loaded, and three commands of its own."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, cast

import torch
import yaml
from anomalib.cli import AnomalibCLI
from anomalib.data import get_datamodule
from anomalib.data.utils import get_image_filenames
from anomalib.loggers import configure_logger
from jsonargparse import ArgumentParser
from torchvision.utils import save_image

from . import demo as demo_module
from .cache import default_cache_dir
from .diffusion import train_diffusion
from .images import load_normal_images
from .registration import keep_benchmark_results
from .report import measure_health, save_report
from .synthesis import prepare_generator
from .synthesis.bank import DEFAULT_STRENGTH
from .synthesis.generator import SOURCES, Synthesis
from .synthesis.pairs import write_pairs
from .synthesis.preparation import load_pipeline, normal_paths, prepare_diffusion, trainer_arguments_for

MAX_BANK_SIZE = 256
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
    teacher_weights: str | None = None,
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
        precision: Precision of the Trainer; bf16-mixed is faster on many processors, not on all.
        teacher_weights: Local weights of ResNet-18, by which the health of the DDPM is measured; by default from
            timm's hub. Without a network and without a file it is not measured.

    Raises:
        FileExistsError: If the output folder holds a trained DDPM already.
    """
    if (output / "model_index.json").exists():
        msg = f"{output} holds a trained DDPM already: name another folder, or delete this one to train again."
        raise FileExistsError(msg)
    normal = load_normal_images(get_image_filenames(images), image_size, min_images=1)
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
    measure_health(pipeline, normal, output, teacher_weights)


def synthesize(
    output: Path,
    images: Path | None = None,
    data: Path | None = None,
    per_image: int = 1,
    count: int | None = None,
    synthesis: Synthesis = "diffusion",
    diffusion_path: Path | None = None,
    image_size: tuple[int, int] = (256, 256),
    full_size: bool = False,
    strength: tuple[float, float] = DEFAULT_STRENGTH,
    perturbation: Literal["constant", "scaled"] = "constant",
    foreground: Literal["auto", "off"] = "auto",
    diffusion_steps: int = 1000,
    bank_size: int | None = None,
    teacher_weights: str | None = None,
    seed: int = 0,
    cache_dir: Path | None = None,
    precision: str = "32-true",
) -> None:
    """Write images with synthetic defects and their masks, for anomalib's Folder datamodule or for looking at.

    Args:
        output: Folder that gets image/, mask/, pairs.csv, contact_sheet.png and report.html. What an interrupted call
            left in it is gone on from.
        images: Folder of normal images.
        data: Config of a datamodule of anomalib (YAML with class_path and init_args), instead of a folder.
        per_image: Pairs of each normal image.
        count: Number of pairs, instead of so many of each image.
        synthesis: Where defects come from; diffusion takes textures of the DDPM alone.
        diffusion_path: Folder of a trained DDPM; without it one is trained first, or taken from the cache.
        image_size: Height and width that images have for the DDPM, and that the pairs have.
        full_size: Write pairs at the size of each normal image instead.
        strength: Range of the strength of the perturbation.
        perturbation: Kind of perturbation.
        foreground: Keep defects on an object that lies on a plain background, or put them anywhere.
        diffusion_steps: Training steps of the DDPM, where one is trained.
        bank_size: Number of textures sampled; by default one for each pair, at most 256.
        teacher_weights: Local weights of ResNet-18, by which the health of the DDPM is measured; by default from
            timm's hub. Without a network and without a file it is not measured.
        seed: Seed of every random draw: the same seed gives the same files.
        cache_dir: Folder for DDPMs and banks; by default the user's cache folder.
        precision: Precision of training and sampling; bf16-mixed is faster on many processors, not on all.
    """
    paths = _normal_images(images, data)
    number = len(paths) * per_image if count is None else count
    bank_size = bank_size or max(1, min(number, MAX_BANK_SIZE))
    settings = {
        "synthesis": synthesis,
        "strength": list(strength),
        "perturbation": perturbation,
        "foreground": foreground,
        "bank_size": bank_size,
        "diffusion": str(diffusion_path or f"{diffusion_steps} training steps, seed {seed}"),
    }
    pipeline, normal, health = None, None, None
    output.mkdir(parents=True, exist_ok=True)
    if "bank" in SOURCES[synthesis]:
        normal = load_normal_images(paths, image_size, min_images=1)
        if diffusion_path is None:
            diffusion_path = prepare_diffusion(
                normal,
                cache_dir or default_cache_dir(),
                {"training_steps": diffusion_steps, "seed": seed},
                precision=precision,
                **trainer_arguments_for(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
            )
        pipeline = load_pipeline(diffusion_path)
        health = measure_health(pipeline, normal, output, teacher_weights)
    generator = prepare_generator(
        paths,
        synthesis,
        image_size,
        diffusion_path,
        cache_dir,
        bank_size=bank_size,
        strength=strength,
        perturbation=perturbation,
        seed=seed,
        precision=precision,
        foreground=foreground,
    )
    size = None if full_size else image_size
    pairs = write_pairs(generator, paths, output, per_image, count, size, seed, settings)
    page = save_report(output, pairs, size, {**settings, "seed": seed}, pipeline, normal, health)
    print(f"{len(pairs)} pairs in {output}; look at {page}.")  # noqa: T201


def _normal_images(images: Path | None, data: Path | None) -> list[Path]:
    """Normal images of a folder, or of the training set of a datamodule."""
    if (images is None) == (data is None):
        msg = "Give either a folder of normal images (--images) or the config of a datamodule (--data)."
        raise ValueError(msg)
    if images is not None:
        return sorted(get_image_filenames(images))
    with cast("Path", data).open(encoding="utf-8") as file:
        config = yaml.safe_load(file)
    datamodule = get_datamodule(config.get("data", config))
    datamodule.prepare_data()
    datamodule.setup("fit")
    return sorted(map(Path, normal_paths(datamodule.train_data.samples)))


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
