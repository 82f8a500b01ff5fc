"""A training that has diverged says so, and is not begun again unnoticed."""

import math

import pytest

from xgray.config import TrainingWorkers
from xgray.distributed.training import DIVERGED, run_task
from xgray.errors import DivergedError
from xgray.storage.folder import Folder
from xgray.train.divergence import check_finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("step", "field"), [(7, r"train\.learning_rate \(0\.5\)"), (1, r"train\.dtype")])
def test_the_step_and_the_likely_field_are_named(value, step, field):
    with pytest.raises(DivergedError, match=rf"gradient's norm of step {step} is {value}.*{field}"):
        check_finite(step, {"loss": 0.7, "validation loss": None, "gradient's norm": value}, 0.5, "train.")
    check_finite(step, {"loss": 0.7, "validation loss": None}, 0.5, "train.")


def test_a_training_that_has_diverged_is_not_begun_again(tmp_path):
    (tmp_path / DIVERGED).write_text("train: the loss of step 3 is nan\n")
    with pytest.raises(DivergedError, match=rf"loss of step 3 is nan\. .*delete {tmp_path}/{DIVERGED}"):
        run_task(None, TrainingWorkers(), Folder(str(tmp_path)), (False, 1), lambda phase: None)
