"""``xgray scorer train`` as a user meets it: trained, killed and resumed, and used as a scorer."""

import asyncio
import json
import shutil

import pytest
import yaml

from tests.processes import kill_family, start_xgray, wait_until, xgray
from tests.train.tiny_sources import write_training
from xgray.distributed.cluster import connect

pytestmark = pytest.mark.slow

TIMES = {"seconds", "tokens_per_second", "elapsed"}


@pytest.fixture(scope="module", autouse=True)
def one_ray(tmp_path_factory):
    """A Ray for all trainings but the killed one, which has its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XGRAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        with connect():
            yield


def train(folder, *options, code=0):
    """Call the command in the folder, and return what it wrote to its two outputs; its exit code has to be this one."""
    done = xgray("scorer", "train", "training.yaml", *options, cwd=folder)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a training that nothing disturbed, and the card that the command printed."""
    folder = tmp_path_factory.mktemp("trained")
    # A checkpoint at every step gives time to kill another between two.
    write_training(folder, max_steps=12, eval_steps=1, execution={"cpus_per_worker": 1})
    output, _ = train(folder, "--json")
    return folder, json.loads(output)


def rows_of(folder):
    lines = (folder / "out" / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines]


def test_what_a_training_leaves(trained):
    folder, card = trained
    out = folder / "out"
    assert {path.name for path in out.iterdir()} == {
        "held_out.parquet", "logs", "manifest.json", "metrics.jsonl", "pending.json", "scorer", "texts.json"
    }  # fmt: skip
    assert json.loads((out / "scorer" / "card.json").read_text()) == card
    assert card["data"]["RTP_LX_EN"]["licence"] == "MIT"
    assert card["data"]["scores"]["num_test"] == 80
    assert card["agreement"].keys() == {"toxicity", "insult"}
    assert card["agreement"]["toxicity"].keys() == {"de", "en", "average"}
    assert card["agreement_of_sources"]["scores"]["toxicity"]["en"]["num"] == 80
    assert any("Learned from scores (scores)" in limit for limit in card["limits"])
    assert "| toxicity | de |" in (out / "scorer" / "README.md").read_text()
    assert str(folder) not in (out / "scorer" / "README.md").read_text().replace(str(folder / "encoder"), "")


def test_the_scorer_classifier_takes_the_folder(trained):
    from xgray.config import Score
    from xgray.score.classifier import ClassifierScorer
    from xgray.score.trained.card import score_section

    folder, card = trained
    scorer = ClassifierScorer(Score.model_validate(score_section(card, str(folder / "out" / "scorer"))))
    (result,) = asyncio.run(scorer.score(["You idiot"], "en"))
    assert result.scores.keys() == {"toxicity", "insult"}
    assert all(0 < value < 1 for value in result.scores.values())
    assert scorer.provenance()["max_length"] == 32, "texts are cut as in the training"


def test_a_killed_training_resumes_to_the_same_scorer(trained, tmp_path):
    """All processes of the training are killed between two checkpoints, and a part of a checkpoint is left behind."""
    folder, card = trained
    shutil.copy(folder / "training.yaml", tmp_path)
    process = start_xgray("scorer", "train", "training.yaml", cwd=tmp_path, XGRAY_CACHE=str(tmp_path / "cache"))
    checkpoints = tmp_path / "out" / "checkpoints"
    wait_until(lambda: any(checkpoints.glob("step-0000000[3-7]/contents.json")), process, timeout=300)
    kill_family(process)
    assert not (tmp_path / "out" / "scorer").exists()
    half = checkpoints / "step-00000011"
    half.mkdir()
    prepared = (tmp_path / "out" / "held_out.parquet").stat().st_mtime_ns
    (half / "state.safetensors").write_bytes(b"half")

    output, _ = train(tmp_path, "--json")
    assert (tmp_path / "out" / "held_out.parquet").stat().st_mtime_ns == prepared, "the texts are not read again"
    assert rows_of(tmp_path) == rows_of(folder)
    assert json.loads(output) == card
    files = {path.name for path in (folder / "out" / "scorer").iterdir()}
    for name in files:
        ours, theirs = (each / "out" / "scorer" / name for each in (tmp_path, folder))
        assert ours.read_bytes() == theirs.read_bytes(), name


def test_a_finished_training_is_shown_and_another_is_refused(trained):
    folder, _ = trained
    before = (folder / "out" / "manifest.json").read_bytes()
    output, _ = train(folder)
    assert "tiny against held-out texts" in output
    assert '"languages": ' in output
    assert (folder / "out" / "manifest.json").read_bytes() == before
    _, errors = train(folder, "--learning-rate", "1e-4", code=2)
    assert "section.learning_rate 0.001 -> 0.0001" in errors
    assert "--force" in errors


def test_two_workers_make_the_same_steps_up_to_dropout(trained, tmp_path):
    folder, _ = trained
    shutil.copytree(folder / "encoder", tmp_path / "encoder")
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (tmp_path / "encoder" / "config.json").write_text(json.dumps(config))
    values = yaml.safe_load((folder / "training.yaml").read_text()) | {"max_steps": 4, "eval_steps": 2}
    values["model"] = {"id": str(tmp_path / "encoder")}
    rows = {}
    for workers in (1, 2):
        fields = {"output": f"out{workers}", "execution": {"num_workers": workers, "cpus_per_worker": 1}}
        (tmp_path / "training.yaml").write_text(yaml.safe_dump(values | fields))
        train(tmp_path)
        lines = (tmp_path / f"out{workers}" / "metrics.jsonl").read_text().splitlines()
        rows[workers] = [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
    for one, two in zip(rows[1], rows[2], strict=True):
        assert two == pytest.approx(one, rel=1e-3)


def test_wrong_files_are_refused_in_one_line(tmp_path):
    write_training(tmp_path, max_length=4096)
    _, errors = train(tmp_path, code=2)
    assert "max_length: 4096 tokens are more than" in errors
    write_training(tmp_path, sources=[{"kind": "scores", "path": "none.csv", "licence": "MIT"}])
    _, errors = train(tmp_path, code=2)
    assert "none.csv: no such file or folder (source none)" in errors
    assert "Traceback" not in errors
