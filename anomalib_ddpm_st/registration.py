# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Registration with anomalib: the only module that touches its private parts.

anomalib 2.7 has no public way to register a model of another package. ``get_model(name)`` and ``list_models()`` find
every direct subclass of ``AnomalibModule``; dictionary configs and ``benchmark`` look the class up as an attribute of
``anomalib.models``, or import it from a module of ``ALLOWED_MODULES``.
"""

import logging
from collections.abc import Generator
from contextlib import contextmanager

import anomalib.models
import pandas as pd
from anomalib.data.utils import synthetic
from anomalib.pipelines.benchmark.job import BenchmarkJob

from .detector import DdpmSt
from .synthesis import DiffusionAnomalyGenerator

logger = logging.getLogger(__name__)

PACKAGE = __name__.split(".", maxsplit=1)[0]


def register() -> None:
    """Make anomalib find :class:`DdpmSt` by name everywhere. Calling it again changes nothing.

    Raises:
        RuntimeError: If the look-up tables of this version of anomalib differ from those that were tested.
    """
    if not isinstance(getattr(anomalib.models, "ALLOWED_MODULES", None), set):
        msg = (
            "This version of anomalib looks up models in another way than anomalib 2.7: install a version that "
            "anomalib_ddpm_st was tested with (see constraints.txt)."
        )
        raise RuntimeError(msg)
    anomalib.models.ALLOWED_MODULES.add(PACKAGE)
    for module in (anomalib.models, anomalib.models.image):
        known = getattr(module, DdpmSt.__name__, DdpmSt)
        if known is not DdpmSt:
            logger.warning(
                "%s.%s was %s.%s and has been replaced by %s.%s.",
                module.__name__,
                DdpmSt.__name__,
                known.__module__,
                known.__name__,
                PACKAGE,
                DdpmSt.__name__,
            )
        setattr(module, DdpmSt.__name__, DdpmSt)


def keep_benchmark_results() -> None:
    """Let ``benchmark`` collect jobs with different settings or metrics in one table; missing cells stay empty.

    anomalib 2.7 collects by the keys of the first job and loses the whole table if another job has other keys.
    """
    BenchmarkJob.collect = staticmethod(pd.DataFrame)  # type: ignore[method-assign,assignment]


@contextmanager
def synthetic_split(generator: DiffusionAnomalyGenerator) -> Generator[None, None, None]:
    """Let anomalib make its synthetic validation and test sets with this generator.

    anomalib 2.7 has no other way: ``val_split_mode: synthetic`` and ``test_split_mode: synthetic`` always use its own
    Perlin noise. Within the context this generator makes the defects instead.

    Args:
        generator (DiffusionAnomalyGenerator): Generator.

    Yields:
        None: Set up the datamodule within the context.

    Example:
        >>> from anomalib.data import Folder
        >>> datamodule = Folder("parts", root="parts", normal_dir="good", val_split_mode="synthetic")
        >>> with synthetic_split(prepare_generator(good_images)):  # doctest: +SKIP
        ...     datamodule.setup()
    """
    original = synthetic.PerlinAnomalyGenerator
    synthetic.PerlinAnomalyGenerator = lambda **_: generator.make_defects  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        synthetic.PerlinAnomalyGenerator = original  # type: ignore[misc]
