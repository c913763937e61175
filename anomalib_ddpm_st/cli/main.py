# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""``anomalib-ddpm-st``: anomalib's command line with this package registered and its own commands added."""

import json
import logging
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from anomalib.cli import AnomalibCLI
from anomalib.loggers import configure_logger
from jsonargparse import ArgumentParser
from lightning.pytorch import seed_everything
from rich.logging import RichHandler

from anomalib_ddpm_st.core.cache import content_key
from anomalib_ddpm_st.core.known_noise import COMMAND, VERBOSE, hidden_noise
from anomalib_ddpm_st.detector import DdpmSt
from anomalib_ddpm_st.detector.training_run import interrupted_checkpoint, newest
from anomalib_ddpm_st.registration import keep_benchmark_results

from .demo import demo
from .diffusion import diffusion
from .folder import add_folder_name
from .size import size
from .synthesize import synthesize
from .threshold import threshold

COMMANDS: dict[str, Callable[..., None]] = {
    "diffusion": diffusion,
    "synthesize": synthesize,
    "demo": demo,
    "size": size,
    "threshold": threshold,
}

DOCSTRING_MARKUP = re.compile(r"\s*Defaults to ``[^`]*``\.|``|:\w+:(?=`)")


def _summary(function: Callable[..., None]) -> str:
    """First line of a docstring."""
    return (function.__doc__ or "").split("\n", maxsplit=1)[0]


class DdpmStCLI(AnomalibCLI):
    """anomalib's command line with ``diffusion``, ``synthesize``, ``demo``, ``size`` and ``threshold`` added.

    Args:
        args (Sequence[str] | None): Command line arguments. Defaults to those of the process.
        run (bool): Whether to run the command. Defaults to ``True``.
    """

    def __init__(self, args: Sequence[str] | None = None, run: bool = True) -> None:
        args = list(sys.argv[1:] if args is None else args)
        if args[:1] == ["benchmark"]:
            # The one command of anomalib that has no short option for the config.
            args = ["--config" if arg == "-c" else arg for arg in args]
            keep_benchmark_results()
        # No option of the parser, or it would be part of the saved config, which anomalib's own command line reads.
        self.verbose = VERBOSE in args and args[:1] != ["install"]
        args = [arg for arg in args if arg != VERBOSE or not self.verbose]
        super().__init__(add_folder_name(args), run)

    @staticmethod
    def init_parser(**kwargs: Any) -> ArgumentParser:  # noqa: ANN401
        """Make a parser whose help names the option that is no part of configs."""
        kwargs.setdefault("epilog", f"{VERBOSE} shows all messages of anomalib, Lightning and other packages.")
        return AnomalibCLI.init_parser(**kwargs)

    @staticmethod
    def anomalib_subcommands() -> dict[str, dict[str, str]]:
        """Return the descriptions of anomalib's subcommands and of this package's commands."""
        own = {name: {"description": _summary(function)} for name, function in COMMANDS.items()}
        return {**AnomalibCLI.anomalib_subcommands(), **own}

    def before_instantiate_classes(self) -> None:
        """Apply ``--seed_everything``, which anomalib reads but does not use, before anything is made."""
        super().before_instantiate_classes()
        seed = self.config[self.config["subcommand"]].get("seed_everything", False)
        if seed is not False:
            # As in Lightning's own command line, which also applies a default seed for true.
            seed_everything(None if seed is True else seed, workers=True)

    def instantiate_engine(self) -> None:
        """Leave out Lightning's summary of the model, which counts no operation of it, unless it is asked for."""
        trainer = self.config_init[self.subcommand].get("trainer")
        if not self.verbose and trainer is not None and trainer.get("enable_model_summary") is None:
            trainer["enable_model_summary"] = False
        super().instantiate_engine()

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Add the checkpoint of an interrupted training with the same settings, unless one is given."""
        arguments = super()._prepare_subcommand_kwargs(subcommand)
        model = arguments.get("model")
        if subcommand not in {"fit", "train"} or not isinstance(model, DdpmSt):
            return arguments
        model.announce = print
        config = self.config[subcommand].as_dict()
        given = config.pop("ckpt_path", None)
        model.fingerprint = content_key(json.loads(json.dumps(config, default=str)))
        root = Path(config["default_root_dir"]) / model.name
        checkpoint = None if given else interrupted_checkpoint(root, model.fingerprint)
        if checkpoint is not None:
            print(f"Resuming the interrupted training from {checkpoint}. Delete it to start again.")  # noqa: T201
            arguments["ckpt_path"] = checkpoint
        return arguments

    def add_diffusion_arguments(self, parser: ArgumentParser) -> None:
        """Add the arguments of ``diffusion``."""
        self._add_function_arguments(diffusion, parser)

    def add_synthesize_arguments(self, parser: ArgumentParser) -> None:
        """Add the arguments of ``synthesize``."""
        self._add_function_arguments(synthesize, parser)

    def add_demo_arguments(self, parser: ArgumentParser) -> None:
        """Add the arguments of ``demo``."""
        self._add_function_arguments(demo, parser)

    def add_size_arguments(self, parser: ArgumentParser) -> None:
        """Add the arguments of ``size``."""
        self._add_function_arguments(size, parser)

    def add_threshold_arguments(self, parser: ArgumentParser) -> None:
        """Add the arguments of ``threshold``."""
        self._add_function_arguments(threshold, parser)

    @staticmethod
    def _add_function_arguments(function: Callable[..., None], parser: ArgumentParser) -> None:
        parser.description = _summary(function)
        # A group would be named like the function, but ``diffusion`` is also a group of settings.
        parser.add_function_arguments(function, as_group=False)
        for action in parser._actions:  # noqa: SLF001
            # The parser adds the default of the command, which may differ from that of the dataclass.
            action.help = action.help and DOCSTRING_MARKUP.sub("", action.help)

    def _run_subcommand(self) -> None:
        """Run a command of this package, or pass it on to anomalib."""
        if self.subcommand not in COMMANDS:
            super()._run_subcommand()
            if self.subcommand in {"fit", "train"} and isinstance(self.model, DdpmSt):
                self._show_next_step()
            return
        arguments = self.config_init[self.subcommand].as_dict()
        arguments.pop("config", None)
        COMMANDS[self.subcommand](**arguments)

    def _show_next_step(self) -> None:
        """Print where the checkpoint is and the command that exports it."""
        trainer = self.engine.trainer
        path = newest(Path(trainer.default_root_dir).rglob("*.ckpt"))
        if path is not None and trainer.is_global_zero:
            command = f"{COMMAND} export --model DdpmSt --ckpt_path {shlex.quote(str(path))} --export_type openvino"
            print(f"Checkpoint: {path}\nTo export it for the production line:\n  {command}")  # noqa: T201


def _configure_logger(verbose: bool) -> None:
    """Log as anomalib does, or once and without time and place."""
    configure_logger()
    if verbose:
        return
    for name in (None, "lightning.pytorch"):
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            if isinstance(handler, RichHandler):
                logger.removeHandler(handler)
            else:
                handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))


def main() -> None:
    """Entry point of ``anomalib-ddpm-st``."""
    verbose = VERBOSE in sys.argv
    _configure_logger(verbose)
    try:
        with nullcontext() if verbose else hidden_noise():
            DdpmStCLI()
    except KeyboardInterrupt as interruption:
        sys.exit(f"Interrupted. {interruption}")
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
            sys.exit(f"anomalib-ddpm-st {sys.argv[1]}: {error}")
        raise
