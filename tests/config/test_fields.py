"""The fields of the experiment file as commented YAML, as a JSON schema, and what each says of itself."""

import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from xgray.config import Experiment, Serve
from xgray.config.fields import all_fields, commented_yaml, json_schema, yaml_value
from xgray.config.file import load_experiment, read_yaml
from xgray.config.shipped import shipped_experiments
from xgray.errors import InputError

OFF = ["probe", "vectors", "activations", "intervene", "retrieve", "capability"]
COMMENTED_OUT = re.compile(r"^(\s*)#(?! \S)", re.MULTILINE)


def test_every_field_has_documentation() -> None:
    assert [field.path for model in (Experiment, Serve) for field in all_fields(model) if not field.documentation] == []


def test_the_printed_file_is_the_experiment_of_all_defaults(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(commented_yaml())
    experiment = load_experiment(tmp_path / "e.yaml")
    defaults = {"name": experiment.name, "model": {"id": experiment.model.id}}
    assert experiment == Experiment.model_validate(defaults)
    assert yaml.safe_load(commented_yaml()) == read_yaml(commented_yaml()), "the same in YAML 1.1 and 1.2"


def test_every_field_is_printed_with_its_documentation() -> None:
    text = COMMENTED_OUT.sub(r"\1", commented_yaml())
    printed = " ".join(line.strip().removeprefix("# ") for line in text.splitlines())
    for field in all_fields(Experiment):
        assert f"{field.path[-1]}:" in text
        assert field.documentation.replace("`", "'") in printed, field.path


def test_sections_that_are_off_take_their_defaults_when_their_comment_signs_are_removed(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(COMMENTED_OUT.sub(r"\1", commented_yaml()))
    experiment = load_experiment(tmp_path / "e.yaml")
    for name in OFF:
        section = getattr(experiment, name)
        assert section == type(section)()


def test_one_section_is_printed_alone_and_on() -> None:
    assert list(read_yaml(commented_yaml("train"))) == ["train"]
    probe = read_yaml(commented_yaml("probe"))["probe"]
    assert (probe["epochs"], probe["execution"]["batch_size"]) == (20, 32)
    with pytest.raises(InputError, match="unknown section 'trian'"):
        commented_yaml("trian")


@pytest.mark.parametrize(
    ("path", "type_text", "choices"),
    [
        ("train.limit", "integer >= 1, or null", ()),
        ("generate.top_p", "number > 0 and <= 1", ()),
        ("train.optimizer", "rmsprop | adamw", ("rmsprop", "adamw")),
        ("report.mask", "true | false", ()),
        ("intervene.neurons", "list of [integer, integer], or null", ()),
        ("languages", "list of text", ()),
    ],
)
def test_types_are_given_in_words(path: str, type_text: str, choices: tuple[str, ...]) -> None:
    field = next(field for field in all_fields(Experiment) if ".".join(field.path) == path)
    assert (field.type_text, field.choices) == (type_text, choices)


@pytest.mark.parametrize("value", [None, True, 1e-5, 2.5e-07, 3, 0.1, ["en", "de"], {}, [], [[1, 2]], {"a": [1, None]}])
def test_values_read_back_the_same(value: object) -> None:
    assert read_yaml(yaml_value(value)) == yaml.safe_load(yaml_value(value)) == value


@pytest.mark.parametrize("file", shipped_experiments().values(), ids=shipped_experiments())
def test_the_schema_accepts_the_shipped_experiments(file: Path) -> None:
    jsonschema.validate(read_yaml(file.read_text()), json_schema())


@pytest.mark.parametrize(
    "changes", [{"trian": {}}, {"generate": {"k": 0}}, {"train": {"loss": "l2"}}, {"model": {}}, {"languages": "en"}]
)
def test_the_schema_refuses_what_loading_refuses(changes: dict[str, object]) -> None:
    experiment = {"name": "mine", "model": {"id": "some/model"}}
    jsonschema.validate(experiment, json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(experiment | changes, json_schema())


def test_the_schema_documents_the_fields() -> None:
    learning_rate = json_schema()["$defs"]["Train"]["properties"]["learning_rate"]
    assert learning_rate["description"]
    assert learning_rate["default"] == 1e-5
