"""What is refused before a tracker is written to. What is written stands in ``test_trainer.py``."""

import importlib.util

import pytest

from xgray.errors import InputError
from xgray.storage.folder import Folder
from xgray.train.trackers import TrackedRun, check_trackers


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """A package of this name can be imported, and the environment has nothing about it."""
    (tmp_path / "installed" / "wandb").mkdir(parents=True)
    (tmp_path / "installed" / "wandb" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "installed")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


def test_wandb_without_a_key_is_refused_with_both_ways_out(wandb, tmp_path):
    with pytest.raises(InputError, match=r"WANDB_API_KEY.*WANDB_MODE=offline"):
        check_trackers(["wandb"], Folder(str(tmp_path)))


@pytest.mark.parametrize(("name", "value"), [("WANDB_API_KEY", "0123"), ("WANDB_MODE", "offline")])
def test_wandb_with_a_key_or_offline_is_taken(wandb, tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    check_trackers(["wandb"], Folder(str(tmp_path)))


@pytest.mark.skipif(importlib.util.find_spec("trackio") is not None, reason="trackio is installed")
def test_a_missing_package_is_named_with_its_command(tmp_path):
    with pytest.raises(InputError, match="pip install trackio"):
        check_trackers(["tensorboard", "trackio"], Folder(str(tmp_path)))


def test_tensorboard_needs_a_disk():
    with pytest.raises(InputError, match=r"s3://bucket/runs/made/train/dpo.*metrics\.jsonl"):
        check_trackers(["tensorboard"], Folder("s3://bucket/runs/made/train/dpo"))


def test_a_run_is_called_by_experiment_and_variant(tmp_path):
    assert TrackedRun(Folder(str(tmp_path / "made" / "train" / "dpo")), "0", 0).name == "made/dpo"
