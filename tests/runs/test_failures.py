import pytest

from xgray.errors import StageError
from xgray.rows import EMPTY_TEXT, NOT_ARCHIVED, Completions, Scores, to_table
from xgray.runs.failures import refuse_failures
from xgray.storage.folder import Folder


def scores(*errors: list[str | None]) -> list[Scores]:
    return [
        Scores(f"en/{at}", "en", "base", [{"toxicity": 0.5} if error is None else {} for error in of], of, "s", "1")
        for at, of in enumerate(errors)
    ]


@pytest.fixture
def folder(tmp_path):
    return Folder(str(tmp_path / "score"))


def write(folder, rows):
    for at, row in enumerate(rows):
        folder.write_parquet(f"{at}.parquet", to_table([row], type(row)))


@pytest.mark.parametrize(
    "errors",
    [
        [[None, None], ["429", "429"]],
        [[EMPTY_TEXT, EMPTY_TEXT], [EMPTY_TEXT, None]],
        [[NOT_ARCHIVED, NOT_ARCHIVED], [NOT_ARCHIVED, None]],
        [[]],
    ],
)
def test_half_of_the_errors_empty_texts_and_a_part_of_an_archive_are_no_failure(folder, errors):
    write(folder, scores(*errors))
    refuse_failures("score/base", folder, Scores, folder)
    assert len(folder.names(".parquet")) == len(errors)


@pytest.mark.parametrize("reason", ["the judge's answer is no grade", NOT_ARCHIVED])
def test_a_stage_of_errors_fails_with_its_reason_and_keeps_the_rows_that_are_right(folder, reason):
    good = [] if reason == NOT_ARCHIVED else [[None]]
    write(folder, scores([reason, reason], [reason, EMPTY_TEXT], *good))
    with pytest.raises(StageError, match=r"score/base: 3 of \d texts have no score; .*\(3 times\): "):
        refuse_failures("score/base", folder, Scores, folder)
    assert folder.names(".parquet") == ["2.parquet"] * len(good)


def test_prompts_without_completions_are_made_again_with_their_scores(folder, tmp_path):
    completions = Folder(str(tmp_path / "generate"))
    made = [Completions(f"en/{at}", "en", "base", "p", [], [], [], "the engine died") for at in range(2)]
    made.append(Completions("en/2", "en", "base", "p", ["c"], [1], ["stop"]))
    write(completions, made)
    write(folder, scores([], [], [None]))
    with pytest.raises(StageError, match="generate/base: 2 of 3 prompts have no completions"):
        refuse_failures("generate/base", completions, Completions, folder)
    assert completions.names(".parquet") == folder.names(".parquet") == ["2.parquet"]
