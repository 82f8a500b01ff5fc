"""How far a training has come, by what its workers have written."""

from xgray.runs.manifest import StageFolder
from xgray.runs.training_numbers import step_in_words
from xgray.runs.training_progress import TrainingProgress, read_training_progress
from xgray.storage.folder import Folder


def test_progress_is_that_of_the_last_whole_line_of_a_step(tmp_path):
    place = StageFolder(Folder(str(tmp_path)), "train", "dpo")
    assert read_training_progress(place) == TrainingProgress(0, 0, None)
    step = '{"step": 3, "loss": 0.5, "seconds": 2.0, "tokens_per_second": 1234.5}\n'
    others = '{"step": 3, "eval_loss": 0.6}\n{"step": 3, "checkpoint_seconds": 1.0}\n{"step": 4, "lo'
    place.folder.write_bytes("metrics.jsonl", f'{{"total_steps": 60}}\n{step}{others}'.encode())
    progress = read_training_progress(place)
    assert (progress.done, progress.total) == (3, 60)
    assert step_in_words(progress.last_step) == "loss 0.5000, 2.00 s, 1,234 tokens/s"


def test_a_step_says_its_mfu_where_it_has_one():
    row = {"loss": 0.5, "seconds": 2.0, "tokens_per_second": 80.0, "mfu": 0.412}
    assert step_in_words(row).endswith("80 tokens/s, MFU 41 %")
