# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Registration with anomalib: the one place that touches what is private to it.

anomalib 2.7 has no way to add a model from outside. ``get_model(name)`` and ``list_models()`` find every direct
subclass of ``AnomalibModule``; dictionary configs and ``benchmark`` look the class up as an attribute of
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
    """Make anomalib find :class:`DdpmSt` by name on every surface. Calling it again changes nothing.

    Raises:
        RuntimeError: If this version of anomalib has other look-up tables than those that were tested.
    """
    if not isinstance(getattr(anomalib.models, "ALLOWED_MODULES", None), set):
        msg = (
            "This version of anomalib looks models up in another way than anomalib 2.7: install a version that "
            "anomalib_ddpm_st was tested with (see constraints.txt)."
        )
        raise RuntimeError(msg)
    anomalib.models.ALLOWED_MODULES.add(PACKAGE)
    for module in (anomalib.models, anomalib.models.image):
        known = getattr(module, DdpmSt.__name__, DdpmSt)
        if known is not DdpmSt:
            logger.warning(
                "%s.%s was %s.%s and is now %s.%s.",
                module.__name__,
                DdpmSt.__name__,
                known.__module__,
                known.__name__,
                PACKAGE,
                DdpmSt.__name__,
            )
        setattr(module, DdpmSt.__name__, DdpmSt)


def keep_benchmark_results() -> None:
    """Let ``benchmark`` make one table of jobs with different settings or metrics; what a job lacks stays empty.

    anomalib 2.7 collects by the keys of the first job and loses the whole table where another job has other keys.
    """
    BenchmarkJob.collect = staticmethod(pd.DataFrame)  # type: ignore[method-assign,assignment]


@contextmanager
def synthetic_split(generator: DiffusionAnomalyGenerator) -> Generator[None, None, None]:
    """Let anomalib make its synthetic validation and test sets with this generator.

    anomalib 2.7 has no other way: ``val_split_mode: synthetic`` and ``test_split_mode: synthetic`` always take its own
    Perlin noise. Within the context every image that anomalib wants a defect in gets one from the generator.

    Args:
        generator (DiffusionAnomalyGenerator): Generator.

    Yields:
        None: Set up the datamodule meanwhile.

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
