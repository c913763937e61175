# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Progress of the stages that run before the Engine's own loop: name, position and time left."""

from collections.abc import Iterable
from typing import TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm.auto import tqdm

from .plain_stderr import plain_stderr

Item = TypeVar("Item")


def progress(items: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
    """Iterate with a progress bar that shows the time left.

    Args:
        items (Iterable[Item]): Items to iterate over.
        description (str): Name of the stage.
        total (int | None): Number of items, if ``items`` has no length.

    Returns:
        Iterable[Item]: The same items.
    """
    return tqdm(items, desc=description, total=total, mininterval=1.0, file=plain_stderr())


class StageProgressBar(Callback):
    """Progress bar over all training steps of a stage, which continues when the stage is resumed.

    Args:
        description (str): Name of the stage.
        total (int): Number of training steps of the stage.
    """

    def __init__(self, description: str, total: int) -> None:
        self.description = description
        self.total = total
        self.bar: tqdm | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the step at which training starts."""
        del pl_module
        start = trainer.global_step
        self.bar = tqdm(desc=self.description, total=self.total, initial=start, mininterval=1.0, file=plain_stderr())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object, **kwargs: object) -> None:
        """Move the bar to the current step and show the loss."""
        del pl_module, args, kwargs
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{trainer.callback_metrics['train_loss'].item():.4f}", refresh=False)
            self.bar.update(trainer.global_step - self.bar.n)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the bar."""
        del trainer, pl_module, stage
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar after an error or an interruption, for which Lightning calls no ``teardown``."""
        del exception
        self.teardown(trainer, pl_module, "fit")
