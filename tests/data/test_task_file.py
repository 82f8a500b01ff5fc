"""Which files stand behind a task of one's own."""

import pytest

from xgray.data.task_file import data_files, is_task_file, task_files
from xgray.errors import InputError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "questions.jsonl").write_text("{}\n")
    (tmp_path / "ways.py").write_text("def shown(doc): return doc['question']\n")
    (tmp_path / "_shared_yaml").write_text(
        "output_type: multiple_choice\ndataset_path: json\ndataset_kwargs:\n  data_files: {test: questions.jsonl}\n"
        "doc_to_text: !function ways.shown\n"
    )
    (tmp_path / "own.yaml").write_text("include: _shared_yaml\ntask: own\n")
    (tmp_path / "other.txt").write_text("not named by the task")
    return tmp_path


def test_a_task_is_its_file_and_all_that_it_names(folder):
    names = [path.name for path in task_files(folder / "own.yaml")]
    assert names == ["own.yaml", "_shared_yaml", "questions.jsonl", "ways.py"]


def test_names_are_relative_to_the_task_file(folder):
    config = {"dataset_kwargs": {"data_files": {"test": ["questions.jsonl", "https://example.org/more.jsonl"]}}}
    found = data_files(folder / "own.yaml", config)
    assert found == {"test": [str(folder / "questions.jsonl"), "https://example.org/more.jsonl"]}
    assert data_files(folder / "own.yaml", {"task": "own"}) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: own\ndataset_kwargs: {data_files: gone.jsonl}\n", "no such file: .*gone.jsonl"),
        ("- task\n", "a task is a mapping with the key 'task'"),
        ("task: [own\n", "no valid YAML"),
        ("include: gone_yaml\ntask: own\n", "gone_yaml: cannot read it: No such file"),
    ],
)
def test_what_is_wrong_with_a_task_file_is_one_line(text, message, folder):
    path = folder / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        task_files(path)
    assert "\n" not in str(error.value)


def test_a_name_is_no_file():
    assert [is_task_file(one) for one in ("arc_vi", "m_mmlu", "own.yaml", "./more/own.yml")] == [
        False,
        False,
        True,
        True,
    ]
