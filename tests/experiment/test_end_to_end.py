"""A whole experiment as a user runs it, with vLLM, Ray and the local scorer.

The notebook's test runs another one with a real model. Runs that are killed are in ``test_driver``, and in
``tests/distributed/test_pipeline`` with every row compared.
"""

import asyncio
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.processes import xgray
from xgray.config import Score
from xgray.config.file import load_experiment
from xgray.data.prompts import read_prompts
from xgray.generate.build import build_engine
from xgray.generate.engine import Weights, complete
from xgray.languages import LANGUAGES
from xgray.rows import Completions, Row, Scores, from_table, schema
from xgray.score.build import build_scorer
from xgray.score.rows import score_rows
from xgray.storage.folder import Folder

pytestmark = pytest.mark.slow

EXPERIMENT = """
name: whole
languages: [en, de]
prompts: {limit: 10}
train: {method: lora, lora_r: 8, learning_rate: 2.0e-4, limit: 16, max_steps: 2, eval_steps: 1, max_length: 128,
  validation_share: 0.1}
generate: {k: 3, max_new_tokens: 8, execution: {engine: vllm, batch_size: 4}}
evaluate: {resamples: 200}
"""


def rows(run: Path, stage: str, model: str, row_type: type[Row]) -> list[Row]:
    table = (Folder(str(run)) / stage / model / "rows").read_parquet(schema(row_type))
    return sorted(from_table(table, row_type), key=lambda row: row.prompt_id)


def written(folder: Path) -> dict[Path, int]:
    """Return when each file was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory):
    """The run's folder once it is finished, and what the command printed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "e.yaml").write_text(f"model: {{id: '{tiny_model}', dtype: float32}}{EXPERIMENT}")
    done = xgray("run", "e.yaml", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "ray log level" not in done.stderr
    return folder, json.loads(done.stdout)


class Page(HTMLParser):
    """Collects the addresses that a page loads something from."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href") and value and "://" in value]


def test_a_run_leaves_metrics_rows_and_a_self_contained_report(finished):
    folder, result = finished
    run = folder / "runs" / "whole"
    for model in ("base", "dpo"):
        completions, scored = rows(run, "generate", model, Completions), rows(run, "score", model, Scores)
        assert len(completions) == len(scored) == 20
        assert all(len(row.completions) == 3 for row in completions)
        metrics = result["metrics"]["models"][model]["languages"]["de"]
        assert 0 <= metrics["emt"]["low"] <= metrics["emt"]["value"] <= metrics["emt"]["high"] <= 1
        assert metrics["coverage"] <= 1
        found = result["metrics"]["consistency"]["models"][model]["languages"]["de"]
        assert found["num_consistent"] + found["num_other"] + found["num_unknown"] == found["num_texts"] > 0
    assert result["stages"]["train/dpo"]["measured"]["first_loss"] == pytest.approx(0.6931, abs=2e-3)
    scorer = result["stages"]["score/base"]["measured"]["scorer"]
    assert set(scorer["agreement"]["toxicity"]) == {*LANGUAGES, "average"}
    page = Page()
    page.feed((run / "report" / "index.html").read_text())
    assert page.loads == []


def test_a_finished_run_is_passed_over(finished):
    folder, result = finished
    before = written(folder / "runs")
    again = xgray("run", "e.yaml", "--json", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == result
    assert written(folder / "runs") == before


def test_a_changed_configuration_is_refused_with_the_field(finished):
    refused = xgray("run", "e.yaml", "--generate.k", "4", cwd=finished[0])
    assert refused.returncode == 2
    assert "section.k 3 -> 4" in refused.stderr


def test_a_report_with_other_settings_is_written_again(finished):
    folder, _ = finished
    page = folder / "runs" / "whole" / "report" / "index.html"
    before = page.read_text()
    again = xgray("run", "e.yaml", "--report.num-examples", "0", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert "report.num_examples is 0" in page.read_text()
    assert "report.num_examples is 0" not in before


def test_rows_are_what_the_engine_and_the_scorer_give(finished, tiny_model):
    folder, _ = finished
    run = folder / "runs" / "whole"
    experiment = load_experiment(folder / "e.yaml", {})
    prompts = sorted(read_prompts(experiment.prompts, experiment.languages), key=lambda prompt: prompt.prompt_id)
    engine = build_engine("vllm", Weights(tiny_model, None, "float32"), experiment.generate)
    completions = rows(run, "generate", "base", Completions)
    assert completions == complete(engine, prompts, "base", None, experiment.seed)
    expected = asyncio.run(score_rows(build_scorer(Score()), completions, "corrected"))
    assert rows(run, "score", "base", Scores) == expected
