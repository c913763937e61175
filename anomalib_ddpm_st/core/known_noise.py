# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Messages of other packages that say nothing to users of our command line, which hides them unless ``--verbose``.

Each message is known and listed; anything else is shown. Some come while anomalib is imported, so this module is
imported before it. In other programs it changes nothing.
"""

import logging
import re
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

COMMAND = "anomalib-ddpm-st"
VERBOSE = "--verbose"
# Regular expressions of beginnings.
AT_IMPORT = (
    r"Importing from timm\.models\.layers is deprecated",
    r"The anomalib\.models\.components\.dinov2 package is deprecated",
)
MESSAGES = (
    *AT_IMPORT,
    # Lightning
    r"GPU available: ",
    r"TPU available: ",
    r"HPU available: ",
    r"💡 Tip: ",
    r"(No seed found, )?[Ss]eed set to ",
    r"`max_epochs` was not set\.",
    r"`Trainer\.\w+` stopped: `max_\w+=\S+` reached\.",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"Found \d+ module\(s\) in eval mode at the start of training",
    r"The '\w+' does not have many workers",
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    r"The following callbacks returned in `LightningModule\.configure_callbacks` will override",
    r"Checkpoint directory \S+ exists and is not empty",
    r"The dirpath has changed from ",
    r"Restoring states from the checkpoint path",
    r"Loaded model weights from the checkpoint",
    # torch and torchmetrics
    r"This DataLoader will create \d+ worker processes",
    r"'pin_memory' argument is set as true but no accelerator is found",
    r"No positive samples in targets",
    r"The ``compute`` method of metric \w+ was called before the ``update`` method",
    # diffusers and timm
    r"Cannot initialize model with low cpu memory usage",
    r"Loaded .* from checkpoint ",
    # anomalib
    r"Initializing \w+ model\.",
    r"Loading the callbacks$",
    r"Overriding num_sanity_val_steps from ",
    r"No normal test images found\. Sampling from training set",
    r"(Training|Testing) took \S+ seconds",
)


# Packages that log each step of an export; their warnings are shown.
CHATTY = ("onnx_ir", "onnxscript")


class KnownNoise(logging.Filter):
    """Lets every record pass but those with a known message, and the steps of an export."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to show a record."""
        if record.levelno < logging.WARNING and record.name.split(".", maxsplit=1)[0] in CHATTY:
            return False
        return not any(re.match(message, record.getMessage()) for message in MESSAGES)


def is_own_command_line() -> bool:
    """Whether this process is ``anomalib-ddpm-st`` or ``python -m anomalib_ddpm_st.cli``."""
    package = __name__.split(".", maxsplit=1)[0]
    return Path(sys.argv[0]).stem == COMMAND or f"{package}.cli" in sys.orig_argv[:4]


def _ignore(messages: tuple[str, ...]) -> None:
    """Ignore warnings with these messages."""
    for message in messages:
        warnings.filterwarnings("ignore", message=rf"\s*{message}")


@contextmanager
def hidden_noise() -> Generator[None, None, None]:
    """Hide known messages of other packages, warnings and log records, within the context.

    Yields:
        None: Configure logging before.
    """
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in logging.root.manager.loggerDict)]
    handlers = {id(handler): handler for logger in loggers for handler in logger.handlers}.values()
    noise = KnownNoise()
    for handler in handlers:
        handler.addFilter(noise)
    try:
        with warnings.catch_warnings():
            _ignore(MESSAGES)
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(noise)


if is_own_command_line() and VERBOSE not in sys.argv:
    _ignore(AT_IMPORT)
