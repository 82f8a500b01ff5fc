"""Sampling and scoring under a real Ray: killed runs resume, and every completion is always the same."""

import asyncio
import json
import shutil
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.distributed.pipeline_driver import MODELS, PROMPTS, run, run_recorded
from tests.processes import descendants, kill_family, start_python, wait_until
from xgray.config import Score
from xgray.distributed.cluster import connect
from xgray.distributed.pipeline import ITERATION_THREAD
from xgray.errors import InputError, StageError
from xgray.rows import Prompt
from xgray.score.build import build_scorer
from xgray.score.scorer import score_texts

GENERATE = {"engine": "transformers", "batch_size": 4}
SCORE = {"scorer": "embedding"}
DUMMY = {"engine": "dummy", "batch_size": 4}
DUMMY_SCORE = {"scorer": "dummy", "unvalidated_languages": True}


@pytest.fixture(scope="module")
def models(tiny_model, tiny_adapter):
    adapter, merged = tiny_adapter
    return {"model": tiny_model, "adapter": adapter, "merged": merged}


def start(root, models, **settings):
    arguments = json.dumps({"root": str(root), "models": models} | settings)
    return start_python("-m", "tests.distributed.pipeline_driver", arguments)


def files(root, stage):
    return sorted(path for path in (Path(root) / stage).glob("*/rows/*.parquet") if not path.name.startswith("."))


def rows(root, stage):
    """Return every row by model and prompt; fail if a prompt has two rows."""
    found = {}
    for path in files(root, stage):
        for row in pq.read_table(path).to_pylist():
            key = path.parent.parent.name, row.pop("prompt_id")
            assert key not in found, key
            found[key] = row
    return found


@pytest.fixture(scope="module")
def cluster():
    """One Ray for the runs that are not killed, because starting Ray takes most of a small run's time."""
    with connect():
        yield


@pytest.fixture(scope="module")
def uninterrupted(cluster, models, tmp_path_factory):
    root = tmp_path_factory.mktemp("uninterrupted")
    return run_recorded(root, models, generate=GENERATE, score=SCORE), root


@pytest.mark.slow
def test_every_prompt_is_sampled_and_scored_once(uninterrupted):
    result, root = uninterrupted
    expected = {(model, prompt.prompt_id) for model in MODELS for prompt in PROMPTS}
    generated, scored = rows(root, "generate"), rows(root, "score")
    assert generated.keys() == expected
    assert scored.keys() == expected
    for key, row in generated.items():
        assert len(row["completions"]) == len(row["token_counts"]) == 2
        for text, score, error in zip(row["completions"], scored[key]["scores"], scored[key]["errors"], strict=True):
            assert (score["toxicity"] is None) == (error is not None) == (not text.strip())
    for model in MODELS:
        tally = result["tallies"][f"generate/{model}"]
        own = [row for (name, _), row in generated.items() if name == model]
        assert (tally["num_prompts"], tally["num_reused"], tally["num_completions"]) == (20, 0, 40)
        assert tally["num_tokens"] == sum(sum(row["token_counts"]) for row in own)
        missing = sum(
            error is not None for (name, _), row in scored.items() if name == model for error in row["errors"]
        )
        assert result["tallies"][f"score/{model}"]["num_errors"] == missing
        assert (f"generate/{model}", 0, 20) in result["progress"]
        assert (f"score/{model}", 20, 20) in result["progress"]


@pytest.mark.slow
def test_an_adapter_needs_no_engine_start(uninterrupted):
    starts = {model: uninterrupted[0]["tallies"][f"generate/{model}"]["num_engine_starts"] for model in MODELS}
    assert starts == {"base": 1, "dpo": 0, "full": 1}


@pytest.mark.slow
def test_scoring_runs_while_sampling_goes_on(uninterrupted):
    tallies = uninterrupted[0]["tallies"]
    first_score = min(tallies[f"score/{model}"]["began"] for model in MODELS)
    last_sample = max(tallies[f"generate/{model}"]["ended"] for model in MODELS)
    assert first_score < last_sample


