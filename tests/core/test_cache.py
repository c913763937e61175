# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the content-addressed cache."""

import errno
import threading
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from anomalib_ddpm_st.core.cache import cached_folder, content_key

PATIENCE = 20.0


def test_key_is_stable() -> None:
    """Same content, same key: order of settings, tuples for lists and memory layout do not matter."""
    tensor = torch.arange(24).reshape(2, 3, 4)
    key = content_key({"a": 1, "b": [1.5, None, "x"]}, tensor)
    assert len(key) == 16
    assert set(key) <= set("0123456789abcdef")
    assert content_key({"b": (1.5, None, "x"), "a": 1}, tensor.clone()) == key
    strided = tensor.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert not strided.is_contiguous()
    assert content_key({"a": 1, "b": [1.5, None, "x"]}, strided) == key


def test_key_changes() -> None:
    """Any other value, shape, kind, number or order of tensors, and any other setting, is another key."""
    tensor = torch.zeros(2, 6, dtype=torch.uint8)
    changed = tensor.clone()
    changed[1, 5] = 1
    keys = [
        content_key({"a": 1}, tensor),
        content_key({"a": 2}, tensor),
        content_key({"b": 1}, tensor),
        content_key({"a": 1, "b": None}, tensor),
        content_key({"a": "1"}, tensor),
        content_key({"a": 1}, changed),
        content_key({"a": 1}, tensor.reshape(3, 4)),
        content_key({"a": 1}, tensor.to(torch.int8)),
        content_key({"a": 1}, tensor.float()),
        content_key({"a": 1}, tensor[:1], tensor[1:]),
        content_key({"a": 1}, tensor, changed),
        content_key({"a": 1}, changed, tensor),
        content_key({"a": 1}),
    ]
    assert len(set(keys)) == len(keys)


def test_builds_once(tmp_path: Path) -> None:
    """The folder is built at the first call, in a cache that need not exist, and found at the second."""
    cache = tmp_path / "deep" / "cache"
    built: list[Path] = []

    def build(folder: Path) -> None:
        assert folder.is_dir()
        built.append(folder)
        (folder / "result").write_text("whole")

    first = cached_folder(cache, "name", build)
    second = cached_folder(cache, "name", build)
    assert first == second == cache / "name"
    assert (first / "result").read_text() == "whole"
    assert len(built) == 1
    assert built[0] != first
    assert not built[0].exists()
    other = cached_folder(cache, "other", build)
    assert other == cache / "other"
    assert len(built) == 2


def test_half_written_folder_is_never_shown(tmp_path: Path) -> None:
    """While it is being built, the folder is not there."""

    def build(folder: Path) -> None:
        (folder / "part").write_text("half")
        assert not (tmp_path / "name").exists()

    assert (cached_folder(tmp_path, "name", build) / "part").exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_failed_build_is_handed_on(tmp_path: Path, error: type[BaseException]) -> None:
    """What an interrupted build left is given to the next one, while the error still lives."""

    def interrupted(folder: Path) -> None:
        (folder / "checkpoint").write_text("step 5")
        raise error

    with pytest.raises(error) as caught:
        cached_folder(tmp_path, "name", interrupted)
    assert not (tmp_path / "name").exists()
    assert (tmp_path / "name.partial" / "checkpoint").exists()

    seen: list[str] = []
    results: list[Path] = []

    def resumed(folder: Path) -> None:
        seen.append((folder / "checkpoint").read_text())

    # In a thread, so that a lock that was not let go of fails the test and does not hang it.
    thread = threading.Thread(target=lambda: results.append(cached_folder(tmp_path, "name", resumed)), daemon=True)
    thread.start()
    thread.join(3)
    assert not thread.is_alive(), "the failed build still holds the lock"
    assert caught.value is not None
    assert results == [tmp_path / "name"]
    assert seen == ["step 5"]
    assert not (tmp_path / "name.partial").exists()


def test_waits_for_another_build(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A second builder says that it waits, then takes the folder of the first without building."""
    started, finish = threading.Event(), threading.Event()
    results: list[Path] = []
    built: list[str] = []

    def slow(folder: Path) -> None:
        built.append("slow")
        (folder / "a").write_text("1")
        started.set()
        assert finish.wait(PATIENCE)
        (folder / "b").write_text("2")

    def call(build_name: str) -> None:
        build = slow if build_name == "slow" else lambda _: built.append(build_name)
        folder = cached_folder(tmp_path, "name", build)
        assert (folder / "b").exists()
        results.append(folder)

    first = threading.Thread(target=call, args=("slow",), daemon=True)
    second = threading.Thread(target=call, args=("second",), daemon=True)
    first.start()
    assert started.wait(PATIENCE)
    second.start()
    second.join(0.3)
    assert second.is_alive(), "the second builder did not wait"
    assert not (tmp_path / "name").exists()
    assert "waiting" in caplog.text
    finish.set()
    first.join(PATIENCE)
    second.join(PATIENCE)
    assert results == [tmp_path / "name"] * 2
    assert built == ["slow"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        PermissionError(errno.EACCES, "Permission denied"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk(tmp_path: Path, error: Exception) -> None:
    """The message names the folder, the cause and the way out."""

    def build(_: Path) -> None:
        raise error

    with pytest.raises(OSError, match=r"name.*(No space|Permission).*cache_dir") as caught:
        cached_folder(tmp_path, "name", build)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cache_that_cannot_be_made(tmp_path: Path) -> None:
    """A file where the cache should be, or a folder that cannot be written, gives the same sentence."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"name.*cannot be written.*cache_dir"):
        cached_folder(tmp_path / "file" / "cache", "name", lambda _: None)


def test_read_only_cache_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is there is returned without writing anything."""
    (tmp_path / "name").mkdir()

    def fail(*_: object, **__: object) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("anomalib_ddpm_st.core.cache.FileLock.acquire", fail)
    assert cached_folder(tmp_path, "name", lambda _: pytest.fail("built again")) == tmp_path / "name"


def test_read_only_cache_without_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that cannot be locked is named."""

    def fail(*_: object, **__: object) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("anomalib_ddpm_st.core.cache.FileLock.acquire", fail)
    with pytest.raises(OSError, match=r"name.*Read-only.*cache_dir"):
        cached_folder(tmp_path, "name", lambda _: None)
