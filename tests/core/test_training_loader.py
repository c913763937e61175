# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the loader of training batches: its order, how it continues, its workers and random draws."""

import os
import random
import signal
from collections.abc import Iterator
from itertools import islice
from multiprocessing import active_children
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, Dataset, RandomSampler

from anomalib_ddpm_st.core.training_loader import EndlessBatches, ResumableSampler, SeededItems, TrainingLoader

COUNT = 7
BATCH_SIZE = 3
STEPS_PER_EPOCH = 3


class Draws(Dataset):
    """Items with their index and a draw of each source of random numbers."""

    def __len__(self) -> int:
        """Number of items."""
        return COUNT

    def __getitem__(self, index: int) -> torch.Tensor:
        """Index and draws."""
        numbers = [index, random.random(), np.random.rand()]  # noqa: NPY002, S311
        return torch.cat([torch.tensor(numbers, dtype=torch.double), torch.rand(1, dtype=torch.double)])


class Workers(Draws):
    """Items with the process that reads them and how it handles signals."""

    def __getitem__(self, index: int) -> torch.Tensor:
        """Process, its handling of signals and a variable that the start of the worker sets."""
        del index
        handling = (
            signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
            signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        )
        return torch.tensor([os.getpid(), *handling, int(os.environ.get("STARTED_WORKER", "-1"))])


def started(worker: int) -> None:
    """Start of a worker that a user wrote."""
    os.environ["STARTED_WORKER"] = str(worker)


def make_loader(
    workers: int = 0,
    seed: int = 0,
    dataset: Dataset | None = None,
    batch_size: int = BATCH_SIZE,
    **settings: Any,  # noqa: ANN401
) -> TrainingLoader:
    """Loader of a shuffling data loader, whose order depends on the global seed."""
    torch.manual_seed(seed)
    plain = DataLoader(dataset or Draws(), batch_size, shuffle=True, num_workers=workers, **settings)
    return TrainingLoader(plain)


def endless(loader: TrainingLoader) -> Iterator[torch.Tensor]:
    """Batches of one epoch after the other."""
    while True:
        yield from loader


def take(loader: TrainingLoader, count: int) -> torch.Tensor:
    """The next items of a loader as one tensor, from so many batches."""
    batches = list(islice(endless(loader), count))
    return torch.cat(batches) if batches else torch.empty(0, 4, dtype=torch.double)


def same(first: Any, second: Any) -> bool:  # noqa: ANN401
    """Whether two random states of numpy or Python are equal."""
    return str(first) == str(second)


# ---------------------------------------------------------------------------------------------------------------------
# Order


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(3, [3, 3, 1]), (7, [7]), (20, [7]), (1, [1] * 7)], ids=["3", "7", "20", "1"]
)
def test_each_item_once_an_epoch(batch_size: int, sizes: list[int]) -> None:
    """In another order each time; the last batch is what is left."""
    loader = make_loader(batch_size=batch_size)
    assert len(loader) == len(sizes)
    orders = []
    for _ in range(4):
        epoch = list(loader)
        assert [len(batch) for batch in epoch] == sizes
        orders.append([int(index) for index in torch.cat(epoch)[:, 0]])
        assert sorted(orders[-1]) == list(range(COUNT))
    assert len({tuple(order) for order in orders}) == 4


def test_seed_decides() -> None:
    """The global one, or that of the generator of the data loader."""
    first = take(make_loader(seed=1), 6)
    assert torch.equal(first, take(make_loader(seed=1), 6))
    assert not torch.equal(first[:, 0], take(make_loader(seed=2), 6)[:, 0])
    own = [take(make_loader(seed=seed, generator=torch.Generator().manual_seed(5)), 6) for seed in (1, 2)]
    assert torch.equal(*own)
    assert not torch.equal(own[0], first)


@pytest.mark.parametrize("start", range(2 * STEPS_PER_EPOCH + 1))
def test_batches_are_a_function_of_their_number(start: int) -> None:
    """Wherever they start; no two items have the same seed."""
    batches = EndlessBatches(COUNT, BATCH_SIZE, seed=11)
    assert len(batches) == STEPS_PER_EPOCH
    whole = list(islice(batches, 12))
    batches.start = start
    assert list(islice(batches, 12 - start)) == whole[start:]
    seeds = [seed for batch in whole for _, seed in batch]
    assert len(set(seeds)) == len(seeds) == 4 * COUNT
    assert whole != list(islice(EndlessBatches(COUNT, BATCH_SIZE, seed=12), 12))


# ---------------------------------------------------------------------------------------------------------------------
# Continuing


@pytest.mark.parametrize(("workers", "positions"), [(0, range(2 * STEPS_PER_EPOCH + 2)), (2, (2, 3))])
def test_continues_with_the_next_batch(workers: int, positions: range) -> None:
    """Wherever it stopped, also at the end of an epoch, and although workers have read ahead."""
    whole = take(make_loader(), 12)
    for position in positions:
        loader = make_loader(workers)
        begun = take(loader, position)
        state = loader.state_dict()
        assert state["drawn"] == position
        resumed = make_loader(workers, seed=9)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert torch.equal(torch.cat([begun, take(resumed, 12 - position)]), whole)


