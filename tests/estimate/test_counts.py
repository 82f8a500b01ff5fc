"""What is left of an experiment, counted from its files."""

import csv
import json
from importlib.resources import files

import pytest

from xgray.config import Experiment
from xgray.estimate.counts import count_work
from xgray.estimate.work import GreedyWork, InterventionWork, ModelWork, UnratedWork
from xgray.experiment.plan import make_plan
from xgray.rows import Completions, Scores, to_table
from xgray.runs.manifest import StageResult
from xgray.score.store.location import store_uri
from xgray.score.store.store import ScoreStore


@pytest.fixture
def experiment(tiny_model, tmp_path):
    return Experiment.model_validate(
        {
            "name": "mine", "runs": str(tmp_path / "runs"), "model": {"id": tiny_model}, "languages": ["en", "de"],
            "prompts": {"limit": 4}, "generate": {"k": 3},
            "train": {"limit": 40, "epochs": 1, "eval_steps": 2, "validation_share": 0.1},
            "variants": [{"name": "first"}, {"name": "second", "train": {"seed": 1}}],
            "score": {"scorer": "perspective"},
        }
    )  # fmt: skip


def completions(model, prompt_id, texts):
    return Completions(prompt_id, prompt_id[:2], model, "So", texts, [3] * len(texts), ["stop"] * len(texts))


def test_nothing_is_done_before_a_run(experiment):
    work = count_work(experiment, with_model=False)
    assert work.num_prompts == 8
    assert work.models == {"base": ModelWork(), "first": ModelWork(), "second": ModelWork()}
    first, second = work.trainings.values()
    assert (first.num_pairs, first.num_validation, first.num_steps) == (36, 4, 9)
    assert (first.num_reference, second.num_reference) == (40, 0), "the second training finds the first one's reference"
    assert any("before the length filter" in note for note in work.notes)


