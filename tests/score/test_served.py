"""The scorers that ``xgray serve`` and ``xgray scorer replay`` are asked for, by name."""

import pytest

from xgray.cli.serve import split_scorers
from xgray.errors import InputError
from xgray.score.served import named_scorers


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("score: {scorer: dummy, unvalidated_languages: true}\n")
    return str(path)


def test_scorers_are_named_after_their_files_and_options_change_all(mine):
    options = ["--score", mine, "--score.empty-text", "released", "--score", "embedding", "--serve.port", "1"]
    names, rest = split_scorers(options)
    assert rest == ["--score.empty-text", "released", "--serve.port", "1"]
    sections = named_scorers([*names, "detoxify-multilingual"], {"empty_text": "released"})
    assert list(sections) == ["mine", "embedding", "detoxify-multilingual"]
    assert [section.scorer for section in sections.values()] == ["dummy", "embedding", "classifier"]
    assert {section.empty_text for section in sections.values()} == {"released"}


def test_without_a_name_the_fields_are_of_one_scorer():
    (only,) = named_scorers([], {}).values()
    assert len(only.attributes) == 6
    assert named_scorers([], {"attributes": ["insult"]})["embedding"].attributes == ["insult"]
    assert list(named_scorers([], {"scorer": "dummy"})) == ["dummy"]


@pytest.mark.parametrize(
    ("names", "fact"),
    [
        (["nobody"], "nobody"),
        (["embedding", "embedding"], "another scorer has the name embedding"),
        (["{file}", "{file}"], "another scorer has the name mine"),
        (["a b.yaml"], "letters, digits"),
    ],
)
def test_names_that_cannot_be_told_apart_are_refused(mine, names, fact):
    with pytest.raises(InputError, match=fact):
        named_scorers([name.format(file=mine) for name in names], {})
