"""Models are pinned to the hub's commits of the time of planning, and later pushes change the fingerprints."""

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from xgray.config import Experiment
from xgray.errors import InputError
from xgray.evaluate.metrics import evaluate_run
from xgray.experiment.plan import make_plan
from xgray.experiment.weights import model_weights
from xgray.rows import Completions, Scores, to_table
from xgray.storage.folder import Folder

HUB_IDS = {
    "base": "made/base",
    "tuned": "made/tuned",
    "fluency": "made/fluency",
    "tokenizer": "made/words",
    "classifier": "made/classifier",
}


class Hub:
    """The hub's cache on this machine, which is all that is read when the hub is offline."""

    def __init__(self, folder):
        self.folder = folder

    def push(self, repository, source, number):
        """Add a commit with the files of ``source``, move the main branch to it, and return it."""
        cached = self.folder / f"models--{repository.replace('/', '--')}"
        commit = f"{number:040x}"
        shutil.copytree(source, cached / "snapshots" / commit)
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs" / "main").write_text(commit)
        if not (source / "config.json").exists():  # as the cache notes a file that the hub does not have
            (cached / ".no_exist" / commit).mkdir(parents=True)
            (cached / ".no_exist" / commit / "config.json").touch()
        return commit


@pytest.fixture
def hub(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XGRAY_CACHE", str(tmp_path / "cache"))
    hub = Hub(tmp_path / "hub")
    words = tmp_path / "words"  # a tokenizer without a model
    shutil.copytree(tiny_model, words, ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    for number, (role, repository) in enumerate(HUB_IDS.items()):
        hub.push(repository, words if role == "tokenizer" else Path(tiny_model), number)
    return hub


def experiment(tmp_path, score=None, **evaluate):
    return Experiment.model_validate(
        {
            "name": "tiny",
            "runs": str(tmp_path),
            "languages": ["en"],
            "model": {"id": HUB_IDS["base"]},
            "variants": [{"name": "tuned", "checkpoint": HUB_IDS["tuned"]}],
            "score": score or {"scorer": "classifier", "classifier": {"model": {"id": HUB_IDS["classifier"]}}},
            "evaluate": {
                "resamples": 100,
                "fluency": {"model": {"id": HUB_IDS["fluency"]}},
                "diversity_tokenizer": HUB_IDS["tokenizer"],
                **evaluate,
            },
        }
    )


def revisions(experiment):
    return {
        "base": experiment.model.revision,
        "tuned": experiment.variant("tuned").revision,
        "fluency": experiment.evaluate.fluency.model.revision,
        "tokenizer": experiment.evaluate.diversity_tokenizer_revision,
        "classifier": experiment.score.classifier.model.revision,
    }


def fingerprints(plan):
    return {stage.label: stage.fingerprint for stage in plan.stages}


def test_every_model_of_the_experiment_gets_its_commit(hub, tmp_path):
    plan = make_plan(experiment(tmp_path))
    commits = {role: f"{number:040x}" for number, role in enumerate(HUB_IDS)}
    assert revisions(plan.experiment) == commits
    weights, adapter = model_weights(plan, "tuned")
    assert (weights.path, weights.revision, adapter) == (HUB_IDS["tuned"], commits["tuned"], None)


def test_a_guard_gets_its_commit(hub, tmp_path):
    guard = {"scorer": "guard", "guard": {"model": {"id": HUB_IDS["base"]}}}
    plan = make_plan(experiment(tmp_path, score=guard))
    commit = plan.experiment.model.revision
    assert plan.experiment.score.guard.model.revision == commit
    assert plan.stage("score", "base").payload["inputs"]["guard"] == f"{HUB_IDS['base']}@{commit}"


@pytest.mark.parametrize(
    ("role", "first_stage"),
    [
        ("base", "generate/base"),
        ("tuned", "generate/tuned"),
        ("fluency", "evaluate"),
        ("tokenizer", "evaluate"),
        ("classifier", "score/base"),
    ],
)
def test_push_changes_the_fingerprints_from_the_first_stage_that_loads_the_model(hub, tmp_path, role, first_stage):
    before = make_plan(experiment(tmp_path))
    source = (
        hub.folder / f"models--{HUB_IDS[role].replace('/', '--')}" / "snapshots" / revisions(before.experiment)[role]
    )
    hub.push(HUB_IDS[role], source, 99)
    after = make_plan(experiment(tmp_path))
    assert revisions(after.experiment) == revisions(before.experiment) | {role: f"{99:040x}"}
    old, new = fingerprints(before), fingerprints(after)
    assert next(label for label in old if old[label] != new[label]) == first_stage
    # The experiment as resolved still stands for role it stood for.
    assert fingerprints(make_plan(before.experiment)) == old


def save_byte_tokenizer(folder):
    """Save a tokenizer whose tokens are bytes, and return the folder."""
    tokenizer = Tokenizer(
        models.BPE(vocab={letter: index for index, letter in enumerate(ByteLevel.alphabet())}, merges=[])
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="!").save_pretrained(folder)
    return folder


def test_dist_n_counts_tokens_of_the_pinned_tokenizer(hub, tmp_path):
    plan = make_plan(experiment(tmp_path))
    run = Folder(str(tmp_path / "run"))
    texts = [" the cat sat on the mat", " an idiot"]
    rows = [Completions(f"en/{index}", "en", "base", "p", texts, [1, 1], ["length"] * 2) for index in range(2)]
    scores = [Scores(row.prompt_id, "en", "base", [{"toxicity": 0.5}] * 2, [None] * 2, "made", "1") for row in rows]
    (run / "generate" / "base" / "rows").write_parquet("0.parquet", to_table(rows, Completions))
    (run / "score" / "base" / "rows").write_parquet("0.parquet", to_table(scores, Scores))

    def dist_1(section):
        without_fluency = section.model_copy(update={"fluency": section.fluency.model_copy(update={"kind": "none"})})
        metrics = evaluate_run(run, ["base"], without_fluency, plan.experiment.model)
        return metrics["models"]["base"]["average"]["dist_1"]["value"]

    before = dist_1(plan.experiment.evaluate)
    hub.push(HUB_IDS["tokenizer"], save_byte_tokenizer(tmp_path / "bytes"), 99)
    assert dist_1(plan.experiment.evaluate) == before
    assert dist_1(make_plan(experiment(tmp_path)).experiment.evaluate) != before


@pytest.mark.parametrize("role", ["fluency", "diversity_tokenizer"])
def test_content_of_a_local_folder_that_measures_changes_the_fingerprint(hub, tmp_path, tiny_model, role):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "mine"))
    field = {"fluency": {"model": {"id": str(folder)}}, "diversity_tokenizer": str(folder)}[role]
    before = make_plan(experiment(tmp_path, **{role: field}))
    assert fingerprints(make_plan(experiment(tmp_path, **{role: field}))) == fingerprints(before)
    (folder / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text() + " ")
    after = fingerprints(make_plan(experiment(tmp_path, **{role: field})))
    changed = [label for label, value in fingerprints(before).items() if value != after[label]]
    assert changed == ["evaluate", "report"]


def test_imported_completions_need_only_the_models_that_measure(hub, tmp_path):
    shutil.rmtree(hub.folder / "models--made--base")
    shutil.rmtree(hub.folder / "models--made--tuned")
    plan = make_plan(experiment(tmp_path), {"base": "a file's", "tuned": "another's"})
    commits = revisions(plan.experiment)
    assert (commits["base"], commits["tuned"]) == (None, None)
    assert commits["fluency"] == f"{2:040x}"


@pytest.mark.parametrize(
    ("role", "message"),
    [
        ("tuned", "^variants.tuned.checkpoint: .*'made/tuned'"),
        ("fluency", "^evaluate.fluency.model.id: .*'made/fluency'"),
        ("tokenizer", "^evaluate.diversity_tokenizer: .*'made/words'"),
        ("classifier", "^score.classifier.model.id: .*'made/classifier'"),
    ],
)
def test_missing_model_is_refused_with_its_field(hub, tmp_path, role, message):
    shutil.rmtree(hub.folder / f"models--{HUB_IDS[role].replace('/', '--')}")
    with pytest.raises(InputError, match=message):
        make_plan(experiment(tmp_path))
