"""``xgray plan`` of a scorer's training: counts against the prepared texts, and formulas by hand."""

import json

import pytest

from tests.processes import xgray
from tests.train.tiny_sources import write_training
from xgray.config import ScorerTraining
from xgray.estimate.scorer_training import (
    Encoder,
    disk_bytes,
    estimate_training,
    measure_tokens_per_second,
    memory_bytes,
    read_encoder,
)
from xgray.models.load import load_tokenizer
from xgray.storage.folder import Folder
from xgray.train.encoder.model import load_encoder
from xgray.train.encoder.prepare import prepare_texts, read_texts
from xgray.train.encoder.split import Part

pytestmark = pytest.mark.slow

XLM_R_LARGE = Encoder(560_000_000, 256_000_000, 24, 1024)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """The folder of a training, and its section."""
    folder = tmp_path_factory.mktemp("training")
    return folder, ScorerTraining.model_validate(write_training(folder, execution={"num_workers": 2}))


def test_counts_are_those_of_the_training(training):
    folder, section = training
    output = Folder(str(folder / "out"))
    prepared = prepare_texts(section, load_tokenizer(section.model.id))
    prepared.write(output)
    facts = prepared.facts
    estimate = estimate_training(section, tokens_per_second=100.0)
    train = read_texts(output, Part.TRAIN)
    assert estimate.num_texts["train"] == len(train) == sum(each["num_train"] for each in facts["sources"].values())
    assert estimate.tokens_per_text == pytest.approx(train.lengths.mean())
    assert estimate.num_steps == 24
    assert estimate.num_tokens == pytest.approx(24 * 8 * train.lengths.mean(), abs=1)
    validated = 4 * estimate.num_texts["validation"] * train.lengths.mean()
    assert estimate.seconds == pytest.approx((estimate.num_tokens + validated / 3) / (100 * 2), rel=1e-3)


def test_the_shape_of_the_model(training):
    _, section = training
    encoder = read_encoder(section)
    model = load_encoder(section.model.id, None, section.attributes, 0)
    assert encoder.num_weights == sum(weight.numel() for weight in model.parameters())
    assert (encoder.num_layers, encoder.hidden_size) == (2, 64)


def test_memory_and_disk_by_hand(training):
    _, section = training
    wide = section.model_copy(
        update={"batch_size": 128, "execution": section.execution.model_copy(update={"num_workers": 1})}
    )
    # 16 bytes a weight; 24 layers of 34 bytes for 1,024 units and 16,384 tokens (execution.batch_tokens).
    assert memory_bytes(wide, XLM_R_LARGE, 256) == 16 * 560_000_000 + 24 * 34 * 1024 * 16384
    checkpointing = wide.execution.model_copy(update={"gradient_checkpointing": True})
    less = memory_bytes(wide.model_copy(update={"execution": checkpointing}), XLM_R_LARGE, 256)
    assert less == 16 * 560_000_000 + (34 + 24 * 2) * 1024 * 16384
    assert disk_bytes(XLM_R_LARGE) == (4 * 12 + 4) * 560_000_000


def test_the_speed_is_measured(training):
    assert measure_tokens_per_second(training[1]) > 0


def test_the_command(training):
    folder, _ = training
    done = xgray("plan", "training.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "not estimated" in done.stdout
    (folder / "rates.yaml").write_text("scorer_training: {tokens_per_second: 5, source: the vendor}")
    done = xgray("plan", "training.yaml", "--rates", "rates.yaml", "--json", cwd=folder)
    assert json.loads(done.stdout)["tokens_per_second"] == 10
    done = xgray("plan", "training.yaml", "--measure", "--write-rates", "measured.yaml", "--max-steps", "3", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "tokens/s of 2 workers; measured" in done.stdout
    assert "tokens_per_second" in (folder / "measured.yaml").read_text()
    assert not (folder / "out" / "checkpoints").exists()
