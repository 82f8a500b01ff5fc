"""The cache of reference log-probabilities: what shares a value, and what is read of a folder with many writers."""

import pytest

from xgray.config import Train
from xgray.train.pairs import TokenizedPair
from xgray.train.reference import ReferenceCache, arithmetic

PAIR = TokenizedPair([1, 2], [3], [4])


def test_values_of_all_writers_are_read(tmp_path):
    first = ReferenceCache.of(Train(), "weights", str(tmp_path))
    second = ReferenceCache.of(Train(seed=7, learning_rate=1.0, method="lora"), "weights", str(tmp_path))
    assert first.read() == {}
    first.write({"a": (-1.5, -2.5)})
    second.write({"b": (-3.0, -4.0)})
    second.write({"a": (-1.5, -2.5)})
    assert first.read() == {"a": (-1.5, -2.5), "b": (-3.0, -4.0)}
    assert first.key(PAIR) == second.key(PAIR)


def test_key_depends_on_weights_arithmetic_and_maximum_length(tmp_path):
    caches = [
        ReferenceCache.of(Train(), "weights", str(tmp_path)),
        ReferenceCache.of(Train(), "other weights", str(tmp_path)),
        ReferenceCache.of(Train(dtype="bfloat16"), "weights", str(tmp_path)),
        ReferenceCache.of(Train(max_length=128), "weights", str(tmp_path)),
    ]
    assert len({cache.key(PAIR) for cache in caches}) == 4


def test_incomplete_file_is_not_read(tmp_path):
    cache = ReferenceCache.of(Train(), "weights", str(tmp_path))
    cache.write({"a": (-1.0, -2.0)})
    [file] = cache.folder.local.iterdir()
    (cache.folder.local / ".tmp-0123-half.parquet").write_bytes(file.read_bytes()[:40])
    assert cache.read() == {"a": (-1.0, -2.0)}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_methods_share_values_in_float32(method):
    assert arithmetic(Train(method=method)) == "float32"


def test_qlora_shares_no_values_with_lora():
    assert arithmetic(Train(method="qlora")) != arithmetic(Train(method="lora"))
