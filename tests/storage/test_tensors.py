"""Damaged files of tensors are refused with a remedy."""

import numpy as np
import pytest
from safetensors.numpy import save

from xgray.errors import StageError
from xgray.experiment.stages.probe import read_probe
from xgray.storage.folder import Folder
from xgray.storage.tensors import read_tensors


def test_a_damaged_file_is_refused_in_one_line(tmp_path):
    folder, content = Folder(str(tmp_path)), save({"w": np.arange(4, dtype=np.float32)})
    folder.write_bytes("whole.safetensors", content)
    assert read_tensors(folder, "whole.safetensors", "w")["w"].tolist() == [0, 1, 2, 3]
    with pytest.raises(StageError, match=r"whole.safetensors is damaged \(it holds no v\); delete it, and the same"):
        read_tensors(folder, "whole.safetensors", "v")
    for kept in (0, 4, len(content) - 1):
        folder.write_bytes("cut.safetensors", content[:kept])
        with pytest.raises(StageError, match=r"cut\.safetensors is damaged \(.*\); delete it, and the same") as error:
            read_tensors(folder, "cut.safetensors", "w")
        assert len(str(error.value).splitlines()) == 1


def test_a_damaged_probe_asks_to_delete_the_manifest(tmp_path):
    """The stage is finished, so deleting the file alone would not make the stage run again."""
    folder = Folder(str(tmp_path))
    folder.write_bytes("probe.safetensors", save({"w": np.ones(4, np.float32)})[:-2])
    with pytest.raises(StageError, match=r"probe\.safetensors is damaged .*; delete .*manifest\.json, and the stage"):
        read_probe(folder)
