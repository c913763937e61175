# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Known messages of other packages are hidden, unknown ones are not."""

import logging
import sys
import warnings

import pytest

from anomalib_ddpm_st.core.known_noise import hidden_noise, is_own_command_line

KNOWN = [
    "GPU available: False, used: False",
    "TPU available: False, using: 0 TPU cores",
    "💡 Tip: For seamless cloud logging and experiment tracking, try installing [litlogger]",
    "No seed found, seed set to 0",
    "Seed set to 0",
    "`max_epochs` was not set. Setting it to 1000 epochs. To train without an epoch limit, set `max_epochs=-1`.",
    "`Trainer.fit` stopped: `max_steps=10` reached.",
    "`isinstance(treespec, LeafSpec)` is deprecated, use `isinstance(treespec, TreeSpec) and treespec.is_leaf()`",
    "Found 70 module(s) in eval mode at the start of training. This may lead to unexpected behavior during training.",
    "The 'train_dataloader' does not have many workers which may be a bottleneck.",
    "This DataLoader will create 8 worker processes in total. Our suggested max number of worker is 2",
    "'pin_memory' argument is set as true but no accelerator is found, then device pinned memory won't be used.",
    "The dirpath has changed from 'results/v0' to 'results/latest', therefore `best_model_score` won't be reloaded.",
    "No positive samples in targets, true positive value should be meaningless.",
    "Cannot initialize model with low cpu memory usage because `accelerate` was not found in the environment.",
    "Loaded  from checkpoint 'resnet18.pth'",
    "Initializing DdpmSt model.",
    "Loading the callbacks",
    "Overriding num_sanity_val_steps from None with 0 for DdpmSt",
    "No normal test images found. Sampling from training set using ratio of 0.20",
    "Training took 424.82 seconds",
    "Testing took 1.36 seconds\nThroughput (batch_size=32) : 0.73 FPS",
    "Importing from timm.models.layers is deprecated, please import via timm.layers",
]
UNKNOWN = [
    "The GPU available is too hot",
    "Loss is NaN",
    "Loading the callbacks failed",
    "The images have 2 different sizes before the pre-processor.",
    "A false-alarm rate of 1 % needs 99 good images that were not trained on",
]


@pytest.mark.parametrize(("messages", "shown"), [(KNOWN, False), (UNKNOWN, True)])
def test_log_records_and_warnings(messages: list[str], shown: bool) -> None:
    handler = logging.Handler()
    records = []
    handler.emit = records.append
    logger = logging.getLogger("some.package")
    logger.addHandler(handler)
    expected = messages if shown else []
    try:
        with warnings.catch_warnings(record=True) as caught, hidden_noise():
            for message in messages:
                logger.error("%s", message)
                warnings.warn(message, stacklevel=1)
        assert [record.getMessage() for record in records] == expected
        assert [str(warning.message) for warning in caught] == expected
        logger.error("Seed set to 1")
        assert records[-1].getMessage() == "Seed set to 1", "shown again after the context"
    finally:
        logger.removeHandler(handler)


def test_warning_filters_are_restored() -> None:
    before = list(warnings.filters)
    with hidden_noise():
        assert len(warnings.filters) > len(before)
    assert warnings.filters == before


@pytest.mark.parametrize(
    ("arguments", "own"),
    [
        (["/usr/bin/python", "/venv/bin/anomalib-ddpm-st", "train"], True),
        (["/usr/bin/python", "C:/venv/Scripts/anomalib-ddpm-st.exe", "train"], True),
        (["python", "-m", "anomalib_ddpm_st.cli", "train"], True),
        (["python", "/venv/bin/anomalib", "train", "--model", "anomalib_ddpm_st.DdpmSt"], False),
        (["python", "-m", "pytest"], False),
        (["python", "-c", "import anomalib_ddpm_st"], False),
    ],
)
def test_own_command_line(monkeypatch: pytest.MonkeyPatch, arguments: list[str], own: bool) -> None:
    monkeypatch.setattr(sys, "orig_argv", arguments)
    monkeypatch.setattr(sys, "argv", arguments[1:])
    assert is_own_command_line() == own


def test_steps_of_an_export() -> None:
    """They are hidden, warnings of the same packages are not."""
    handler = logging.Handler()
    records = []
    handler.emit = records.append
    logger = logging.getLogger("onnxscript.optimizer")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        with hidden_noise():
            logger.info("Replaced initializer 'weight'")
            logger.warning("This model is odd")
            logging.getLogger("onnxscripts").info("Another package")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert [record.getMessage() for record in records] == ["This model is odd"]
