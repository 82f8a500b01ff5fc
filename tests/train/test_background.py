"""Checkpoints are written beside the next steps: what is written, in which order, and what a failure does."""

import threading

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from tests.processes import start_python, wait_until
from xgray.storage.folder import Folder
from xgray.train.background import BackgroundWriter
from xgray.train.checkpoints import Checkpoints
from xgray.train.state import copy_state, load_state


def test_the_training_goes_on_while_a_write_is_under_way_and_waits_for_all_at_its_end():
    writer, may_write, written = BackgroundWriter(), threading.Event(), []
    writer.submit(lambda: written.append(may_write.wait(60)))
    writer.submit(lambda: written.append("second"))
    assert written == []
    may_write.set()
    writer.wait()
    assert written == [True, "second"]


def test_a_checkpoint_whose_state_could_not_be_written_never_counts_and_its_error_is_raised(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "schedule.json").write_text("{}")
    checkpoints, writer = Checkpoints(Folder(str(tmp_path / "checkpoints"))), BackgroundWriter()
    may_fail = threading.Event()

    def fail():
        may_fail.wait(60)
        raise OSError(28, "No space left on device")

    writer.submit(fail)
    writer.submit(lambda: checkpoints.add(tmp_path / "work", 5, 0.1, False))
    may_fail.set()
    for raising in (writer.wait, writer.check, lambda: writer.submit(lambda: None)):
        with pytest.raises(OSError, match="No space left"):
            raising()
    assert checkpoints.saved() == []


SAVING = """
import sys
from pathlib import Path
from xgray.storage.folder import Folder
from xgray.train.background import BackgroundWriter
from xgray.train.checkpoints import Checkpoints

root, writer = Path(sys.argv[1]), BackgroundWriter()
checkpoints = Checkpoints(Folder(str(root / "checkpoints")))
for step in range(1, 10_000):
    source = root / f"work-{step}"
    source.mkdir()
    writer.wait()
    writer.submit(lambda source=source, step=step: (source / "state").write_bytes(step.to_bytes(2) * 2**20))
    writer.submit(lambda source=source, step=step: checkpoints.add(source, step, -step, False))
"""


def test_a_process_killed_while_it_writes_leaves_a_whole_checkpoint(tmp_path, caplog):
    process = start_python("-c", SAVING, tmp_path)
    saved = Checkpoints(Folder(str(tmp_path / "checkpoints")))
    wait_until(lambda: any(checkpoint.step > 5 for checkpoint in saved.saved()), process)
    process.kill()
    process.wait()
    newest = saved.newest(tmp_path / "copy")  # compares every file with its checksum
    assert newest.step > 5
    assert (tmp_path / "checkpoints" / newest.name / "state").read_bytes() == newest.step.to_bytes(2) * 2**20
    assert not caplog.records, "an unfinished checkpoint is no damaged one"


def make_training(seed):
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.1)
    return model, optimizer, LambdaLR(optimizer, lambda step: 1 / (step + 1))


def step(model, optimizer, schedule):
    model(torch.ones(3)).square().sum().backward()
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()


def test_a_copied_state_is_that_of_its_step_however_late_it_is_written(tmp_path):
    training = make_training(0)
    step(*training)
    state = copy_state(*training, keep=True)
    step(*training)
    expected = [parameter.clone() for parameter in training[0].parameters()]
    step(*training)
    state.write(tmp_path)
    resumed = make_training(1)
    load_state(*resumed, tmp_path)
    step(*resumed)
    assert all(torch.equal(*pair) for pair in zip(resumed[0].parameters(), expected, strict=True))
    assert resumed[1].param_groups[0]["lr"] == pytest.approx(0.1 / 3)
    assert copy_state(*training, keep=False) is None
