"""What a name on the hub stood for when the run was planned is what is loaded, whatever is pushed afterwards."""

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
    """The hub's cache on this machine, which is all that is asked when the hub cannot be."""

    def __init__(self, folder):
        self.folder = folder

    def push(self, repository, source, number):
        """A commit with the files of ``source``, and the main branch at it; returns the commit."""
        place = self.folder / f"models--{repository.replace('/', '--')}"
        commit = f"{number:040x}"
        shutil.copytree(source, place / "snapshots" / commit)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / "main").write_text(commit)
        if not (source / "config.json").exists():  # noted, as a hub that was asked for it would have it
            (place / ".no_exist" / commit).mkdir(parents=True)
            (place / ".no_exist" / commit / "config.json").touch()
        return commit


@pytest.fixture
def hub(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XGRAY_CACHE", str(tmp_path / "cache"))
    made = Hub(tmp_path / "hub")
    words = tmp_path / "words"  # a tokenizer without a model
    shutil.copytree(tiny_model, words, ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    for number, (what, repository) in enumerate(HUB_IDS.items()):
        made.push(repository, words if what == "tokenizer" else Path(tiny_model), number)
    return made


def experiment(tmp_path, **evaluate):
    return Experiment.model_validate(
        {
            "name": "tiny",
            "runs": str(tmp_path),
            "languages": ["en"],
            "model": {"id": HUB_IDS["base"]},
            "variants": [{"name": "tuned", "checkpoint": HUB_IDS["tuned"]}],
            "score": {"scorer": "classifier", "classifier": {"model": {"id": HUB_IDS["classifier"]}}},
            "evaluate": {
                "resamples": 100,
                "fluency": {"model": {"id": HUB_IDS["fluency"]}},
                "diversity_tokenizer": HUB_IDS["tokenizer"],
                **evaluate,
            },
        }
    )


def revisions(planned):
    return {
        "base": planned.model.revision,
        "tuned": planned.variant("tuned").revision,
        "fluency": planned.evaluate.fluency.model.revision,
        "tokenizer": planned.evaluate.diversity_tokenizer_revision,
        "classifier": planned.score.classifier.model.revision,
    }


def fingerprints(plan):
    return {one.label: one.fingerprint for one in plan.stages}


def test_every_model_of_the_experiment_gets_its_commit(hub, tmp_path):
    plan = make_plan(experiment(tmp_path))
    commits = {what: f"{number:040x}" for number, what in enumerate(HUB_IDS)}
    assert revisions(plan.experiment) == commits
    weights, adapter = model_weights(plan, "tuned")
    assert (weights.path, weights.revision, adapter) == (HUB_IDS["tuned"], commits["tuned"], None)


@pytest.mark.parametrize(
    ("what", "first"),
    [
        ("base", "generate/base"),
        ("tuned", "generate/tuned"),
        ("fluency", "evaluate"),
        ("tokenizer", "evaluate"),
        ("classifier", "score/base"),
    ],
)
def test_what_is_pushed_later_is_another_experiment(hub, tmp_path, what, first):
    before = make_plan(experiment(tmp_path))
    source = (
        hub.folder / f"models--{HUB_IDS[what].replace('/', '--')}" / "snapshots" / revisions(before.experiment)[what]
    )
    hub.push(HUB_IDS[what], source, 99)
    after = make_plan(experiment(tmp_path))
    assert revisions(after.experiment) == revisions(before.experiment) | {what: f"{99:040x}"}
    old, new = fingerprints(before), fingerprints(after)
    assert next(label for label in old if old[label] != new[label]) == first
    # The experiment as resolved still stands for what it stood for.
    assert fingerprints(make_plan(before.experiment)) == old


def letters(folder):
    """A tokenizer whose tokens are bytes."""
    tokenizer = Tokenizer(models.BPE(vocab={one: at for at, one in enumerate(ByteLevel.alphabet())}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="!").save_pretrained(folder)
    return folder


def test_dist_n_counts_the_tokens_of_the_commit(hub, tmp_path):
    plan = make_plan(experiment(tmp_path))
    run = Folder(str(tmp_path / "run"))
    texts = [" the cat sat on the mat", " an idiot"]
    rows = [Completions(f"en/{at}", "en", "base", "p", texts, [1, 1], ["length"] * 2) for at in range(2)]
    scores = [Scores(row.prompt_id, "en", "base", [{"toxicity": 0.5}] * 2, [None] * 2, "made", "1") for row in rows]
    (run / "generate" / "base" / "rows").write_parquet("0.parquet", to_table(rows, Completions))
    (run / "score" / "base" / "rows").write_parquet("0.parquet", to_table(scores, Scores))

    def dist_1(section):
        off = section.model_copy(update={"fluency": section.fluency.model_copy(update={"kind": "none"})})
        metrics = evaluate_run(run, ["base"], off, plan.experiment.model)
        return metrics["models"]["base"]["average"]["dist_1"]["value"]

    pinned = dist_1(plan.experiment.evaluate)
    hub.push(HUB_IDS["tokenizer"], letters(tmp_path / "letters"), 99)
    assert dist_1(plan.experiment.evaluate) == pinned
    assert dist_1(make_plan(experiment(tmp_path)).experiment.evaluate) != pinned


@pytest.mark.parametrize("what", ["fluency", "diversity_tokenizer"])
def test_a_local_folder_that_measures_is_known_by_its_content(hub, tmp_path, tiny_model, what):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "mine"))
    named = {"fluency": {"model": {"id": str(folder)}}, "diversity_tokenizer": str(folder)}[what]
    before = make_plan(experiment(tmp_path, **{what: named}))
    assert fingerprints(make_plan(experiment(tmp_path, **{what: named}))) == fingerprints(before)
    (folder / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text() + " ")
    after = fingerprints(make_plan(experiment(tmp_path, **{what: named})))
    changed = [label for label, one in fingerprints(before).items() if one != after[label]]
    assert changed == ["evaluate", "report"]


def test_completions_from_files_ask_for_what_measures_alone(hub, tmp_path):
    shutil.rmtree(hub.folder / "models--made--base")
    shutil.rmtree(hub.folder / "models--made--tuned")
    plan = make_plan(experiment(tmp_path), {"base": "a file's", "tuned": "another's"})
    found = revisions(plan.experiment)
    assert (found["base"], found["tuned"]) == (None, None)
    assert found["fluency"] == f"{2:040x}"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("tuned", "^variants.tuned.checkpoint: .*'made/tuned'"),
        ("fluency", "^evaluate.fluency.model.id: .*'made/fluency'"),
        ("tokenizer", "^evaluate.diversity_tokenizer: .*'made/words'"),
        ("classifier", "^score.classifier.model.id: .*'made/classifier'"),
    ],
)
def test_what_the_hub_does_not_have_is_named(hub, tmp_path, what, message):
    shutil.rmtree(hub.folder / f"models--{HUB_IDS[what].replace('/', '--')}")
    with pytest.raises(InputError, match=message):
        make_plan(experiment(tmp_path))
