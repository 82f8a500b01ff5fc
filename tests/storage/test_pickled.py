"""Pickles and .pt files are read as data; whatever would run code, or is too much, is refused."""

import os
import pickle

import numpy as np
import pytest
import torch

from xgray.errors import InputError
from xgray.storage.pickled import MAX_DEPTH, read_neurons, read_pickled


class Calls:
    """Unpickled, it would call a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_back_as_they_were(tmp_path, protocol):
    plain = {"pre": {"en": 0.104}, "list": [1, -2, 2**70, True, None, "ü", (), (1,), (1, 2, 3, 4)]}
    array = np.arange(6.0).reshape(2, 3)
    arrays = [array, np.asfortranarray(array), array.astype(">i4"), array > 2]
    (tmp_path / "f.pkl").write_bytes(pickle.dumps([plain, arrays, np.float64(1.5)], protocol))
    found = read_pickled(tmp_path / "f.pkl")
    assert (found[0], found[2]) == (plain, 1.5)
    for read, written in zip(found[1], arrays, strict=True):
        assert np.array_equal(read, written)


def test_tensors_of_any_kind_and_layout_are_arrays(tmp_path):
    whole = torch.arange(24.0).reshape(2, 3, 4)
    tensors = [whole, whole.permute(2, 0, 1), whole[1, :, ::2], whole.bfloat16(), whole.half(), whole.long(), whole[:0]]
    torch.save({"all": tensors, "perplexities": [np.exp(1.0), 2.5]}, tmp_path / "f.pt")
    found = read_pickled(tmp_path / "f.pt")
    assert found["perplexities"] == [np.exp(1.0), 2.5]
    for read, written in zip(found["all"], tensors, strict=True):
        assert np.array_equal(read, written.float().numpy())


def test_a_whole_linear_layer_is_the_mapping_of_its_attributes(tmp_path):
    head = torch.nn.Linear(3, 1, bias=False)
    torch.save(head, tmp_path / "probe.pt")
    found = read_pickled(tmp_path / "probe.pt")
    assert np.array_equal(found["_parameters"]["weight"], head.weight.detach().numpy())


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Calls(os.system, "touch harmed"), "system"),
        (Calls(eval, "1"), "eval"),
        (os.system, "system"),
        ({"inside": [Calls(os.system, "touch harmed")]}, "system"),
        (Calls(getattr, "text", "upper"), "getattr"),
        (np.array([{"an": "object"}], dtype=object), "O8"),
    ],
)
def test_anything_that_could_run_code_is_refused_by_name_and_not_run(tmp_path, monkeypatch, value, named):
    monkeypatch.chdir(tmp_path)
    for protocol in (0, 2, 4):
        (tmp_path / "f.pkl").write_bytes(pickle.dumps(value, protocol))
        with pytest.raises(InputError, match=rf"f\.pkl: .*{named}.*could run code.*torch\.save\(module\.state_dict"):
            read_pickled(tmp_path / "f.pkl")
    torch.save(value, tmp_path / "f.pt")
    with pytest.raises(InputError, match=named):
        read_pickled(tmp_path / "f.pt")
    assert not (tmp_path / "harmed").exists()


def test_nesting_without_end_is_refused(tmp_path):
    endless: list = []
    endless.append(endless)
    deep: list = []
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    for value in (endless, deep):
        (tmp_path / "f.pkl").write_bytes(pickle.dumps(value))
        with pytest.raises(InputError, match="nested more than"):
            read_pickled(tmp_path / "f.pkl")


@pytest.mark.parametrize("name", ["whole.pkl", "whole.pt"])
def test_every_cut_of_a_file_is_refused_as_damaged(tmp_path, name):
    value = [np.arange(3.0), {"a": (1, 2)}]
    torch.save(value, tmp_path / name) if name.endswith("pt") else (tmp_path / name).write_bytes(pickle.dumps(value))
    whole = (tmp_path / name).read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(InputError, match="damaged one"):
            read_pickled(tmp_path / "cut")


def test_a_tensor_that_is_longer_than_its_numbers_is_refused(tmp_path):
    torch.save(torch.zeros(4), tmp_path / "f.pt")
    whole = (tmp_path / "f.pt").read_bytes()
    # The shape (4,) is written as the instructions BININT1 4, TUPLE1.
    assert whole.count(b"K\x04\x85") == 1
    (tmp_path / "f.pt").write_bytes(whole.replace(b"K\x04\x85", b"K\x09\x85"))
    with pytest.raises(InputError, match="damaged one"):  # the archive's checksum is wrong too
        read_pickled(tmp_path / "f.pt")


def test_neurons_are_pairs_of_numbers(tmp_path):
    (tmp_path / "f.pkl").write_bytes(pickle.dumps([(13, 2337), [0, 5]]))
    assert read_neurons(tmp_path / "f.pkl") == [(13, 2337), (0, 5)]
    for value in ([(1, 2, 3)], [(1.5, 2)], {"a": 1}, [(True, 1)]):
        (tmp_path / "f.pkl").write_bytes(pickle.dumps(value))
        with pytest.raises(InputError, match=r"pairs \(layer, index\)"):
            read_neurons(tmp_path / "f.pkl")
    with pytest.raises(InputError, match="cannot read the file"):
        read_neurons(tmp_path / "none.pkl")
