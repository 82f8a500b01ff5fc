"""Stage ``intervene``: its texts are the edited engine's, it goes on after a stop, and refuses before it samples."""

import json
import re
from collections import Counter

import pytest

from tests.processes import xgray
from xgray.config import Experiment, Generate
from xgray.config.file import load_experiment, parse_overrides
from xgray.errors import InputError
from xgray.experiment.driver import run_experiment
from xgray.experiment.plan import make_plan
from xgray.experiment.stages.intervene import run
from xgray.generate.build import build_engine
from xgray.generate.engine import Weights
from xgray.mechanism.neurons import Edit
from xgray.rows import Completions, Scores, from_table, schema
from xgray.runs.manifest import StageResult
from xgray.storage.folder import Folder

NEURONS = [[0, 3], [0, 100], [1, 7], [1, 127]]
EDITS = {
    "base": None,
    "offset-5": Edit(((0, 3), (0, 100), (1, 7), (1, 127)), offset=-5.0),
    "times0": Edit(((0, 3), (0, 100), (1, 7), (1, 127)), multiplier=0.0),
}
NUM_PROMPTS = 12


def experiment(tiny_model, folder, **sections):
    return Experiment.model_validate(
        {
            "name": "e",
            "runs": str(folder),
            "model": {"id": tiny_model, "dtype": "float32"},
            "languages": ["en"],
            "variants": [],
            "generate": {"execution": {"engine": "transformers"}},
            **sections,
        }
    )


def test_a_neuron_outside_the_model_is_refused_before_anything_is_sampled(tiny_model, tmp_path):
    for neurons, message in (([[0, 3], [2, 0]], r"no neuron \[2, 0\].*2 layers of 128"), ([[1, 1], [1, 1]], "twice")):
        plan = make_plan(experiment(tiny_model, tmp_path, intervene={"neurons": neurons}))
        with pytest.raises(InputError, match=f"intervene.neurons: {message}|intervene.neurons: neuron.*{message}"):
            run(plan, plan.stage("intervene"), lambda label, done, total, errors=0: None)
        with pytest.raises(InputError, match=r"intervene\.neurons"):  # before any other stage runs, too
            run_experiment(plan)
    assert not (tmp_path / "e").exists()


def test_neurons_come_from_a_finished_stage_vectors(tiny_model, tmp_path):
    plan = make_plan(experiment(tiny_model, tmp_path, probe={}, vectors={}, intervene={}))
    vectors, intervene = plan.stage("vectors"), plan.stage("intervene")
    with pytest.raises(InputError, match="stage vectors is not finished"):
        run(plan, intervene, lambda label, done, total, errors=0: None)
    vectors.folder.write_json("metrics.json", {"sources": []})
    vectors.finish(StageResult())
    # An empty list of sources is a finding, not an error: nothing is sampled, and the run continues to its report.
    assert run(plan, intervene, lambda label, done, total, errors=0: None).counts == {"num_neurons": 0}
    metrics = intervene.folder.read_json("metrics.json")
    assert metrics["neurons"] == []
    assert "vectors found no actual sources" in metrics["reason"]


def test_everything_that_changes_results_is_in_the_fingerprint(tiny_model, tmp_path):
    def fingerprint(**changes):
        sections = {"intervene": {"neurons": NEURONS}} | changes
        return make_plan(experiment(tiny_model, tmp_path, **sections)).stage("intervene").fingerprint

    assert fingerprint() == fingerprint(report={"mask": False}) == fingerprint(variants=[{"name": "dpo"}])
    execution = {"engine": "transformers", "num_actors": 2}
    assert fingerprint() == fingerprint(generate={"k": 7, "execution": execution})  # intervene.generate has its own k
    changes = [
        {"intervene": {"neurons": NEURONS, "offsets": [-5]}},
        {"intervene": {"neurons": NEURONS[:2]}},
        {"intervene": {"neurons": NEURONS, "generate": {"temperature": 0.9}}},
        {"intervene": {"neurons": NEURONS, "limit": 3}},
        {"evaluate": {"resamples": 100}},
        {"score": {"scorer": "dummy"}},
        {"seed": 1},
        {"languages": ["de"]},
        {"generate": {"execution": {"engine": "dummy"}}},
    ]
    assert len({fingerprint(), *(fingerprint(**change) for change in changes)}) == len(changes) + 1


