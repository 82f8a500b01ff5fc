"""The training loop on a tiny encoder: it learns, and resumes, and cuts batches, without changing its numbers."""

import json

import numpy as np
import pytest
import torch

from tests.score.tiny_classifier import tiny_classifier
from tests.train.tiny_sources import write_training
from xgray.config import ScorerTraining
from xgray.errors import DivergedError, InputError
from xgray.models.load import load_tokenizer
from xgray.storage.folder import Folder
from xgray.train.encoder.fine_tune import FineTuning, Hooks, TokenizedTexts
from xgray.train.encoder.model import load_encoder
from xgray.train.encoder.prepare import FACTS, HELD_OUT, prepare_texts, read_texts
from xgray.train.encoder.split import Part
from xgray.train.state import load_weights

pytestmark = pytest.mark.slow

TIMES = {"seconds", "tokens_per_second", "elapsed"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The fields of a training, and the folder with its prepared texts."""
    folder = tmp_path_factory.mktemp("training")
    values = write_training(folder)
    output = Folder(str(folder / "out"))
    section = ScorerTraining.model_validate(values)
    prepare_texts(section, load_tokenizer(section.model.id)).write(output)
    return values, output


def tune(prepared, folder, hooks=None, resume_from=None, **fields):
    """Train in ``folder``; return the lines of the metrics without times, the model, and whether it came to its end."""
    values, output = prepared
    section = ScorerTraining.model_validate(values | fields)
    folder.mkdir(exist_ok=True)
    tuning = FineTuning(
        load_encoder(section.model.id, None, section.attributes, section.seed),
        section,
        read_texts(output, Part.TRAIN),
        read_texts(output, Part.VALIDATION),
        folder,
        folder / "metrics.jsonl",
        hooks or Hooks(),
    )
    has_ended = tuning.run(resume_from)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in row if name not in TIMES} for row in rows], tuning.model, has_ended


@pytest.fixture(scope="module")
def uninterrupted(prepared, tmp_path_factory):
    return tune(prepared, tmp_path_factory.mktemp("whole"))


def losses(rows):
    return [row["loss"] for row in rows if "loss" in row]


def test_the_prepared_texts(prepared):
    values, output = prepared
    train = read_texts(output, Part.TRAIN)
    facts = output.read_json(FACTS)
    sources = facts["sources"]
    assert len(train) == sum(source["num_train"] for source in sources.values())
    assert len(train.tokens) == train.offsets[-1] == train.lengths.sum()
    assert train.lengths.max() <= values["max_length"]
    assert np.isnan(train.targets[:, 1]).sum() == sources["labels"]["num_train"], "labels say nothing of insults"
    assert set(train.weights.tolist()) == {1.0, 2.0}
    held_out = output.read_table(HELD_OUT)
    assert held_out.column_names == ["text", "language", "source", "group", "toxicity", "insult"]
    assert held_out.num_rows == sum(source["num_test"] for source in sources.values())
    assert sources["scores"]["num_train"] == 0
    assert facts["languages"] == ["de", "en"]


def test_it_learns(prepared, tmp_path):
    """A few words tell the classes apart, so the loss falls to little more than the entropy of the targets."""
    rows, _, has_ended = tune(prepared, tmp_path / "long", max_steps=200, epochs=20, eval_steps=200)
    assert has_ended
    assert np.mean(losses(rows)[-20:]) < 0.75 * np.mean(losses(rows)[:20])


def test_the_metrics(uninterrupted):
    rows, _, has_ended = uninterrupted
    assert has_ended
    assert rows[0] == {"total_steps": 24}
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 25))
    assert [row["step"] for row in rows if "eval_loss" in row] == [6, 12, 18, 24]


class Stop:
    """Asks for a stop after some steps, and notes the checkpoints."""

    def __init__(self, after):
        self.after, self.steps = after, 0
        self.saved = []

    def hooks(self):
        return Hooks(on_checkpoint=self.note, is_stop_requested=self.is_due)

    def is_due(self):
        self.steps += 1
        return self.steps == self.after

    def note(self, folder, step, score, ends_training):
        self.saved.append((step, score, ends_training))


def test_a_stopped_training_resumes_to_the_same_numbers(prepared, uninterrupted, tmp_path):
    stop = Stop(after=9)
    rows, _, has_ended = tune(prepared, tmp_path / "out", stop.hooks())
    assert not has_ended
    assert [(step, score is None, ends) for step, score, ends in stop.saved] == [(6, False, False), (9, True, False)]
    assert rows[-1]["step"] == 9
    rows, model, has_ended = tune(prepared, tmp_path / "out", resume_from=tmp_path / "out" / "checkpoint-9")
    assert has_ended
    assert rows == uninterrupted[0]
    for name, weight in model.state_dict().items():
        assert weight.equal(uninterrupted[1].state_dict()[name]), name


def test_smaller_passes_make_the_same_steps(prepared, uninterrupted, tmp_path):
    without_dropout = {"max_steps": 6}
    values = prepared[0] | {"model": {"id": tiny_classifier(tmp_path / "encoder", hidden_dropout_prob=0.0,
                                                            attention_probs_dropout_prob=0.0)}}  # fmt: skip
    whole, *_ = tune((values, prepared[1]), tmp_path / "whole", **without_dropout)
    cut, *_ = tune((values, prepared[1]), tmp_path / "cut", **without_dropout, execution={"batch_tokens": 20})
    for one, other in zip(whole, cut, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_patience_ends_a_training(prepared, tmp_path):
    stop = Stop(after=0)
    rows, _, has_ended = tune(prepared, tmp_path / "out", stop.hooks(), patience=1, learning_rate=0.3, max_steps=400)
    evaluations = [row["eval_loss"] for row in rows if "eval_loss" in row]
    assert has_ended
    assert len(losses(rows)) < 400
    assert evaluations[-1] >= min(evaluations[:-1])
    assert stop.saved[-1][2], "the last checkpoint says that the training ends"


def test_a_checkpoint_holds_the_weights(prepared, tmp_path):
    stop = Stop(after=0)
    _, model, _ = tune(prepared, tmp_path / "out", stop.hooks(), max_steps=6)
    section = ScorerTraining.model_validate(prepared[0])
    fresh = load_encoder(section.model.id, None, section.attributes, 1)
    load_weights(fresh, tmp_path / "out" / "checkpoint-6")
    for name, weight in model.state_dict().items():
        assert weight.equal(fresh.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "modernbert", "electra", "llama"])
def test_architectures(prepared, tmp_path, kind):
    """Every weight of the architecture is trained, so that checkpoints hold all of them."""
    folder = tiny_classifier(tmp_path / kind, kind)
    values = prepared[0] | {"model": {"id": folder}}
    rows, model, _ = tune((values, prepared[1]), tmp_path / "out", max_steps=2)
    assert len(losses(rows)) == 2
    assert model.config.id2label == {0: "toxicity", 1: "insult"}


def test_what_cannot_be_trained_is_refused(prepared, tmp_path):
    with pytest.raises(DivergedError, match=r"of step \d+ is (nan|inf).* learning_rate \(1e\+30\)"):
        tune(prepared, tmp_path / "nan", learning_rate=1e30)
    with pytest.raises(InputError, match=r"batch_size: \d+ texts to train on do not fill a batch of 4096"):
        tune(prepared, tmp_path / "few", batch_size=4096)
    with pytest.raises(InputError, match=r"model\.id: cannot load .*from safetensors only"):
        load_encoder(str(tmp_path), None, ["toxicity"], 0)


def test_padding():
    texts = TokenizedTexts(
        np.array([5, 6, 7, 8], np.int32), np.array([0, 3, 4]), np.zeros((2, 1), np.float32), np.ones(2, np.float32)
    )
    ids, mask = texts.padded(np.array([1, 0]), 1)
    assert ids.tolist() == [[8, 1, 1], [5, 6, 7]]
    assert mask.tolist() == [[1, 0, 0], [1, 1, 1]]
    assert ids.dtype == torch.int64