@pytest.mark.slow
def test_scores_equal_those_of_the_scorer_alone(uninterrupted):
    generated, scored = rows(uninterrupted[1], "generate"), rows(uninterrupted[1], "score")
    key = "base", "de/3"
    scorer = build_scorer(Score.model_validate(SCORE))
    alone = asyncio.run(score_texts(scorer, generated[key]["completions"], "de", "corrected"))
    assert [one["toxicity"] for one in scored[key]["scores"]] == [
        one.scores["toxicity"] if one.scores else None for one in alone
    ]
    assert all(one["insult"] is None for one in scored[key]["scores"])


@pytest.fixture(scope="module")
def sound_root(cluster, models, tmp_path_factory):
    """The folder of a run with an engine and a scorer that use no model, which nothing disturbs."""
    root = tmp_path_factory.mktemp("sound")
    run(str(root), models, DUMMY, DUMMY_SCORE)
    return root


@pytest.fixture(scope="module")
def sound(sound_root):
    """The rows of both stages of that run."""
    return {stage: rows(sound_root, stage) for stage in ("generate", "score")}


@pytest.mark.slow
def test_a_killed_run_is_resumed_to_the_same_rows(models, sound, tmp_path):
    """It is killed while both stages are under way, and resumed with blocks of another size."""
    slow = DUMMY | {"dummy": {"seconds": 0.1}}
    process = start(tmp_path, models, generate=slow, score=DUMMY_SCORE)
    wait_until(lambda: len(files(tmp_path, "generate")) >= 3 and files(tmp_path, "score"), process)
    kill_family(process)
    kept = {path: path.stat().st_mtime_ns for path in files(tmp_path, "generate") + files(tmp_path, "score")}
    assert len(files(tmp_path, "generate")) < 15
    result = run_recorded(tmp_path, models, generate=DUMMY | {"batch_size": 3}, score=DUMMY_SCORE)
    for stage in ("generate", "score"):
        assert rows(tmp_path, stage) == sound[stage]
        num_reused = sum(result["tallies"][f"{stage}/{model}"]["num_reused"] for model in MODELS)
        assert num_reused >= 4 * sum(path.parent.parent.parent.name == stage for path in kept) > 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.slow
def test_a_killed_engine_is_started_again(models, sound, tmp_path):
    def kill():
        wait_until(lambda: len(files(tmp_path, "generate")) >= 2)
        (engine,) = descendants(name="GenerateActor")
        engine.kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    tallies = run(str(tmp_path), models, DUMMY | {"dummy": {"seconds": 0.1}}, DUMMY_SCORE)
    killer.join()
    # Two starts, and that of the killed engine if its report had left the process.
    assert sum(tallies["generate", model].num_engine_starts for model in MODELS) in (2, 3)
    for stage in ("generate", "score"):
        assert rows(tmp_path, stage) == sound[stage]


@pytest.mark.slow
def test_single_stages_and_two_engines_give_the_same_rows(models, sound, tmp_path):
    two = DUMMY | {"num_actors": 2, "cpus_per_actor": 1, "batch_size": 7}
    result = run_recorded(tmp_path, models, generate=two)
    assert rows(tmp_path, "generate") == sound["generate"]
    assert files(tmp_path, "score") == []
    assert set(result["tallies"]) == {f"generate/{model}" for model in MODELS}
    result = run_recorded(tmp_path, models, score=DUMMY_SCORE)
    assert rows(tmp_path, "score") == sound["score"]
    assert set(result["tallies"]) == {f"score/{model}" for model in MODELS}


@pytest.mark.slow
def test_missing_files_are_made_again_and_others_are_left_alone(models, sound, sound_root, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(sound_root, root)
    generated, scored = files(root, "generate"), files(root, "score")
    for path in (generated[3], scored[5], scored[6]):
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in files(root, "generate") + files(root, "score")}
    result = run_recorded(root, models, generate=DUMMY, score=DUMMY_SCORE)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (files(root, "generate"), files(root, "score")) == (generated, scored)
    for stage, number in (("generate", 56), ("score", 52)):
        assert rows(root, stage) == sound[stage]
        assert sum(result["tallies"][f"{stage}/{model}"]["num_reused"] for model in MODELS) == number


