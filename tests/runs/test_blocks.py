"""Missing rows of a run are found by the names of blocks, and by ids in files that were cut otherwise."""

from pathlib import Path

import pytest

from xgray.errors import StageError
from xgray.rows import Completions, Prompt, Scores, to_table
from xgray.runs.blocks import UnsampledBlock, UnscoredBlock, block_file_name, find_missing, has_each_prompt_once
from xgray.runs.prompts import PROMPTS, ROW_GROUP, PromptFile, encode_prompts
from xgray.storage.folder import Folder

SIZE = 4


def prompts(number: int) -> list[Prompt]:
    return [Prompt(f"en/{index}", "en", f"text {index}") for index in range(number)]


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    run = Folder(str(tmp_path))
    run.write_bytes(PROMPTS, encode_prompts(prompts(10), "abc"))
    return run


def write(run: Folder, stage: str, rows: list[int], name: str | None = None) -> str:
    ids = [f"en/{index}" for index in rows]
    name = name or block_file_name("base", ids)
    if stage == "generate":
        completions = [Completions(prompt_id, "en", "base", "text", ["x"], [1], ["stop"]) for prompt_id in ids]
        (run / stage).write_parquet(name, to_table(completions, Completions))
    else:
        scores = [Scores(prompt_id, "en", "base", [{"toxicity": 0.5}], [None], "s", "1") for prompt_id in ids]
        (run / stage).write_parquet(name, to_table(scores, Scores))
    return name


def missing_of(run: Folder, size: int = SIZE, given: bool = False):
    return find_missing("base", None if given else PromptFile(run), size, run / "generate", run / "score")


def test_a_prompt_file_reads_any_range(tmp_path: Path) -> None:
    everything = prompts(2 * ROW_GROUP + 5)
    run = Folder(str(tmp_path))
    run.write_bytes(PROMPTS, encode_prompts(iter(everything), "abc"))
    file = PromptFile(run)
    assert (len(file), file.fingerprint) == (len(everything), "abc")
    assert list(file.ids()) == [prompt.prompt_id for prompt in everything]
    for start, stop in ((0, 3), (ROW_GROUP - 2, ROW_GROUP + 2), (5, 2 * ROW_GROUP + 5)):
        assert file.read(start, stop) == everything[start:stop]


def test_a_new_run_lacks_every_block(run: Folder) -> None:
    missing = missing_of(run)
    assert missing.unsampled == [
        UnsampledBlock("base", 0, 4),
        UnsampledBlock("base", 4, 8),
        UnsampledBlock("base", 8, 10),
    ]
    assert (missing.num_prompts, missing.num_sampled, missing.num_scored, missing.unscored) == (10, 0, 0, [])


def test_finished_blocks_are_found_by_their_names(run: Folder) -> None:
    first = write(run, "generate", [0, 1, 2, 3])
    last = write(run, "generate", [8, 9])
    write(run, "score", [8, 9])
    # Files named like a block are not opened: they are written whole.
    (Path(run.uri) / "generate" / last).write_bytes(b"")
    missing = missing_of(run)
    assert missing.unsampled == [UnsampledBlock("base", 4, 8)]
    assert missing.unscored == [UnscoredBlock("base", first, 0, 4)]
    assert (missing.num_sampled, missing.num_scored) == (6, 2)


def test_rows_in_files_that_were_cut_otherwise_are_found_by_their_ids(run: Folder) -> None:
    other = write(run, "generate", [2, 3, 4, 5, 6])
    write(run, "score", [3, 4])
    missing = missing_of(run)
    assert missing.unsampled == [
        UnsampledBlock("base", 0, 4, ["en/2", "en/3"]),
        UnsampledBlock("base", 4, 8, ["en/4", "en/5", "en/6"]),
        UnsampledBlock("base", 8, 10),
    ]
    assert missing.unscored == [
        UnscoredBlock("base", other, 0, 4, ["en/3", "en/4"]),
        UnscoredBlock("base", other, 4, 5),
    ]
    assert (missing.num_sampled, missing.num_scored) == (5, 2)


def test_scores_remain_known_when_their_completions_are_lost(run: Folder) -> None:
    write(run, "score", [0, 1, 2, 3])
    write(run, "score", [4, 5])
    missing = missing_of(run)
    assert missing.unsampled[0] == UnsampledBlock("base", 0, 4, [], ["en/0", "en/1", "en/2", "en/3"])
    assert missing.unsampled[1] == UnsampledBlock("base", 4, 8, [], ["en/4", "en/5"])
    assert missing.num_scored == 6


def test_given_completions_are_scored_in_blocks(run: Folder) -> None:
    write(run, "generate", [0, 1, 2, 3, 4], "imported.parquet")
    write(run, "score", [0, 1, 2, 3])
    missing = missing_of(run, given=True)
    assert missing.unsampled == []
    assert missing.unscored == [UnscoredBlock("base", "imported.parquet", 4, 5)]
    assert (missing.num_prompts, missing.num_sampled, missing.num_scored) == (5, 5, 4)


def test_missing_and_repeated_prompts_are_detected(run: Folder) -> None:
    def once(stage: str, given: bool = False) -> bool:
        return has_each_prompt_once("base", None if given else PromptFile(run), SIZE, run / "generate", run / stage)

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


def test_a_damaged_file_that_is_not_a_block_is_refused(run: Folder) -> None:
    (run / "generate").write_bytes("half.parquet", b"PAR1 and no more")
    with pytest.raises(StageError, match=r"half.parquet is damaged.*delete it"):
        missing_of(run)
