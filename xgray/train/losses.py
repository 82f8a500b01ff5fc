"""Preference losses as functions of log-probabilities.

The names, the formulas and their defaults are TRL's. Averages over tokens are those of each completion, so that a loss
does not depend on which pairs share a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from xgray.config.train import Loss


@dataclass(frozen=True)
class PairLogProbs:
    """Summed log-probabilities of n pairs, all of shape ``(n,)`` and in nats."""

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    """Those of the reference; 0 for a loss without one."""
    reference_rejected: Tensor
    num_chosen: Tensor
    """Counted tokens of the completions."""
    num_rejected: Tensor
    divergence: float = 0.0
    """KTO's estimate of the policy's divergence from the reference, in nats, at least 0."""

    @property
    def ratios(self) -> tuple[Tensor, Tensor]:
        """Return the log-ratios of policy and reference of chosen and rejected completions."""
        return self.chosen - self.reference_chosen, self.rejected - self.reference_rejected

    @property
    def averages(self) -> tuple[Tensor, Tensor]:
        """Return the policy's log-probabilities per token."""
        return self.chosen / self.num_chosen.clamp(min=1), self.rejected / self.num_rejected.clamp(min=1)


@dataclass(frozen=True)
class LossParameters:
    """What the formulas are configured with."""

    beta: float
    label_smoothing: float
    """``robust``: the share of pairs whose chosen and rejected completions are taken to be swapped."""
    margin: float
    """``simpo``: by how much the reward of the chosen completion should be greater."""


def preference_losses(name: Loss, pairs: PairLogProbs, parameters: LossParameters) -> Tensor:
    """Return the ``(n,)`` losses of pairs."""
    return _FORMULAS[name](pairs, parameters)


def rewards(name: Loss, pairs: PairLogProbs, beta: float) -> tuple[Tensor, Tensor]:
    """Return the implicit rewards of chosen and rejected completions: beta times what the loss compares."""
    if name in ("orpo", "simpo"):
        chosen, rejected = pairs.averages
    else:
        chosen, rejected = pairs.ratios  # without a reference these are the log-probabilities
    return beta * chosen, beta * rejected


def _sigmoid(pairs: PairLogProbs, parameters: LossParameters) -> Tensor:
    """DPO (Rafailov et al., 2023), equation 7."""
    return -logsigmoid(_margin(pairs, parameters))


def _hinge(pairs: PairLogProbs, parameters: LossParameters) -> Tensor:
    """SLiC's loss (Zhao et al., 2023) of DPO's margin."""
    return torch.relu(1 - _margin(pairs, parameters))


def _ipo(pairs: PairLogProbs, parameters: LossParameters) -> Tensor:
    """IPO (Azar et al., 2023), equation 17, with log-ratios per token, as TRL computes it on its authors' advice."""
    chosen, rejected = pairs.ratios
    difference = chosen / pairs.num_chosen.clamp(min=1) - rejected / pairs.num_rejected.clamp(min=1)
    return (difference - 1 / (2 * parameters.beta)) ** 2


def _robust(pairs: PairLogProbs, parameters: LossParameters) -> Tensor:
    """Robust DPO (Chowdhury et al., 2024), equation 10: unbiased where some pairs are swapped."""
    margin, share = _margin(pairs, parameters), parameters.label_smoothing
    return (share * logsigmoid(-margin) - (1 - share) * logsigmoid(margin)) / (1 - 2 * share)


def _kto(pairs: PairLogProbs, parameters: LossParameters) -> Tensor:
    """KTO (Ethayarajh et al., 2024), equation 8: the mean over both completions, each taken by itself."""
    chosen, rejected = pairs.ratios
    desirable = 1 - torch.sigmoid(parameters.beta * (chosen - pairs.divergence))
    undesirable = 1 - torch.sigmoid(parameters.beta * (pairs.divergence - rejected))
    return (desirable + undesirable) / 2


def _orpo(pairs: PairLogProbs, parameters: LossParameters) -> Tensor:
    """ORPO (Hong et al., 2024), equations 6 and 7: the chosen tokens' mean loss, and beta times that of the odds."""
    chosen, rejected = pairs.averages
    log_odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    return -chosen - parameters.beta * logsigmoid(log_odds)


def _cpo(pairs: PairLogProbs, parameters: LossParameters) -> Tensor:
    """CPO (Xu et al., 2024), equations 4 and 5: DPO's loss without a reference, and the chosen tokens' mean loss."""
    chosen, _ = pairs.averages
    return -logsigmoid(parameters.beta * (pairs.chosen - pairs.rejected)) - chosen


def _simpo(pairs: PairLogProbs, parameters: LossParameters) -> Tensor:
    """SimPO (Meng et al., 2024), equation 6."""
    chosen, rejected = pairs.averages
    return -logsigmoid(parameters.beta * (chosen - rejected) - parameters.margin)


def _log1mexp(values: Tensor) -> Tensor:
    """Return ``log(1 - exp(values))`` of negative values, exact near 0 too (Mächler, 2012)."""
    is_small = values < -0.693147
    # Each branch gets values at which its gradient is finite.
    far, near = values.clamp(max=-0.693147), values.clamp(min=-0.693147, max=-1e-12)
    return torch.where(is_small, torch.log1p(-torch.exp(far)), torch.log(-torch.expm1(near)))


def _margin(pairs: PairLogProbs, parameters: LossParameters) -> Tensor:
    chosen, rejected = pairs.ratios
    return parameters.beta * (chosen - rejected)


_FORMULAS: dict[Loss, Callable[[PairLogProbs, LossParameters], Tensor]] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "robust": _robust,
    "kto": _kto,
    "orpo": _orpo,
    "cpo": _cpo,
    "simpo": _simpo,
}
