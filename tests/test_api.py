"""The Python API on a made run, and the embedded scorer behind it."""

import asyncio
import subprocess
import sys

import pytest

import xgray
from tests.report.example_run import CHANGES, K, write_run
from xgray.errors import InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder, _ = write_run(tmp_path_factory.mktemp("made"))
    return xgray.open_run(folder.uri)


def test_importing_the_package_imports_no_heavy_library():
    code = "import sys, xgray; print(*(n for n in ('torch', 'ray', 'pyarrow', 'pydantic') if n in sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.split() == []


def test_a_run_lists_its_models_and_its_experiment(run):
    assert run.models == ["base", "dpo"]
    assert run.experiment.name == "made"
    assert {stage.label for stage in run.status.stages} >= {"generate/base", "score/dpo", "evaluate"}


def test_completions_and_scores_are_filtered_by_model_and_language(run):
    completions, scores = run.completions("dpo", "de"), run.scores("dpo", "de")
    assert set(completions["language"].to_pylist()) == {"de"}
    assert set(completions["model"].to_pylist()) == {"dpo"}
    assert completions["prompt_id"].to_pylist() == scores["prompt_id"].to_pylist()
    assert all(len(texts) == K for texts in completions["completions"].to_pylist())
    assert run.completions("dpo").num_rows == len(CHANGES) * completions.num_rows


def test_tables_hold_what_the_metrics_file_holds(run):
    frame = run.values.to_pandas().set_index(["model", "language", "metric"])
    emt = run.metrics["models"]["dpo"]["languages"]["de"]["emt"]
    assert frame.loc[("dpo", "de", "emt"), "value"] == emt["value"]
    assert frame.loc[("dpo", "de", "emt"), "low"] == emt["low"]
    changes = run.comparisons.to_pandas().set_index(["model", "language", "metric"])
    change = run.metrics["comparisons"]["dpo"]["average"]["emt"]
    assert changes.loc[("dpo", "average", "emt"), "difference"] == change["difference"]
    assert bool(changes.loc[("dpo", "en", "emt"), "significant"]) is CHANGES["en"][2]


def test_what_is_missing_is_named_with_the_next_command(run, tmp_path):
    with pytest.raises(InputError, match="no model 'other'; it has base, dpo"):
        run.completions("other")
    with pytest.raises(InputError, match="xgray probe"):
        run.stage_metrics("probe")
    with pytest.raises(InputError, match="no run"):
        xgray.open_run(tmp_path)


def test_a_scorer_works_where_an_event_loop_runs_as_in_a_notebook():
    async def cell():
        with xgray.load_scorer("dummy", unvalidated_languages=True) as scorer:
            return scorer.score(["one text", "", "one text"], "de", allow_unvalidated=True)

    first, empty, again = asyncio.run(cell())
    assert first == again
    assert 0 <= first.scores["toxicity"] <= 1
    assert empty.scores is None
    assert empty.error


def test_a_language_without_validation_is_refused():
    with xgray.load_scorer("dummy") as scorer, pytest.raises(InputError, match="not validated"):
        scorer.score(["text"], "de")


def test_the_points_of_a_sweep_are_a_table(run, tmp_path):
    assert run.sweep.num_rows == 0
    folder, _ = write_run(tmp_path, train=False, sweep={"languages": ["de", ["en", "ar"]], "seed": [1, 2]})
    swept = xgray.open_run(folder.uri)
    frame = swept.sweep.to_pandas().set_index(["point", "language", "metric"])
    row = frame.loc[("English and Arabic pairs", "de", "emt")]
    assert list(row["source_languages"]) == ["en", "ar"]
    assert row["num_seeds"] == 2
    assert row["value"] == pytest.approx(CHANGES["de"][1] + 0.025)
    assert row["deviation"] == pytest.approx(0.01 / 2**0.5)
    assert row["difference"] == pytest.approx(CHANGES["de"][1] + 0.025 - CHANGES["de"][0])
    assert bool(row["significant"]) is CHANGES["de"][2]
    assert len(frame) == 2 * (len(CHANGES) + 1) * 7
