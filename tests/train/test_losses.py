"""Preference losses: values computed by hand, TRL's own code, and what holds for a model that equals its reference."""

import math
from types import SimpleNamespace

import pytest
import torch
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer

from xgray.train.losses import LossParameters, PairLogProbs, preference_losses, rewards

PARAMETERS = LossParameters(beta=0.3, label_smoothing=0.2, margin=0.5)


def make(chosen=(-12.0, -3.0), rejected=(-10.0, -8.0), reference=((-11.0, -4.0), (-9.0, -7.5)), divergence=0.0):
    chosen, rejected, *references = (torch.tensor(values) for values in (chosen, rejected, *reference))
    return PairLogProbs(chosen, rejected, *references, torch.tensor([4, 2]), torch.tensor([5, 3]), divergence)


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def log_odds(log_prob):
    return log_prob - math.log(1 - math.exp(log_prob))


def orpo(chosen, rejected):
    return -chosen - 0.3 * math.log(sigmoid(log_odds(chosen) - log_odds(rejected)))


# The first pair's log-ratios are -1 and -1, the second's 1 and -0.5.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sigmoid", [math.log(2), -math.log(sigmoid(0.45))]),
        ("hinge", [1, 0.55]),
        ("ipo", [(-1 / 4 + 1 / 5 - 1 / 0.6) ** 2, (1 / 2 + 0.5 / 3 - 1 / 0.6) ** 2]),
        ("robust", [math.log(2), (-0.8 * math.log(sigmoid(0.45)) + 0.2 * math.log(sigmoid(-0.45))) / 0.6]),
        ("kto", [1 - (sigmoid(-0.3) + sigmoid(0.3)) / 2, 1 - (sigmoid(0.3) + sigmoid(0.15)) / 2]),
        ("cpo", [-math.log(sigmoid(-0.6)) + 3, -math.log(sigmoid(1.5)) + 1.5]),
        ("simpo", [-math.log(sigmoid(0.3 * (-3 + 2) - 0.5)), -math.log(sigmoid(0.3 * (-1.5 + 8 / 3) - 0.5))]),
        ("orpo", [orpo(-3, -2), orpo(-1.5, -8 / 3)]),
    ],
)
def test_values_computed_by_hand(name, expected):
    assert preference_losses(name, make(), PARAMETERS).tolist() == pytest.approx(expected, rel=1e-5)


def test_the_divergence_lowers_the_value_of_the_chosen_and_raises_that_of_the_rejected():
    loss = preference_losses("kto", make(divergence=2.0), PARAMETERS)[1].item()
    assert loss == pytest.approx(1 - (sigmoid(0.3 * (1 - 2)) + sigmoid(0.3 * (2 + 0.5))) / 2)


@pytest.mark.parametrize(
    ("name", "loss"), [("sigmoid", math.log(2)), ("hinge", 1), ("ipo", 1 / 0.36), ("robust", math.log(2)), ("kto", 0.5)]
)
def test_the_first_loss_of_a_model_that_equals_its_reference(name, loss):
    pairs = make(reference=((-12.0, -3.0), (-10.0, -8.0)))
    assert preference_losses(name, pairs, PARAMETERS).tolist() == pytest.approx([loss, loss])


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo", "robust", "kto", "orpo", "cpo", "simpo"])
def test_a_likelier_chosen_and_an_unlikelier_rejected_completion_lower_every_loss(name):
    better = make(chosen=(-11.0, -2.5), rejected=(-10.5, -8.5))
    assert (preference_losses(name, better, PARAMETERS) < preference_losses(name, make(), PARAMETERS) + 1e-9).all()
    chosen, rejected = rewards(name, make(), 0.3)
    better_chosen, better_rejected = rewards(name, better, 0.3)
    assert (better_chosen > chosen).all()
    assert (better_rejected < rejected).all()


def test_the_reference_free_losses_are_those_of_trl():
    pairs = make()
    chosen, rejected = pairs.averages
    trainer = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    odds, *_ = ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)
    assert preference_losses("orpo", pairs, PARAMETERS).tolist() == pytest.approx((-chosen - odds).tolist())
    vars(trainer).update(alpha=0.0, label_smoothing=0.0, loss_type="simpo", simpo_gamma=0.5)
    losses, *_ = CPOTrainer.cpo_loss(trainer, chosen, rejected)
    assert preference_losses("simpo", pairs, PARAMETERS).tolist() == pytest.approx(losses.tolist())
    trainer.loss_type = "sigmoid"
    losses, *_ = CPOTrainer.cpo_loss(trainer, pairs.chosen, pairs.rejected)
    assert preference_losses("cpo", pairs, PARAMETERS).tolist() == pytest.approx((losses - chosen).tolist())


def test_odds_of_completions_that_are_nearly_certain_are_finite():
    pairs = make(chosen=(-1e-7, 0.0), rejected=(-0.0001, -100.0))
    pairs.chosen.requires_grad_()
    losses = preference_losses("orpo", pairs, PARAMETERS)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert pairs.chosen.grad.isfinite().all()
