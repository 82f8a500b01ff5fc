"""Checkpoints on a disk: which are kept, and that damaged ones are passed over."""

import hashlib
import logging

import pytest

from xgray.storage.checksums import CONTENTS, fetch_verified
from xgray.storage.folder import DamagedError, Folder
from xgray.train.checkpoints import Checkpoints


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(Folder(str(tmp_path / "checkpoints")))
    for step, score in ((10, 0.5), (20, 0.2), (30, 0.4), (40, 0.2), (45, None)):
        source = tmp_path / "work"
        source.mkdir()
        (source / "state").write_bytes(b"%d" % step * 100)
        (source / "schedule").write_text("{}")
        checkpoints.add(source, step, score, ends_training=False)
    return checkpoints, tmp_path / "checkpoints"


def test_the_last_two_and_the_best_are_kept(saved):
    checkpoints, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000020", "step-00000040", "step-00000045"]
    assert [checkpoint.step for checkpoint in checkpoints.saved()] == [45, 40, 20]
    assert checkpoints.best(checkpoints.saved()).step == 20


@pytest.mark.parametrize("damage", ["cut", "missing", "changed", "no list", "list cut off"])
def test_newest_passes_over_a_damaged_checkpoint_with_a_warning(saved, tmp_path, caplog, damage):
    checkpoints, folder = saved
    newest = folder / "step-00000045"
    content = (newest / "state").read_bytes()
    if damage == "cut":
        (newest / "state").write_bytes(content[: len(content) // 2])
    elif damage == "missing":
        (newest / "state").unlink()
    elif damage == "changed":
        (newest / "state").write_bytes(b"x" + content[1:])
    elif damage == "list cut off":
        (newest / CONTENTS).write_bytes((newest / CONTENTS).read_bytes()[:20])
    else:
        (newest / CONTENTS).unlink()
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest(tmp_path / "copy").step == 40
    # A checkpoint without a list was never complete: a killed training may leave one, so there is no warning.
    assert ("is damaged" in caplog.text) == (damage != "no list")


@pytest.mark.parametrize("name", ["../state", "deep/../../state", "{outside}/state"])
def test_a_list_that_names_a_file_outside_its_folder_is_damaged(tmp_path, name):
    (tmp_path / "state").write_bytes(b"another file")
    entry = {"bytes": 12, "sha256": hashlib.sha256(b"another file").hexdigest()}
    folder = Folder(str(tmp_path / "checkpoint"))
    folder.write_json(CONTENTS, {"files": {name.format(outside=tmp_path): entry}})
    with pytest.raises(DamagedError, match="names a file outside"):
        fetch_verified(folder, tmp_path / "copy")
