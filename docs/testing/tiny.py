# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Limits that let the blocks of the pages train in seconds, exactly as they are printed.

Settings are checked as always and then limited, wherever they come from: a default, Python, the command line or a
config. So a page prints what one really types, and its tests run that, with fewer steps, textures and pixels.
"""

import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from inspect import signature
from types import ModuleType
from typing import Any
from unittest.mock import patch

PACKAGE = "anomalib_ddpm_st"
IMAGE_SIZE = (64, 64)
BATCH_SIZE = 4
# Largest values of the settings. A list of channels is replaced.
LIMITS: dict[str, dict[str, Any]] = {
    "DiffusionConfig": {"training_steps": 2, "batch_size": 2, "block_out_channels": (8, 8)},
    "BankConfig": {"size": 4, "num_inference_steps": 2},
    "DdpmSt": {"training_steps": 4, "memory_size": 64},
    "Trainer": {"max_epochs": 1, "limit_train_batches": 2},
}

# A context that is forgotten would end.
FOR_EVER = ExitStack()


def limited(value: Any, limit: Any) -> Any:  # noqa: ANN401
    """The smaller of two numbers, or the limit of anything else; what is no valid number stays as it is."""
    if isinstance(limit, tuple):
        return limit
    return min(value, limit) if isinstance(value, int | float) else value


def _limit_config(check: Callable[[Any], None], limits: dict[str, Any]) -> Callable[[Any], None]:
    """The check of a dataclass, and then the limits of its settings."""

    @wraps(check)
    def check_and_limit(self: Any) -> None:  # noqa: ANN401
        check(self)
        for name, limit in limits.items():
            object.__setattr__(self, name, limited(getattr(self, name), limit))  # noqa: PLC2801  # it is frozen

    return check_and_limit


def _limit_arguments(function: Callable[..., Any], change: Callable[[dict[str, Any]], None]) -> Callable[..., Any]:
    """A function whose arguments are changed first; its signature stays, since parsers read it."""

    @wraps(function)
    def changed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        bound = signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        change(bound.arguments)
        return function(*bound.args, **bound.kwargs)

    return changed


def limit_model(arguments: dict[str, Any]) -> None:
    """Limit the arguments of ``DdpmSt``, and take random weights if there are none."""
    from anomalib_ddpm_st import DdpmSt

    for name, limit in LIMITS["DdpmSt"].items():
        arguments[name] = limited(arguments[name], limit)
    if arguments["teacher_weights"] is None:
        arguments["pre_trained"] = False
    if arguments["pre_processor"] is True:
        arguments["pre_processor"] = DdpmSt.configure_pre_processor(IMAGE_SIZE)


def limit_loader(arguments: dict[str, Any]) -> None:
    """Limit the arguments of a data loader: small batches, loaded by this process."""
    arguments.update(num_workers=0, persistent_workers=False, multiprocessing_context=None, prefetch_factor=None)
    if arguments["batch_sampler"] is None:
        arguments["batch_size"] = limited(arguments["batch_size"], BATCH_SIZE)


def limit_fit(fit: Callable[..., None]) -> Callable[..., None]:
    """``Trainer.fit`` with a few batches for other models, which have no number of steps."""
    from anomalib.models import AnomalibModule

    from anomalib_ddpm_st import DdpmSt

    @wraps(fit)
    def short_fit(trainer: Any, model: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        if isinstance(model, AnomalibModule) and not isinstance(model, DdpmSt):
            trainer.fit_loop.max_epochs = LIMITS["Trainer"]["max_epochs"]
            trainer.limit_train_batches = LIMITS["Trainer"]["limit_train_batches"]
        fit(trainer, model, *args, **kwargs)

    return short_fit


def untrained(arguments: dict[str, Any]) -> None:
    """Replace weights that would be downloaded by random ones."""
    arguments["pretrained"] = False


@contextmanager
def tiny_settings() -> Generator[None, None, None]:
    """Limit the settings of this process."""
    import timm
    from lightning.pytorch import Trainer
    from torch.utils.data import DataLoader

    from anomalib_ddpm_st import BankConfig, DdpmSt, DiffusionConfig

    with ExitStack() as stack:
        for config in (DiffusionConfig, BankConfig):
            check = _limit_config(config.__post_init__, LIMITS[config.__name__])
            stack.enter_context(patch.object(config, "__post_init__", check))
        for owner, change in ((DdpmSt, limit_model), (DataLoader, limit_loader)):
            stack.enter_context(patch.object(owner, "__init__", _limit_arguments(owner.__init__, change)))
        stack.enter_context(patch.object(Trainer, "fit", limit_fit(Trainer.fit)))
        stack.enter_context(patch.object(timm, "create_model", _limit_arguments(timm.create_model, untrained)))
        yield


class TinyImport(MetaPathFinder):
    """Limits the settings as soon as a process imports the package, and imports nothing itself."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ANN401, ARG002
        """Find the package as without this finder, and limit the settings when it has been imported."""
        if fullname != PACKAGE:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = self._then_limit(spec.loader)  # type: ignore[method-assign]
        return spec

    @staticmethod
    def _then_limit(loader: Loader) -> Callable[[ModuleType], None]:
        run = loader.exec_module

        def run_and_limit(module: ModuleType) -> None:
            run(module)
            FOR_EVER.enter_context(tiny_settings())

        return run_and_limit


def install() -> None:
    """Limit the settings of this process if it imports the package."""
    sys.meta_path.insert(0, TinyImport())
