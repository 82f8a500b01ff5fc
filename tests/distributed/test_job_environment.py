"""What leaves the driver for its workers."""

from xgray.config import Evaluate, Model
from xgray.distributed.job_environment import with_absolute_paths


def test_paths_of_models_are_absolute_before_they_leave_the_driver(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "config.json").write_text("{}")
    for given in ("./models/mine", "models/mine"):
        assert with_absolute_paths(Model(id=given, revision="a")) == Model(id=f"{tmp_path}/models/mine", revision="a")
    section = Evaluate.model_validate({"fluency": {"model": {"id": "./models/mine"}}, "resamples": 200})
    sent = with_absolute_paths(section)
    assert sent.fluency.model.id == f"{tmp_path}/models/mine"
    assert sent.model_copy(update={"fluency": section.fluency}) == section
    for other in (Model(id="bigscience/bloom-1b7"), "./models/mine", 3, None):
        assert with_absolute_paths(other) == other
