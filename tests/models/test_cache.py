"""Folders of the cache are made once on a machine, and whole or not at all."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from xgray.models.cache import make_once


def test_concurrent_callers_wait_for_the_folder_that_one_of_them_makes(tmp_path):
    calls = []

    def make(folder):
        calls.append(folder)
        time.sleep(0.2)
        (folder / "weights").write_text("whole")

    barrier = threading.Barrier(4)

    def call(_):
        barrier.wait()
        return (make_once(tmp_path / "models" / "a", make) / "weights").read_text()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, range(4))) == ["whole"] * 4
    assert len(calls) == 1


def test_folder_that_failed_half_way_does_not_exist_and_is_made_by_the_next_call(tmp_path):
    target = tmp_path / "a"

    def fail(folder):
        (folder / "weights").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        make_once(target, fail)
    assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.lock"]
    make_once(target, lambda folder: (folder / "weights").write_text("whole"))
    assert (target / "weights").read_text() == "whole"