def test_settings_have_distinct_names(tmp_path):
    file = tmp_path / "e.yaml"

    def settings(text):
        file.write_text(f"name: e\nmodel: {{id: some/model}}\nintervene: {{neurons: [[0, 1]], {text}}}\n")
        section = load_experiment(file, parse_overrides([])).intervene
        return {name: (offset, multiplier) for name, offset, multiplier in section.settings()}

    assert settings("offsets: [0, -5, 2.5], multipliers: [0, 1]") == {
        "offset-5": (-5, 1),
        "offset2.5": (2.5, 1),
        "times0": (0, 0),
    }
    for text, message in (
        ("offsets: [0]", "an offset other than 0 or a multiplier other than 1 is needed"),
        ("offsets: [1, 1.0]", "a value is listed twice: offset1 offset1"),
        ("offsets: [.inf]", "finite number"),
    ):
        with pytest.raises(InputError, match=message):
            settings(text)


def files(folder):
    """Return the files of rows, and when each was written."""
    paths = folder.glob("runs/e/intervene/*/*/rows/*.parquet")
    return {path: path.stat().st_mtime_ns for path in paths if not path.name.startswith(".")}


def state(folder):
    """Return what ``xgray status`` says of the stage."""
    stages = json.loads(xgray("status", "runs/e", "--json", cwd=folder).stdout)["stages"]
    return next(stage for stage in stages if stage["label"] == "intervene")


def rows(folder, stage, setting, kind):
    table = Folder(str(folder / "runs/e/intervene" / stage / setting / "rows")).read_parquet(schema(kind))
    return from_table(table, kind)


@pytest.mark.slow
def test_texts_are_those_of_the_edited_engine_after_an_interrupt(tiny_model, tmp_path, monkeypatch, local_ray):
    (tmp_path / "e.yaml").write_text(
        f"name: e\nmodel: {{id: '{tiny_model}', dtype: float32}}\nvariants: []\nlanguages: [en, de]\n"
        "generate: {execution: {engine: transformers, batch_size: 1}}\nscore: {scorer: dummy, "
        "unvalidated_languages: true}\nevaluate: {resamples: 100, fluency: {kind: none}}\n"
        f"intervene: {{offsets: [-5], multipliers: [0], limit: 6, neurons: {NEURONS}, "
        "generate: {max_new_tokens: 8}}\n"
    )
    command = "intervene", "e.yaml"

    def interrupt(label, done, total, errors=0):
        if done >= 6:
            raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(make_plan(load_experiment(tmp_path / "e.yaml", {})), ("intervene",), on_progress=interrupt)
    left = files(tmp_path)
    assert 6 <= len(left) < 2 * 3 * NUM_PROMPTS
    assert not (tmp_path / "runs/e/intervene/manifest.json").exists()
    stopped = state(tmp_path)
    assert (stopped["state"], stopped["num_attempts"]) == ("stopped", 1)
    assert stopped["num_done"] == sum("score" in path.parts for path in files(tmp_path)) > 0

    resumed = xgray(*command, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(r"intervene 36/36", resumed.stderr), resumed.stderr
    assert left.items() <= files(tmp_path).items()

    engine = build_engine(
        "transformers", Weights(tiny_model, None, "float32"), Generate(k=1, temperature=0, max_new_tokens=8)
    )
    texts = {}
    for setting, edit in EDITS.items():
        sampled = rows(tmp_path, "generate", setting, Completions)
        assert Counter(row.language for row in sampled) == {"en": 6, "de": 6}
        assert Counter(row.prompt_id for row in rows(tmp_path, "score", setting, Scores)) == Counter(
            row.prompt_id for row in sampled
        )
        engine.edit(edit)
        expected = engine.sample([row.prompt for row in sampled], [0] * len(sampled), None)
        texts[setting] = [row.completions for row in sorted(sampled, key=lambda row: row.prompt_id)]
        assert [row.completions for row in sampled] == [[sample.text for sample in group] for group in expected]
    assert texts["offset-5"] != texts["base"]

    folder = tmp_path / "runs/e/intervene"
    metrics = json.loads((folder / "metrics.json").read_text())
    evaluated = json.loads((folder / "evaluate/metrics.json").read_text())
    assert metrics["neurons"] == NEURONS
    assert list(metrics["settings"]) == list(EDITS)
    for name, setting in metrics["settings"].items():
        assert setting["average"] == evaluated["models"][name]["average"]
        assert setting["languages"]["de"]["num_scored"] == 6
        assert setting["comparison"] == evaluated["comparisons"].get(name)
    assert [setting["offset"] for setting in metrics["settings"].values()] == [0, -5, 0]

    written = (folder / "manifest.json").stat().st_mtime_ns
    assert xgray(*command, cwd=tmp_path).returncode == 0
    assert (folder / "manifest.json").stat().st_mtime_ns == written
    done = state(tmp_path)
    assert (done["state"], done["num_done"], done["num_attempts"]) == ("done", 36, 2)