@pytest.mark.slow
def test_poisoned_prompts_are_recorded_and_the_others_are_sampled(models, sound, tmp_path):
    """With some prompts the engine raises an error, with others its process dies."""
    poisoned = DUMMY | {"dummy": {"raises_on": "number 1", "dies_on": "number 7"}}
    tallies = run(str(tmp_path), models, poisoned, DUMMY_SCORE, prompts=PROMPTS, names=["base"])
    found = rows(tmp_path, "generate")
    bad = {("base", f"{language}/{number}") for language in ("en", "de") for number in (1, 7)}
    assert {key for key, row in found.items() if row["error"]} == bad
    assert {key: row for key, row in found.items() if key not in bad} == {
        key: row for key, row in sound["generate"].items() if key[0] == "base" and key not in bad
    }
    assert all(found[key]["completions"] == [] for key in bad)
    scored = rows(tmp_path, "score")
    assert scored.keys() == found.keys()
    assert all(scored[key]["scores"] == [] for key in bad)
    assert tallies["generate", "base"].num_errors == 4
    counts = {stage: tallies[stage, "base"].result(stage).counts for stage in ("generate", "score")}
    assert counts["generate"]["num_errors"] == 4
    again = run(str(tmp_path), models, poisoned, DUMMY_SCORE, prompts=PROMPTS, names=["base"])
    for stage, expected in counts.items():
        resumed = again[stage, "base"].result(stage).counts
        assert resumed == expected | {"num_reused": expected["num_prompts"]}, "recorded errors stay"


@pytest.mark.slow
def test_an_engine_that_dies_with_every_prompt_fails_the_stage(models, cluster, tmp_path):
    with pytest.raises(StageError, match=r"process died"):
        run(str(tmp_path), models, {"engine": "dummy", "dummy": {"dies_on": "e"}}, None, names=["base"])


@pytest.mark.slow
def test_an_interrupt_between_two_blocks_leaves_no_thread_that_would_end_the_process(models, cluster, tmp_path):
    """Threads of Ray Data hold blocks; if one is released after Ray's shutdown, the process exits silently."""
    names = set()

    def interrupted(label, done, total, errors=0):
        names.update(thread.name for thread in threading.enumerate())
        if done:
            raise KeyboardInterrupt

    for attempt in ("first", "second"):
        # The traceback keeps every frame of the run alive, as it does until Ray shuts down.
        with pytest.raises(KeyboardInterrupt) as kept:
            run(str(tmp_path / attempt), models, generate={"engine": "dummy", "batch_size": 1}, on_progress=interrupted)
        assert ITERATION_THREAD in names, names
        assert ITERATION_THREAD not in {thread.name for thread in threading.enumerate()}, kept


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_fails_in_one_line_and_keeps_results(models, cluster, tmp_path):
    (tmp_path / "score").write_text("a file in the place of a folder")
    with pytest.raises(StageError, match=r"^Not a directory: "):
        run(str(tmp_path), models, DUMMY, DUMMY_SCORE, names=["base"])
    assert rows(tmp_path, "generate")


@pytest.mark.slow
def test_an_input_error_in_a_worker_reaches_the_user_unchanged(models, cluster, tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        run(str(tmp_path), models, DUMMY, {"labelled": str(tmp_path / "absent")}, names=["base"])


def test_a_long_prompt_is_refused_before_anything_is_sampled(models, tmp_path):
    prompts = [*PROMPTS, Prompt("en/77", "en", "word " * 200)]
    with pytest.raises(InputError, match=r"en/77 \(\d+\)"):
        run(str(tmp_path), models, GENERATE, SCORE, prompts=prompts)
    assert files(tmp_path, "generate") == []


def test_a_damaged_file_is_named(models, tmp_path):
    folder = tmp_path / "generate" / "base" / "rows"
    folder.mkdir(parents=True)
    (folder / "half.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(StageError, match=r"half.parquet.*delete it"):
        run(str(tmp_path), models, GENERATE)
