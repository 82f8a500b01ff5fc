"""The file of ``xgray scorer train``."""

from pathlib import Path

import pytest

from xgray.config import ScorerTraining
from xgray.config.file import load_experiment, load_scorer_training
from xgray.config.section import validate
from xgray.errors import InputError
from xgray.languages import LANGUAGES
from xgray.rows import ATTRIBUTES

SCORERS = Path(__file__).parents[2] / "jobs" / "scorers"
SOURCE = {"kind": "scores", "path": "scores.csv", "licence": "MIT"}
TRAINING = {"name": "mine", "output": "out", "model": {"id": "xlm-roberta-base"}, "sources": [SOURCE]}


@pytest.mark.parametrize("name", ["distil-perspective", "ratings-encoder"])
def test_shipped_files_parse_and_are_named_as_their_file(name):
    file = SCORERS / f"{name}.yaml"
    assert load_scorer_training(file).name == name
    assert file.read_text().startswith("# ")
    with pytest.raises(InputError, match=f"xgray scorer train .*{name}"):
        load_experiment(file)


def test_the_distillation_learns_what_perspective_said():
    training = load_scorer_training(SCORERS / "distil-perspective.yaml")
    assert training.attributes == list(ATTRIBUTES[:6])
    (source,) = training.sources
    assert (source.kind, source.columns) == ("scores", {})
    assert len(LANGUAGES) == 17


def test_the_ratings_encoder_is_measured_on_whole_sources():
    training = load_scorer_training(SCORERS / "ratings-encoder.yaml")
    assert {source.kind for source in training.sources} >= {"ratings", "labelled"}
    assert any(source.held_out for source in training.sources)


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        ({"sources": []}, ["sources", "at least 1"]),
        ({"sources": [SOURCE | {"held_out": True}]}, ["all of them are held out"]),
        ({"sources": [SOURCE | {"language": "xx"}]}, ["sources.0.language", "unknown language 'xx'"]),
        ({"sources": [SOURCE | {"scale": [1, 1]}]}, ["sources.0.scale", "not from 1.0 to 1.0"]),
        ({"sources": [SOURCE | {"columns": {"threat": "t"}}]}, ["sources.0.columns", "'threat'", "(toxicity)"]),
        ({"sources": [SOURCE | {"kind": "ratings", "columns": {"toxicity": "Toxicity"}}]}, ["ratings have none"]),
        ({"sources": [SOURCE | {"weight": 0}]}, ["sources.0.weight"]),
        ({"sources": [{"kind": "scores", "path": "a.csv"}]}, ["sources.0.licence"]),
        ({"attributes": ["rudeness"]}, ["'rudeness' is no attribute"]),
        ({"attributes": ["toxicity", "toxicity"]}, ["name each attribute once"]),
        ({"batch_size": 6, "execution": {"num_workers": 4}}, ["6 texts cannot be shared evenly by 4 workers"]),
        ({"learning_rat": 1}, ["unknown key 'learning_rat'", "'learning_rate'"]),
    ],
)
def test_wrong_fields_are_named(fields, facts):
    with pytest.raises(InputError) as error:
        validate(ScorerTraining, TRAINING | fields, "training.yaml")
    assert not [fact for fact in facts if fact not in str(error.value)], str(error.value)
