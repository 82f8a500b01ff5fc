"""The probe's features against an independent computation, and its training against training through the model."""

import numpy as np
import pytest
import torch

from benchmarks.reference.measurements import mean_hidden_states, residual_without_norm
from benchmarks.reference.released import probe_training
from benchmarks.reference.tiny_models import CONFIGS, make_model, make_tokenizer
from xgray.config import Probe
from xgray.errors import InputError
from xgray.mechanism.probe import (
    calibration,
    epochs,
    initial_weights,
    read_probe_file,
    released_split,
    text_features,
    train_probe,
    validation_metrics,
)
from xgray.models.batches import padded

TEXTS = ["good morning", "you idiot", "a", "what a kind word, and what a long one it is", "she came home", "oh"]


@pytest.mark.parametrize("kind", CONFIGS)
def test_features_are_the_mean_residual_stream_before_the_norm_and_without_padding(kind):
    model, tokenizer = make_model(kind), make_tokenizer()
    features, truncated = text_features(model, tokenizer, TEXTS, 1024, batch_size=4)
    for text, result in zip(TEXTS, features, strict=True):
        assert result == pytest.approx(residual_without_norm(model, tokenizer, text), abs=1e-5)
    assert not truncated.any()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_released_features_are_taken_after_the_final_norm(kind):
    model, tokenizer = make_model(kind), make_tokenizer()
    norm = model.transformer.ln_f if kind == "gpt2" else model.model.norm
    torch.nn.init.uniform_(norm.weight, 0.5, 2)
    result, _ = text_features(model, tokenizer, TEXTS, 1024, batch_size=4, protocol="released")
    before, _ = text_features(model, tokenizer, TEXTS, 1024, batch_size=4)
    assert np.abs(result - before).max() > 0.1
    for text, feature in zip(TEXTS, result, strict=True):
        assert feature == pytest.approx(mean_hidden_states(model, tokenizer, text)[-1], abs=1e-5)


def test_long_texts_are_cut_and_reported():
    model, tokenizer = make_model("llama"), make_tokenizer()
    features, truncated = text_features(model, tokenizer, ["abcdefgh", "abcd", "abcdx"], 4, batch_size=3)
    assert truncated.tolist() == [True, False, True]
    assert features[0] == pytest.approx(features[1], abs=1e-6)
    context = model.config.max_position_embeddings
    assert text_features(model, tokenizer, ["a" * (context + 1), "a" * context], 10**6, 2)[1].tolist() == [True, False]


def test_a_text_without_tokens_and_an_overflow_are_refused():
    model, tokenizer = make_model("llama"), make_tokenizer()
    with pytest.raises(InputError, match="no tokens"):
        text_features(model, tokenizer, ["fine", ""], 8, 2)
    model.model.layers[-1].mlp.down_proj.weight.data.fill_(float("inf"))
    with pytest.raises(InputError, match=r"overflows in torch\.float32.* Set probe\.dtype"):
        text_features(model, tokenizer, ["fine"], 8, 2)