def test_state_replaces_the_position() -> None:
    """Of a loader that has given batches already."""
    loader = make_loader()
    whole = take(loader, 8)
    loader.load_state_dict({**loader.state_dict(), "drawn": 3})
    assert torch.equal(take(loader, 5), whole[COUNT:])


def test_position_counts_the_batch_that_is_used() -> None:
    """A state that is taken between two batches of an epoch."""
    loader = make_loader()
    assert [loader.state_dict()["drawn"] for _ in loader] == [1, 2, 3]


# ---------------------------------------------------------------------------------------------------------------------
# Random draws


def test_augmentations_do_not_depend_on_the_number_of_workers() -> None:
    """Neither those of torch nor of numpy nor of Python; each item has its own."""
    alone = take(make_loader(0), 6)
    assert torch.equal(take(make_loader(2), 6), alone)
    assert all(len(alone[:, column].unique()) == len(alone) for column in (1, 2, 3))


def test_items_are_a_function_of_index_and_seed() -> None:
    """The random states stay as they were."""
    items = SeededItems(Draws())
    assert len(items) == COUNT
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    first = items[2, 2**61 + 5]
    after = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert same(before[1], after[1])
    assert same(before[2], after[2])
    torch.rand(3)
    np.random.rand(3)  # noqa: NPY002
    random.random()  # noqa: S311
    assert torch.equal(items[2, 2**61 + 5], first)
    assert (items[2, 6] != first)[1:].all()


@pytest.mark.parametrize("workers", [0, 2])
def test_iterating_draws_nothing(workers: int) -> None:
    """Nothing of the global random states, neither at the start of an epoch nor within."""
    loader = make_loader(workers)
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    take(loader, 5)
    after = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert same(before[1], after[1])
    assert same(before[2], after[2])


# ---------------------------------------------------------------------------------------------------------------------
# Workers and settings


def test_workers_stay() -> None:
    """The same two processes read every epoch, leave Ctrl-C to the main process and end with Lightning's loop.

    They do not inherit what the main process does on SIGTERM.
    """
    loader = make_loader(2, dataset=Workers(), worker_init_fn=started)
    handler = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        items = torch.cat([*loader, *loader, *loader])
    finally:
        signal.signal(signal.SIGTERM, handler)
    processes = set(items[:, 0].tolist())
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert items[:, 1:3].all()
    assert set(items[:, 3].tolist()) == {0, 1}
    assert processes <= {child.pid for child in active_children()}
    CombinedLoader(loader).reset()
    assert not processes & {child.pid for child in active_children()}


def collate(items: list[torch.Tensor]) -> int:
    """Count the items."""
    return len(items)


def test_settings_are_taken_over() -> None:
    """All that decide how batches are made."""
    settings = {
        "collate_fn": collate,
        "num_workers": 2,
        "timeout": 7.0,
        "prefetch_factor": 5,
        "multiprocessing_context": "spawn",
        "pin_memory": True,
    }
    loader = TrainingLoader(DataLoader(Draws(), BATCH_SIZE, shuffle=True, **settings))
    for name in settings.keys() - {"multiprocessing_context"}:
        assert getattr(loader, name) == settings[name]
    assert loader.multiprocessing_context.get_start_method() == "spawn"
    assert list(make_loader(collate_fn=collate)) == [3, 3, 1]


# ---------------------------------------------------------------------------------------------------------------------
# Images with replacement


def take_samples(sampler: RandomSampler, count: int) -> list[int]:
    """The next samples, of one epoch after the other."""

    def endless() -> Iterator[int]:
        while True:
            yield from sampler

    return list(islice(endless(), count))


def test_samples_are_those_of_torch() -> None:
    """A seed draws the same images with either sampler, which take the same from the global random state."""
    drawn = []
    for sampler in (RandomSampler(range(5), replacement=True, num_samples=40), ResumableSampler(range(5), 40)):
        torch.manual_seed(3)
        drawn.append((take_samples(sampler, 100), torch.rand(1)))
        assert len(sampler) == 40
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("position", [1, 39, 40, 41, 95])
def test_samples_continue(position: int) -> None:
    """With the next one, also where Lightning starts another epoch before this one has ended."""
    torch.manual_seed(3)
    whole = take_samples(ResumableSampler(range(5), 40), 120)
    torch.manual_seed(3)
    sampler = ResumableSampler(range(5), 40)
    begun = take_samples(sampler, position)
    state, random_state = sampler.state_dict(), torch.get_rng_state()
    resumed = ResumableSampler(range(5), 40)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    torch.rand(3)
    torch.set_rng_state(random_state)
    assert begun + take_samples(resumed, 120 - position) == whole
