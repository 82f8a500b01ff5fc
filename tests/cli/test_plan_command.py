"""``xgray plan`` as a user meets it."""

import json
from pathlib import Path

import pytest
import yaml

from tests.object_store import CREDENTIALS, object_store
from tests.processes import xgray
from tests.train.tiny import make_tiny_model
from xgray.distributed.cluster import connect
from xgray.storage.folder import Folder

JOBS = Path(__file__).parents[2] / "jobs"
RATES = """
num_gpus: 8
price_per_gpu_hour: 2.5
currency: USD
train: {seconds_per_step: 0.5}
generate: {tokens_per_second: 8000, start_seconds: 60, source: the vendor}
score: {texts_per_second: 100}
fluency: {tokens_per_second: 20000}
metrics: {prompts_per_second: 500}
report: {seconds: 30}
"""


@pytest.fixture
def rates(tmp_path):
    (tmp_path / "rates.yaml").write_text(RATES)
    return "rates.yaml"


def test_stated_rates_need_no_model(tmp_path, rates):
    embedded = [f"--{field}=embedded" for field in ("prompts.path", "train.pairs", "retrieve.parallel")]
    job = [str(JOBS / "llama3-8b.yaml"), *embedded]
    done = xgray("plan", *job, "--rates", rates, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = {line["stage"]: line for line in json.loads(done.stdout)["lines"]}
    assert lines["train/dpo"]["unit"] == "steps"
    assert lines["generate/base"]["source"] == "the vendor"
    assert lines["generate/base"]["new_tokens"] == lines["generate/base"]["num_left"] * 25 * 20
    assert json.loads(done.stdout)["money"] > 0
    shown = xgray("plan", *job, "--rates", rates, "--score.scorer", "perspective", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "the rate limit: 1 requests a second" in shown.stdout
    assert "money, USD" in shown.stdout
    assert not (tmp_path / "runs").exists(), "nothing is written"


def test_without_rates_the_work_is_counted_and_a_kind_of_gpu_adds_hours_and_money(tmp_path):
    quickstart = str(JOBS / "quickstart.yaml")
    counted = xgray("plan", quickstart, cwd=tmp_path)
    assert counted.returncode == 0, counted.stderr
    assert "60 steps" in counted.stdout
    assert "13,600" in counted.stdout
    assert not any(word in counted.stdout.partition("\n- ")[0] for word in ("time", "GPU-hours", "stated"))
    assert "--on 8xh100" in counted.stdout
    estimated = xgray("plan", quickstart, "--on", "8xh100", "--json", cwd=tmp_path)
    result = json.loads(estimated.stdout)
    assert result["seconds"] > 60
    assert result["money"] == pytest.approx(result["seconds"] / 3600 * 8 * 6.88), "the machine is paid for as a whole"
    assert all("not measured" in line["source"] for line in result["lines"] if line["seconds"])


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("generate: {tokens_per_secnd: 10}", "unknown key 'generate.tokens_per_secnd'; did you mean"),
        ("generate: {tokens_per_second: -1}", "generate.tokens_per_second: Input should be greater than 0 (got -1)"),
        ("price_per_gpu_hour: -2", "price_per_gpu_hour: Input should be greater than or equal to 0"),
        ("- 1", "a rates file is a mapping"),
        ("a: [", "no valid YAML"),
    ],
)
def test_wrong_rates_are_named_in_one_line(tmp_path, text, fact):
    (tmp_path / "rates.yaml").write_text(text)
    done = xgray("plan", str(JOBS / "quickstart.yaml"), "--rates", "rates.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert fact in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_calls_are_refused(tmp_path, rates):
    quickstart = str(JOBS / "quickstart.yaml")
    for arguments, fact in [
        ([quickstart, "--on", "8xv100"], "known are such as 8xa10g, 8xa100, 8xh100"),
        ([quickstart, "--on", "8xh100", "--measure"], "--on: it replaces measuring"),
        ([quickstart, "--rates", "none.yaml"], "none.yaml: cannot read it"),
        ([quickstart, "--rates", rates, "--write-rates", "x.yaml"], "nothing to write without --measure"),
        ([str(JOBS / "mgpt.yaml"), "--rates", rates], "data/rtp_lx: no such file"),
        (["--rates", rates], "name one experiment file"),
        ([quickstart, "--measure", "--score.scorer", "openai"], "state score.texts_per_second"),
    ]:
        done = xgray("plan", *arguments, cwd=tmp_path)
        assert done.returncode == 2, arguments
        assert fact in done.stderr, done.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model with few tokens, since with a large vocabulary most of the time would go into its logits."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def experiment(tmp_path, model):
    experiment = {
        "name": "mine", "model": {"id": model}, "languages": ["en", "de"], "prompts": {"limit": 6},
        "train": {"method": "lora", "lora_r": 4, "limit": 48, "epochs": 1, "batch_size": 4, "gradient_accumulation": 2,
                  "validation_share": 0.1, "max_length": 128},
        "generate": {"k": 3, "max_new_tokens": 8, "execution": {"engine": "transformers", "batch_size": 4}},
        "evaluate": {"resamples": 200},
    }  # fmt: skip
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(experiment))
    return "e.yaml"