def test_training_on_stored_features_is_training_through_the_frozen_model():
    model, tokenizer = make_model("llama"), make_tokenizer()
    toxic = np.array([False, True, False, False, False, True])
    section = Probe(batch_size=4, epochs=5, learning_rate=0.01)
    features, _ = text_features(model, tokenizer, TEXTS, 1024, batch_size=6)
    trained = train_probe((features, toxic), (features[:2], toxic[:2]), section, seed=3)

    model.requires_grad_(False)
    model.model.norm = torch.nn.Identity()
    head = torch.nn.Linear(model.config.hidden_size, 1, bias=False)
    torch.nn.init.zeros_(head.weight)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for batches in epochs(len(TEXTS), section, seed=3):
        for rows in batches:
            ids, mask = padded([tokenizer(TEXTS[row])["input_ids"] for row in rows], model.device)
            states = model.model(ids, attention_mask=mask).last_hidden_state * mask.unsqueeze(-1)
            mean = states.sum(1) / mask.sum(1, keepdim=True)
            targets = torch.tensor(toxic[rows]).float()
            loss = torch.nn.BCEWithLogitsLoss()(head(mean).squeeze(-1), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert np.abs(trained.w - head.weight.detach().numpy()[0]).max() < 1e-5
    assert len(trained.losses) == 5
    assert trained.losses[-1] < trained.losses[0]


def test_the_first_adam_step_has_the_length_of_the_protocols_learning_rate():
    """The gradient at w = 0 is the mean of (1/2 - toxic) x: here (-1/4, 1/2) and 0."""
    features = np.array([[0, 0, 1], [1, -2, 1]], np.float32)
    texts = features, np.array([False, True])
    trained = train_probe(texts, texts, Probe(epochs=1), seed=0)
    assert trained.w == pytest.approx([1e-4, -1e-4, 0], rel=1e-4, abs=1e-12)
    assert trained.losses == [pytest.approx(np.log(2))]
    released = train_probe(texts, texts, Probe(epochs=1, protocol="released"), seed=0)
    first = initial_weights(3, seed=0)
    assert np.abs(released.w - first) == pytest.approx([1e-6] * 3, rel=0.1)
    assert (np.abs(first) <= 3**-0.5).all()


def test_released_training_is_the_scripts_in_order_split_losses_and_weights():
    rng = np.random.default_rng(0)
    features, toxic = rng.normal(size=(123, 8)).astype(np.float32), rng.random(123) < 0.4
    section = Probe(protocol="released", batch_size=5, epochs=4)
    fit, held_out = released_split(len(features), section.validation_share, seed=99)
    weights, losses, expected_fit, expected_held_out = probe_training(
        features, toxic, section, 99, initial_weights(8, seed=99)
    )
    assert (fit, held_out) == (expected_fit, expected_held_out)
    before = torch.random.get_rng_state()
    trained = train_probe((features[fit], toxic[fit]), (features[held_out], toxic[held_out]), section, seed=99)
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.abs(trained.w - weights).max() < 1e-7
    assert trained.validation_losses == pytest.approx(losses, abs=1e-7)
    # 13 held-out texts are batches of 5, 5 and 3: the mean over batches is not that over texts.
    w = trained.w.astype(float)
    odds = features[held_out] @ w * np.where(toxic[held_out], 1, -1)
    over_texts = np.log1p(np.exp(-odds)).mean()
    assert abs(over_texts - trained.validation_losses[trained.epoch - 1]) > 1e-4


def test_released_keeps_the_epoch_of_lowest_validation_loss():
    """Features have one dimension. The held-out loss is lowest at w = log 3, which training passes on its way."""
    fit = np.array([[1.0], [-1.0]], np.float32), np.array([True, False])
    held_out = np.array([[1.0], [1.0], [1.0], [1.0]], np.float32), np.array([True, True, True, False])
    for protocol in ("corrected", "released"):
        section = Probe(epochs=30, learning_rate=0.1, protocol=protocol)
        trained = train_probe(fit, held_out, section, seed=0)
        losses = np.array(trained.validation_losses)
        best = int(losses.argmin()) + 1
        assert 1 < best < 30
        assert trained.epoch == (best if protocol == "released" else 30)
        odds = trained.w[0] * np.array([1, 1, 1, -1])
        assert losses[trained.epoch - 1] == pytest.approx(np.log1p(np.exp(-odds)).mean(), abs=1e-6)
        assert (abs(trained.w[0] - np.log(3)) < 0.1) == (protocol == "released")


def test_the_order_depends_on_the_seed_and_every_epoch_has_every_text_once():
    section = Probe(batch_size=4, epochs=3)
    first, again, other = ([np.concatenate(batches) for batches in epochs(10, section, seed)] for seed in (0, 0, 1))
    assert all(sorted(order.tolist()) == list(range(10)) for order in first)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])
    assert [len(batch) for batch in next(epochs(10, section, 0))] == [4, 4, 2]


def test_calibration_by_hand():
    probabilities = np.array([0.05, 0.05, 0.31, 0.39, 1.0])
    error, bins = calibration(probabilities, np.array([False, False, False, True, True]))
    # Bin 0: two texts at .05, none toxic. Bin 3: two at a mean of .35, half of them toxic. Bin 9: one at 1, toxic.
    assert error == pytest.approx((2 * 0.05 + 2 * 0.15 + 0) / 5)
    assert [entry["low"] for entry in bins] == [0.0, 0.3, 0.9]
    assert [entry["num_texts"] for entry in bins] == [2, 2, 1]
    assert [entry["share_toxic"] for entry in bins] == [0.0, 0.5, 1.0]


def test_validation_metrics_by_hand():
    result = validation_metrics(np.array([2.0, -1.0, 0.5, -3.0]), np.array([True, True, False, False]))
    assert result["accuracy"]["value"] == 0.5
    assert result["accuracy"]["low"] == pytest.approx(0.150, abs=1e-3)  # Wilson's, of 2 in 4
    assert result["auc"]["value"] == 0.75
    assert result["majority"] == 0.5
    probability_of_label = 1 / (1 + np.exp(-np.array([2.0, -1.0, -0.5, 3.0])))
    assert result["loss"] == pytest.approx(-np.log(probability_of_label).mean())


def test_a_probe_is_read_from_each_kind_of_file(tmp_path):
    from safetensors.numpy import save_file

    head = torch.nn.Linear(4, 1, bias=False)
    expected = head.weight.detach().numpy()[0]
    torch.save(head, tmp_path / "whole.pt")
    torch.save(head.state_dict(), tmp_path / "state.pt")
    torch.save(head.weight.detach(), tmp_path / "tensor.pt")
    np.save(tmp_path / "array.npy", expected)
    save_file({"w": expected}, tmp_path / "probe.safetensors")
    for name in ("whole.pt", "state.pt", "tensor.pt", "array.npy", "probe.safetensors"):
        assert np.array_equal(read_probe_file(str(tmp_path / name)), expected), name


def test_a_file_that_is_no_probe_is_refused(tmp_path):
    torch.save(torch.zeros(2, 3), tmp_path / "matrix.pt")
    with pytest.raises(InputError, match=r"matrix\.pt: a probe is one row .* shape \(2, 3\)"):
        read_probe_file(str(tmp_path / "matrix.pt"))
    with pytest.raises(InputError, match=r"none\.npy: cannot read the probe"):
        read_probe_file(str(tmp_path / "none.npy"))
    torch.save(torch.nn.GRU(2, 2), tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other\.pt: it refers to torch\.nn\.modules\.rnn\.GRU"):
        read_probe_file(str(tmp_path / "other.pt"))
