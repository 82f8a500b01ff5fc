"""A task file is fingerprinted with all files that it needs."""

import pytest

from xgray.data.task_file import data_files, is_task_file, task_files
from xgray.errors import InputError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "questions.jsonl").write_text("{}\n")
    (tmp_path / "functions.py").write_text("def shown(doc): return doc['question']\n")
    (tmp_path / "_shared_yaml").write_text(
        "output_type: multiple_choice\ndataset_path: json\ndataset_kwargs:\n  data_files: {test: questions.jsonl}\n"
        "doc_to_text: !function functions.shown\n"
    )
    (tmp_path / "mine.yaml").write_text("include: _shared_yaml\ntask: mine\n")
    (tmp_path / "other.txt").write_text("not named by the task")
    return tmp_path


def test_task_files_are_the_file_and_all_files_that_it_needs(folder):
    names = [path.name for path in task_files(folder / "mine.yaml")]
    assert names == ["mine.yaml", "_shared_yaml", "questions.jsonl", "functions.py"]


def test_names_are_relative_to_the_task_file(folder):
    config = {"dataset_kwargs": {"data_files": {"test": ["questions.jsonl", "https://example.org/more.jsonl"]}}}
    files = data_files(folder / "mine.yaml", config)
    assert files == {"test": [str(folder / "questions.jsonl"), "https://example.org/more.jsonl"]}
    assert data_files(folder / "mine.yaml", {"task": "mine"}) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: mine\ndataset_kwargs: {data_files: gone.jsonl}\n", "no such file: .*gone.jsonl"),
        ("- task\n", "a task is a mapping with the key 'task'"),
        ("task: [mine\n", "no valid YAML"),
        ("include: gone_yaml\ntask: mine\n", "gone_yaml: cannot read it: No such file"),
    ],
)
def test_an_invalid_task_file_is_refused_in_one_line(text, message, folder):
    path = folder / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        task_files(path)
    assert "\n" not in str(error.value)


def test_task_names_are_told_from_task_files():
    assert [is_task_file(task) for task in ("arc_vi", "m_mmlu", "mine.yaml", "./more/own.yml")] == [
        False,
        False,
        True,
        True,
    ]
