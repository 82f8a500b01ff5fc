"""What is missing of a run's rows, told from names where they are ours and from ids where they are not."""

from pathlib import Path

import pytest

from xgray.errors import StageError
from xgray.rows import Completions, Prompt, Scores, to_table
from xgray.runs.blocks import MadeBlock, NewBlock, check_once, file_name, find_missing
from xgray.runs.prompts import PROMPTS, ROW_GROUP, PromptFile, prompt_file
from xgray.storage.folder import Folder

SIZE = 4


def prompts(number: int) -> list[Prompt]:
    return [Prompt(f"en/{index}", "en", f"text {index}") for index in range(number)]


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    run = Folder(str(tmp_path))
    run.write_bytes(PROMPTS, prompt_file(prompts(10), "abc"))
    return run


def write(run: Folder, stage: str, rows: list[int], name: str | None = None) -> str:
    ids = [f"en/{index}" for index in rows]
    name = name or file_name("base", ids)
    if stage == "generate":
        made = [Completions(one, "en", "base", "text", ["x"], [1], ["stop"]) for one in ids]
        (run / stage).write_parquet(name, to_table(made, Completions))
    else:
        scored = [Scores(one, "en", "base", [{"toxicity": 0.5}], [None], "s", "1") for one in ids]
        (run / stage).write_parquet(name, to_table(scored, Scores))
    return name


def missing(run: Folder, size: int = SIZE, given: bool = False):
    return find_missing("base", None if given else PromptFile(run), size, run / "generate", run / "score")


def test_prompt_file_gives_the_prompts_of_any_range(tmp_path: Path) -> None:
    everything = prompts(2 * ROW_GROUP + 5)
    run = Folder(str(tmp_path))
    run.write_bytes(PROMPTS, prompt_file(iter(everything), "abc"))
    file = PromptFile(run)
    assert (len(file), file.fingerprint) == (len(everything), "abc")
    assert list(file.ids()) == [one.prompt_id for one in everything]
    for start, stop in ((0, 3), (ROW_GROUP - 2, ROW_GROUP + 2), (5, 2 * ROW_GROUP + 5)):
        assert file.read(start, stop) == everything[start:stop]


def test_nothing_is_done_at_first(run: Folder) -> None:
    told = missing(run)
    assert told.new == [NewBlock("base", 0, 4), NewBlock("base", 4, 8), NewBlock("base", 8, 10)]
    assert (told.num_prompts, told.num_made, told.num_scored, told.unscored) == (10, 0, 0, [])


def test_what_is_done_is_told_from_names(run: Folder) -> None:
    first = write(run, "generate", [0, 1, 2, 3])
    last = write(run, "generate", [8, 9])
    write(run, "score", [8, 9])
    # Not opened: a file of ours is whole.
    (Path(run.uri) / "generate" / last).write_bytes(b"")
    told = missing(run)
    assert told.new == [NewBlock("base", 4, 8)]
    assert told.unscored == [MadeBlock("base", first, 0, 4)]
    assert (told.num_made, told.num_scored) == (6, 2)


def test_rows_cut_otherwise_are_known_by_their_ids(run: Folder) -> None:
    other = write(run, "generate", [2, 3, 4, 5, 6])
    write(run, "score", [3, 4])
    told = missing(run)
    assert told.new == [NewBlock("base", 0, 4, ["en/2", "en/3"]), NewBlock("base", 4, 8, ["en/4", "en/5", "en/6"]),
                        NewBlock("base", 8, 10)]  # fmt: skip
    assert told.unscored == [MadeBlock("base", other, 0, 4, ["en/3", "en/4"]), MadeBlock("base", other, 4, 5)]
    assert (told.num_made, told.num_scored) == (5, 2)


def test_scores_outlive_their_completions(run: Folder) -> None:
    write(run, "score", [0, 1, 2, 3])
    write(run, "score", [4, 5])
    told = missing(run)
    assert told.new[0] == NewBlock("base", 0, 4, [], ["en/0", "en/1", "en/2", "en/3"])
    assert told.new[1] == NewBlock("base", 4, 8, [], ["en/4", "en/5"])
    assert told.num_scored == 6


def test_given_completions_are_scored_in_blocks(run: Folder) -> None:
    write(run, "generate", [0, 1, 2, 3, 4], "imported.parquet")
    write(run, "score", [0, 1, 2, 3])
    told = missing(run, given=True)
    assert told.new == []
    assert told.unscored == [MadeBlock("base", "imported.parquet", 4, 5)]
    assert (told.num_prompts, told.num_made, told.num_scored) == (5, 5, 4)


def test_every_prompt_is_wanted_once(run: Folder) -> None:
    def once(stage: str, given: bool = False) -> bool:
        return check_once("base", None if given else PromptFile(run), SIZE, run / "generate", run / stage)

    for rows in ([0, 1, 2, 3], [4, 5, 6, 7]):
        write(run, "generate", rows)
    assert not once("generate")
    write(run, "generate", [8], "other.parquet")
    assert not once("generate")
    write(run, "generate", [9], "more.parquet")
    assert once("generate")
    write(run, "score", list(range(10)))
    assert once("score")
    assert once("score", given=True)
    write(run, "score", [9], "twice.parquet")
    assert not once("score")


def test_file_that_is_not_ours_must_be_readable(run: Folder) -> None:
    (run / "generate").write_bytes("half.parquet", b"PAR1 and no more")
    with pytest.raises(StageError, match=r"half.parquet is damaged.*delete it"):
        missing(run)
