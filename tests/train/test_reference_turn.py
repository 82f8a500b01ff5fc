"""The turn to compute the reference: one at a time, and none needed where nothing is missing."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from tests.processes import wait_until
from xgray.config import Train
from xgray.train.pairs import TokenizedPair
from xgray.train.reference import ReferenceCache
from xgray.train.reference_turn import reference_turn

PAIR = TokenizedPair([1], [2], [3])


class StillWaiting(Exception):
    pass


def give_up() -> None:
    raise StillWaiting


def cache_in(folder: Path) -> ReferenceCache:
    return ReferenceCache.of(Train(), "model", str(folder))


def hold(folder: Path, marker: Path) -> None:
    with reference_turn(cache_in(folder), [PAIR], give_up):
        marker.touch()
        signal.pause()


def test_one_holds_the_turn_until_the_values_are_there(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    with reference_turn(cache, [PAIR], give_up):
        with pytest.raises(StillWaiting), reference_turn(cache, [PAIR], give_up):
            pass
        cache.write({cache.key(PAIR): (-1.0, -2.0)})
    with reference_turn(cache, [PAIR], give_up), reference_turn(cache, [PAIR], give_up):
        pass  # nothing is missing, so nobody waits
    missing = TokenizedPair([1], [2], [4])
    with reference_turn(cache, [PAIR, missing], give_up), reference_turn(cache, [PAIR], give_up):
        pass  # one whose pairs are all there waits for nobody


def test_the_turn_of_a_killed_process_is_free(tmp_path: Path) -> None:
    holder = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path, tmp_path / "marker"))
    holder.start()
    wait_until((tmp_path / "marker").exists)
    with pytest.raises(StillWaiting), reference_turn(cache_in(tmp_path), [PAIR], give_up):
        pass
    os.kill(holder.pid or 0, signal.SIGKILL)
    holder.join()
    with reference_turn(cache_in(tmp_path), [PAIR], give_up):
        pass
