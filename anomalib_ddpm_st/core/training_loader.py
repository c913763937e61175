# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Training batches that go on without a pause between epochs and continue where an interrupted training stopped.

With few images an epoch is one to a few steps. The usual data loader starts its workers again at every epoch, and every
first batch of an epoch is waited for.
"""

import itertools
import math
import random
import signal
from collections.abc import Callable, Iterator, Sized
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler


class SeededItems(Dataset):
    """Dataset whose random augmentations depend on the seed of the item alone, not on the worker that reads it.

    Args:
        dataset (Dataset): Dataset.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Number of items."""
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: tuple[int, int]) -> Any:  # noqa: ANN401
        """Item of an index and a seed."""
        index, seed = key
        with isolate_rng(include_cuda=False):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            return self.dataset[index]


class EndlessBatches(Sampler):
    """Batches of one random order of all items after the other, as a function of a seed and the number of the batch.

    Args:
        count (int): Number of items.
        batch_size (int): Number of items per batch; the last batch of an order may be smaller.
        seed (int): Seed.

    Attributes:
        start (int): Number of the first batch.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.start = 0

    def __len__(self) -> int:
        """Number of batches of one order."""
        return math.ceil(self.count / self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Batches of pairs of index and seed, without end."""
        epoch, first = divmod(self.start, len(self))
        while True:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            order = torch.randperm(self.count, generator=generator).tolist()
            seeds = torch.randint(2**62, (self.count,), generator=generator).tolist()
            items = list(zip(order, seeds, strict=True))
            places = range(0, self.count, self.batch_size)[first:]
            yield from (items[place : place + self.batch_size] for place in places)
            epoch, first = epoch + 1, 0


def _start_worker(worker_init_fn: Callable[[int], None] | None, worker: int) -> None:
    """Let a worker leave Ctrl-C, which the terminal sends to it, too, to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if worker_init_fn is not None:
        worker_init_fn(worker)


class TrainingLoader(DataLoader):
    """Data loader with the settings of another one, whose workers stay and whose order is a function of a seed.

    Its state is part of Lightning's checkpoints.

    Args:
        loader (DataLoader): Shuffling data loader, such as that of a datamodule.
    """

    def __init__(self, loader: DataLoader) -> None:
        # Drawn from the global random state, so that a seed of the user decides, unless the loader has its own.
        seed = int(torch.randint(2**62, (), generator=loader.generator))
        self.batches = EndlessBatches(len(loader.dataset), loader.batch_size or 1, seed)  # type: ignore[arg-type]
        self.drawn = 0
        super().__init__(
            SeededItems(loader.dataset),
            batch_sampler=self.batches,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=partial(_start_worker, loader.worker_init_fn),
            multiprocessing_context=loader.multiprocessing_context,
            prefetch_factor=loader.prefetch_factor,
            # Starting an iterator draws a number, which must not come from the global random state.
            generator=torch.Generator(),
        )
        # Lightning ends the workers of an iterator of this name.
        self._iterator: Any = None

    def __iter__(self) -> Iterator:  # type: ignore[override]
        """Batches of one epoch."""
        if self._iterator is None:
            self.batches.start = self.drawn
            self._iterator = super().__iter__()
        for _ in range(len(self)):
            batch = next(self._iterator)
            self.drawn += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Seed and number of batches that were taken."""
        return {"seed": self.batches.seed, "drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue with the batch after those that were taken.

        Args:
            state (dict[str, int]): Result of :meth:`state_dict`.
        """
        self.batches.seed, self.drawn = state["seed"], state["drawn"]
        self._iterator = None


class ResumableSampler(RandomSampler):
    """Random images with replacement, whose position is part of checkpoints.

    Args:
        data (Sized): Items.
        num_samples (int): Number of samples of an epoch.
    """

    def __init__(self, data: Sized, num_samples: int) -> None:
        super().__init__(data, replacement=True, num_samples=num_samples)
        self._seed = 0
        self._taken = 0
        self._samples: Iterator[int] | None = None

    def __iter__(self) -> Iterator[int]:
        """Samples of an epoch; after a resumption, for which Lightning counts steps differently, of two draws."""
        for _ in range(self.num_samples):
            if self._samples is None or self._taken == self.num_samples:
                # As the base class does at every epoch.
                self._seed, self._taken = int(torch.empty((), dtype=torch.int64).random_()), 0
                self._samples = self._draw()
            self._taken += 1
            yield next(self._samples)

    def _draw(self) -> Iterator[int]:
        """Samples of a seed that were not taken."""
        generator = torch.Generator().manual_seed(self._seed)
        sampler = RandomSampler(self.data_source, replacement=True, num_samples=self.num_samples, generator=generator)
        return itertools.islice(sampler, self._taken, None)

    def state_dict(self) -> dict[str, int]:
        """Seed and number of its samples that were taken."""
        return {"seed": self._seed, "taken": self._taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue with the sample after those that were taken.

        Args:
            state (dict[str, int]): Result of :meth:`state_dict`.
        """
        self._seed, self._taken = state["seed"], state["taken"]
        self._samples = self._draw()