def test_trainings_on_other_languages_share_no_reference(experiment, tmp_path):
    for code in ("de", "fr"):
        rows = [{"prompt": f"{code} {at}", "chosen": " a", "rejected": " b"} for at in range(20)]
        (tmp_path / f"{code}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = {"pairs": str(tmp_path), "limit": 24, "epochs": 1, "validation_share": 0.2, "languages": ["de", "fr"]}
    variants = [{"name": "both"}, {"name": "german", "train": {"languages": ["de"]}}]
    changed = Experiment.model_validate(experiment.model_dump(mode="json") | {"train": train, "variants": variants})
    both, german = count_work(changed, with_model=False).trainings.values()
    assert (both.num_pairs + both.num_validation, both.num_reference) == (24, 24)
    assert (german.num_pairs + german.num_validation, german.num_reference) == (20, 8), "12 are among the 24"


def test_the_model_filters_pairs_and_finds_cached_references(experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("XGRAY_CACHE", str(tmp_path / "cache"))
    short = experiment.model_copy(update={"train": experiment.train.model_copy(update={"max_length": 30})})
    counted = count_work(short, with_model=True).trainings["first"]
    assert 0 < counted.num_pairs + counted.num_validation < 40, "longer pairs are left out"
    assert counted.num_reference == counted.num_pairs + counted.num_validation


def test_finished_and_partial_stages_on_disk_are_counted(experiment):
    plan = make_plan(experiment)
    plan.run.write_bytes("experiment.yaml", b"{}")
    plan.stage("train", "first").begin()
    plan.stage("train", "first").finish(StageResult())
    second = plan.stage("train", "second")
    second.begin()
    second.folder.write_bytes("metrics.jsonl", b'{"total_steps": 9}\n{"step": 5, "loss": 0.7}\n')
    generated, scored = plan.stage("generate", "base"), plan.stage("score", "base")
    generated.begin()
    scored.begin()
    rows = [completions("base", "en/0", ["a", "b", ""]), completions("base", "de/0", ["c", "d", "d"])]
    generated.rows.write_parquet("rows.parquet", to_table(rows, Completions))
    work = count_work(experiment, with_model=False)
    assert work.models["base"] == ModelWork(2, 0, 2), "an empty text and a repeated one take no request"

    store = ScoreStore(store_uri(experiment.score, experiment.runs))
    store.put([entry("c", "de")])
    score = [Scores("en/0", "en", "base", [{"toxicity": 0.1}] * 3, [None] * 3, "perspective", "1")]
    scored.rows.write_parquet("rows.parquet", to_table(score, Scores))
    work = count_work(experiment, with_model=False)
    assert work.models == {"base": ModelWork(2, 1, 2), "first": ModelWork(), "second": ModelWork()}
    done = {name: (training.num_steps_done, training.num_steps) for name, training in work.trainings.items()}
    assert done == {"first": (9, 9), "second": (4, 9)}, "a training resumes from its last checkpoint"


def test_what_a_further_scorer_has_scored_is_counted_by_itself(experiment):
    values = experiment.model_dump(mode="json")
    several = Experiment.model_validate(values | {"score": [values["score"], {"scorer": "embedding"}]})
    plan = make_plan(several)
    plan.run.write_bytes("experiment.yaml", b"{}")
    for label in (("generate", "base"), ("score@embedding", "base")):
        plan.stage(*label).begin()
    rows = [completions("base", "en/0", ["a", "b", "c"])]
    plan.stage("generate", "base").rows.write_parquet("rows.parquet", to_table(rows, Completions))
    scores = [Scores("en/0", "en", "base", [{"toxicity": 0.1}] * 3, [None] * 3, "embedding", "1")]
    plan.stage("score@embedding", "base").rows.write_parquet("rows.parquet", to_table(scores, Scores))
    work = count_work(several, with_model=False)
    assert work.other_scorers["embedding"]["base"] == ModelWork(1, 1)
    assert work.models["base"] == ModelWork(1, 0)
    assert UnratedWork("robustness", "stages", 1) in work.inside


def test_scores_of_google_do_not_count_for_another_service(experiment):
    section = experiment.score.model_copy(update={"perspective_url": "http://127.0.0.1:8080"})
    elsewhere = experiment.model_copy(update={"score": section})
    plan = make_plan(elsewhere)
    plan.run.write_bytes("experiment.yaml", b"{}")
    generated = plan.stage("generate", "base")
    generated.begin()
    generated.rows.write_parquet("rows.parquet", to_table([completions("base", "de/0", ["c", "d", "d"])], Completions))
    ScoreStore(store_uri(section, elsewhere.runs)).put([entry("c", "de")])
    assert count_work(elsewhere, with_model=False).models["base"] == ModelWork(1, 0, 1), "a repeated text alone"


def entry(text, language):
    from xgray.data.perspective_results import SCORER, SCORER_VERSION
    from xgray.score.scorer import Scored, ScorerId
    from xgray.score.store.entry import ScoreEntry

    scorer, scored = ScorerId(SCORER, SCORER_VERSION), Scored({"toxicity": 0.2})
    return ScoreEntry.of_text(text, language, scorer, ("toxicity",), scored, "2026-01-01T00:00:00Z")


def test_another_configuration_counts_as_not_done(experiment):
    plan = make_plan(experiment)
    plan.run.write_bytes("experiment.yaml", b"{}")
    generated = plan.stage("generate", "base")
    generated.begin()
    generated.finish(StageResult())
    assert count_work(experiment, with_model=False).models["base"].num_generated == 8
    changed = experiment.model_copy(update={"seed": 1})
    work = count_work(changed, with_model=False)
    assert work.models["base"].num_generated == 0
    assert any("generate/base of another configuration" in note for note in work.notes)


def test_progress_is_unknown_without_the_model(experiment, monkeypatch):
    plan = make_plan(experiment)
    plan.run.write_bytes("experiment.yaml", b"{}")
    elsewhere = experiment.model_copy(update={"model": experiment.model.model_copy(update={"id": "./not/here"})})
    work = count_work(elsewhere, with_model=False)
    assert work.num_prompts == 8
    assert any("cannot be known here: model.id: no such folder" in note for note in work.notes)


def test_the_stages_inside_the_network_are_counted(experiment):
    sections = {
        "probe": {"test": None}, "vectors": {"limit": 3, "new_tokens": 7},
        "activations": {"new_tokens": 5}, "intervene": {"limit": 2, "offsets": [-1, 0, -4]}, "retrieve": {},
        "capability": {"tasks": ["arc_vi", "m_mmlu_vi"]},
    }  # fmt: skip
    with_sections = Experiment.model_validate(experiment.model_dump() | sections)
    work = count_work(with_sections, with_model=False)
    assert 10 < work.prompt_characters < 200
    probe, vectors, *activations, intervene, retrieve, transfer = work.inside[:-3]
    capability = work.inside[-3:]
    with (files("xgray") / "embedded" / "labelled" / "en.csv").open(encoding="utf-8", newline="") as stream:
        assert probe.num_texts == len(list(csv.DictReader(stream)))
    assert vectors == GreedyWork("vectors", 3, 7)
    assert activations == [GreedyWork(f"activations/{model}", 8, 5) for model in ("base", "first", "second")]
    assert intervene == InterventionWork(4, dict.fromkeys(("base", "offset-1", "offset-4"), ModelWork()))
    assert retrieve.num_texts >= 2 * 2, "each distinct text of English and German"
    assert transfer == UnratedWork("transfer", "correlations", 2)
    assert [work.stage for work in capability] == ["capability/base", "capability/first", "capability/second"]
    assert capability[0].number == 2

    plan = make_plan(with_sections)
    plan.run.write_bytes("experiment.yaml", b"{}")
    inside = plan.stage("intervene")
    inside.begin()
    rows = to_table([completions("offset-4", "en/0", ["a"])], Completions)
    (inside.folder / "generate" / "offset-4" / "rows").write_parquet("rows.parquet", rows)
    capability = plan.stage("capability", "base")
    capability.begin()
    capability.finish(StageResult())
    counted = count_work(with_sections, with_model=False).inside
    assert counted[5].settings["offset-4"] == ModelWork(1, 0)
    assert [work.is_done for work in counted[-3:]] == [True, False, False]