@pytest.fixture(scope="module")
def ray_with_keys():
    """A local Ray whose workers have the keys of the object store."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with connect():
            yield


@pytest.mark.slow
def test_the_experiment_is_measured(tmp_path, experiment, ray_with_keys):
    measured = xgray("plan", experiment, "--measure", "--write-rates", "rates.yaml", "--json", cwd=tmp_path)
    assert measured.returncode == 0, measured.stderr
    estimate = json.loads(measured.stdout)
    lines = {line["stage"]: line for line in estimate["lines"]}
    sampled = lines["generate/base"]
    assert (sampled["num_left"], sampled["num_completions"]) == (12, 36)
    assert 0 < sampled["new_tokens"] <= 36 * 8
    assert sampled["prompt_tokens"] > 12
    assert lines["train/dpo"]["num_left"] == 6
    assert "by transformers on cpu" in sampled["source"]
    assert all(line["source"].startswith("measured: ") for line in lines.values())
    assert estimate["gpu_hours"] == 0
    assert not list((tmp_path / "runs").glob("*")), "the measurement leaves nothing behind"

    again = xgray("plan", experiment, "--rates", "rates.yaml", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    read = {line["stage"]: line for line in json.loads(again.stdout)["lines"]}
    assert read["generate/base"] == sampled, "the measured rates serve without the model"
    assert read["train/dpo"]["seconds"] > lines["train/dpo"]["seconds"], "what of the reference is cached is not known"


@pytest.mark.slow
def test_runs_in_an_object_store_are_measured(tmp_path, experiment, ray_with_keys):
    """The training is done, and another short one stands for it. What a checkpoint's upload costs is part of it."""
    without_models = "--score.scorer", "dummy", "--evaluate.fluency.kind", "none"
    without_models += "--score.unvalidated-languages", "true"
    with object_store() as store:
        runs = store.uri("/runs")

        def call(*arguments):
            answer = xgray(*arguments, "--runs", runs, *without_models, "--json", cwd=tmp_path)
            assert answer.returncode == 0, answer.stderr
            return answer.stdout

        call("train", experiment)
        estimate = json.loads(call("plan", experiment, "--measure", "--write-rates", "rates.yaml"))
        lines = {line["stage"]: line for line in estimate["lines"]}
        assert lines["generate/dpo"]["source"].startswith("measured: ")
        rates = yaml.safe_load((tmp_path / "rates.yaml").read_text())["train"]
        assert rates["source"].startswith("measured: 6 steps")
        assert rates["seconds_per_step"] > 0
        assert rates["checkpoint_seconds"] > 0
        assert not list((tmp_path).glob("s3*"))
        assert Folder(runs).names() == ["mine"], "the measurement leaves nothing behind"
