"""The probe: a direction ``w`` in the residual stream that tells toxic texts from others.

It is a logistic regression without a bias, ``p(toxic | x) = sigmoid(w . x)``, as in Li et al. 2024. The feature x of a
text is the mean over its tokens of the last layer's output, before the model's final norm. Value vectors write into
this space, so that the cosine of a value vector with w says what the vector adds. Under the protocol ``released``, as
in the paper's script (``transformer(ids)[0]``), x is taken after the final norm.

The model is frozen, so the features are computed once and all epochs train on the stored ones, which gives the same
result as training through the model. The weights of the last epoch are kept: the held-out texts then decide nothing,
and validation figures are those of unseen texts. Under ``released`` training is the script's in every step
(:func:`released_split`, :func:`_train_released`): it starts from the random weights of ``nn.Linear``, which a learning
rate of 1e-6 hardly moves, and keeps the epoch of the lowest validation loss, which makes its validation figures too
good.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xgray.config import Probe, Switch
from xgray.errors import InputError
from xgray.mechanism.metrics_file import CalibrationBin, ProbeValidation
from xgray.mechanism.neurons import transformer_layers
from xgray.models.batches import by_length, padded
from xgray.models.load import context_length
from xgray.stats.auc import BoolArray, auc_against_labels
from xgray.stats.bootstrap import FloatArray, draw_seed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FeatureArray = npt.NDArray[np.float32]

LEARNING_RATES = {"corrected": 1e-4, "released": 1e-6}
"""Default learning rate of each protocol: the paper's text says 1e-4, its script 1e-6."""
NUM_BINS = 10
"""Number of equally wide bins of predicted probabilities, for the calibration error."""

Labelled = tuple[FeatureArray, BoolArray]
"""Features of texts, ``(num_texts, hidden_size)``, and whether each text is toxic, ``(num_texts,)``."""


@dataclass(frozen=True)
class Trained:
    """A trained probe and the course of its training."""

    w: FeatureArray
    """The weights after the kept epoch, ``(hidden_size,)``."""
    epoch: int
    """The kept epoch, counted from 1."""
    losses: list[float]
    """Training loss of each epoch, in nats: the mean over texts, each before the step that it belongs to. Under
    ``released`` it is the mean over batches."""
    validation_losses: list[float]
    """Loss on the held-out texts after each epoch, in nats: the mean over texts, under ``released`` over batches."""


def learning_rate(section: Probe) -> float:
    """Return the section's learning rate, or that of its protocol."""
    return section.learning_rate or LEARNING_RATES[section.protocol]


def text_features(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_tokens: int,
    batch_size: int,
    protocol: Switch = "corrected",
) -> tuple[FeatureArray, BoolArray]:
    """Compute the feature of each text. Texts of similar length share a batch.

    Args:
        max_tokens: longer texts are cut after this many tokens, or at the model's context if that is shorter.
        batch_size: texts in one forward pass.
        protocol: ``corrected`` takes features before the model's final norm, ``released`` after it.

    Returns:
        The features, ``(num_texts, hidden_size)``, and whether each text was cut, ``(num_texts,)``.

    Raises:
        InputError: a text has no tokens, or its features are not finite.
    """
    from xgray.models.inference import inference

    limit = min(max_tokens, context_length(model.config))
    tokens = tokenizer(list(texts), verbose=False)["input_ids"]
    if [] in tokens:
        raise InputError(f"a text has no tokens in this model's vocabulary: {texts[tokens.index([])][:40]!r}")
    kept = [ids[:limit] for ids in tokens]
    features = np.empty((len(texts), model.config.get_text_config().hidden_size), np.float32)
    with inference():
        for rows in by_length(kept, batch_size):
            # Padding is on the right, where no token of a causal model attends to it.
            inputs, mask = padded([kept[row] for row in rows], model.device)
            features[rows] = mean_residual(model, inputs, mask, protocol).cpu().numpy()
    if not np.isfinite(features).all():
        raise InputError(f"the residual stream overflows in {model.dtype}. Set probe.dtype to bfloat16 or float32.")
    return features, np.array([len(ids) > limit for ids in tokens])


def mean_residual(
    model: PreTrainedModel, inputs: torch.Tensor, mask: torch.Tensor, protocol: Switch = "corrected"
) -> torch.Tensor:
    """Return the mean of the residual stream over the tokens of each row.

    Args:
        inputs: token ids, ``(batch, seq)``, padded on the right.
        mask: 1 for tokens, 0 for padding, ``(batch, seq)``.
        protocol: ``corrected`` takes the last layer's output, ``released`` the final norm's.

    Returns:
        ``(batch, hidden_size)`` in float32.
    """
    weights = mask.unsqueeze(-1).float()
    if protocol == "released":
        states = model.base_model(input_ids=inputs, attention_mask=mask, use_cache=False).last_hidden_state
    else:
        states = _last_layer_output(model, inputs, mask)
    return (states.float() * weights).sum(1) / weights.sum(1)


def _last_layer_output(model: PreTrainedModel, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the last layer's output before the model's final norm, ``(batch, seq, hidden_size)``."""
    outputs: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, arguments: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handle = transformer_layers(model)[-1].register_forward_hook(keep)
    try:
        model.base_model(input_ids=inputs, attention_mask=mask, use_cache=False)
    finally:
        handle.remove()
    return outputs[0]


def epochs(num_texts: int, section: Probe, seed: int) -> Iterator[list[npt.NDArray[np.int64]]]:
    """Yield the batches of each epoch: positions of texts, in a random order that depends on the seed."""
    rng = np.random.default_rng(draw_seed(seed, "probe"))
    for _ in range(section.epochs):
        order = rng.permutation(num_texts)
        yield [order[start : start + section.batch_size] for start in range(0, num_texts, section.batch_size)]


def initial_weights(hidden_size: int, seed: int) -> FeatureArray:
    """Return the weights from which the protocol ``released`` starts, drawn as ``nn.Linear`` draws them.

    They are uniform between plus and minus ``1 / sqrt(hidden_size)``. The paper's script draws them before it sets its
    seed.
    """
    import torch

    drawn = int(np.random.default_rng(draw_seed(seed, "probe")).integers(2**62))
    generator = torch.Generator().manual_seed(drawn)
    weights = torch.empty(1, hidden_size)
    torch.nn.init.kaiming_uniform_(weights, a=5**0.5, generator=generator)
    return weights[0].numpy()


def released_split(num_texts: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the positions of the texts to train on and of those held out, each in the order of the paper's script.

    It is torch's ``random_split`` after ``manual_seed``: not stratified, and equal texts may be on both sides.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order = torch.randperm(num_texts).tolist()
    num_fit = int((1 - share) * num_texts)
    return order[:num_fit], order[num_fit:]


def train_probe(fit: Labelled, held_out: Labelled, section: Probe, seed: int) -> Trained:
    """Train the probe with Adam (Kingma & Ba 2015) on the binary cross-entropy.

    Under ``corrected`` training starts from ``w = 0``. Under ``released`` it starts from :func:`initial_weights` and
    goes as in the paper's script.

    Args:
        fit: the texts to train on. Under ``released`` their order decides the batches.
        held_out: the validation texts. Under ``released`` their loss decides which epoch is kept.
        section: batch size, number of epochs, protocol and learning rate.
        seed: of the order of the texts, and of the first weights.
    """
    if section.protocol == "released":
        return _train_released(fit, held_out, section, seed)
    import torch
    import torch.nn.functional as F

    (inputs, labels), (held_out_inputs, held_out_labels) = (
        (torch.from_numpy(features), torch.from_numpy(toxic.astype(np.float32))) for features, toxic in (fit, held_out)
    )
    w = torch.zeros(inputs.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=learning_rate(section))
    losses: list[float] = []
    validation_losses: list[float] = []
    for batches in epochs(len(inputs), section, seed):
        total = 0.0
        for rows in batches:
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(inputs[rows] @ w, labels[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        losses.append(total / len(inputs))
        validation_losses.append(
            F.binary_cross_entropy_with_logits(held_out_inputs @ w.detach(), held_out_labels).item()
        )
    return Trained(w.detach().numpy(), len(losses), losses, validation_losses)


def _train_released(fit: Labelled, held_out: Labelled, section: Probe, seed: int) -> Trained:
    """Train as the paper's script does: its data loaders, and its losses, which are means over batches.

    The loaders draw from torch's generator, in the state that the script's split leaves behind.
    """
    import torch
    from torch.utils.data import DataLoader

    (inputs, labels), (held_out_inputs, held_out_labels) = (
        (torch.from_numpy(features), torch.from_numpy(toxic.astype(np.float32))) for features, toxic in (fit, held_out)
    )
    w = torch.from_numpy(initial_weights(inputs.shape[1], seed)).requires_grad_()
    optimizer = torch.optim.Adam([w], lr=learning_rate(section))
    criterion = torch.nn.BCELoss()
    losses: list[float] = []
    validation_losses: list[float] = []
    kept, epoch = w.detach().clone(), 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.randperm(len(inputs) + len(held_out_inputs))  # what the split draws
        fit_loader: DataLoader[int] = DataLoader(
            range(len(inputs)),
            section.batch_size,
            shuffle=True,
            collate_fn=list,
        )
        held_out_loader: DataLoader[int] = DataLoader(
            range(len(held_out_inputs)),
            section.batch_size,
            collate_fn=list,
        )
        for _ in range(section.epochs):
            batch_losses = []
            for rows in fit_loader:
                optimizer.zero_grad()
                loss = criterion(torch.sigmoid(inputs[rows] @ w), labels[rows])
                loss.backward()
                optimizer.step()
                batch_losses.append(loss.item())
            losses.append(float(np.mean(batch_losses)))
            with torch.no_grad():
                probabilities = torch.sigmoid(held_out_inputs @ w)
            validation_loss = float(
                np.mean([criterion(probabilities[rows], held_out_labels[rows]).item() for rows in held_out_loader])
            )
            if validation_loss < min(validation_losses, default=float("inf")):
                kept, epoch = w.detach().clone(), len(losses)
            validation_losses.append(validation_loss)
    return Trained(kept.numpy(), epoch, losses, validation_losses)


def read_probe_file(path: str) -> FeatureArray:
    """Read a probe's direction, ``(hidden_size,)``, from a user's file; no code in it is run.

    Args:
        path: a ``.npy`` or ``.safetensors`` file of one array, or a file of ``torch.save``: a tensor, a ``state_dict``
            or a whole ``nn.Linear``, as the paper's ``english-probe.pt``.

    Raises:
        InputError: the file cannot be read, or it holds something else than one row of numbers.
    """
    from xgray.storage.pickled import read_pickled

    file = Path(path).expanduser()
    try:
        if file.suffix == ".npy":
            content: Any = np.load(file, allow_pickle=False)
        elif file.suffix == ".safetensors":
            content = _safetensors_arrays(file.read_bytes())
        else:
            content = read_pickled(file)
    except OSError as error:
        raise InputError(f"{file}: cannot read the probe: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{file}: no {file.suffix} file, or a damaged one: {error}. Copy it again.") from None
    if isinstance(content, dict):
        content = content.get("_parameters", content)
        content = content.get("weight", content.get("w", content))
    if isinstance(content, dict) and len(content) == 1:
        (content,) = content.values()
    w = np.asarray(content if isinstance(content, np.ndarray) else [], np.float32).reshape(-1)
    shape = getattr(content, "shape", ())
    if not len(w) or max(shape) != w.size:
        raise InputError(
            f"{file}: a probe is one row of numbers, but the file holds {_described(content)}. Save the weights "
            "alone: numpy.save(FILE, weight)."
        )
    return w


def _safetensors_arrays(content: bytes) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a safetensors file, by name.

    Raises:
        ValueError: the content is no such file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(content)
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _described(content: Any) -> str:
    if isinstance(content, np.ndarray):
        return f"an array of the shape {content.shape}"
    if isinstance(content, dict):
        return f"a mapping of {', '.join(map(str, content)) or 'nothing'}"
    return f"a {type(content).__name__}"


def logits(features: FeatureArray, w: FeatureArray) -> FloatArray:
    """Return ``w . x`` of each text, ``(num_texts,)``: above 0 where the probe finds toxic more likely than not.

    Args:
        features: ``(num_texts, hidden_size)``.
        w: ``(hidden_size,)``.
    """
    return features.astype(np.float64) @ w.astype(np.float64)


def validation_metrics(scores: FloatArray, toxic: BoolArray) -> ProbeValidation:
    """Compute accuracy, AUC, loss and calibration of the probe on held-out texts.

    The accuracy has a 95 % Wilson interval, the AUC a 95 % score interval.

    Args:
        scores: logits, ``(num_texts,)``.
        toxic: the labels, ``(num_texts,)``.
    """
    from scipy.special import expit, log_expit
    from scipy.stats import binomtest

    num_correct = int(((scores >= 0) == toxic).sum())
    accuracy = binomtest(num_correct, len(toxic)).proportion_ci(0.95, method="wilson")
    auc = auc_against_labels(scores, toxic)
    error, bins = calibration(expit(scores), toxic)
    return {
        "num_toxic": int(toxic.sum()),
        "num_benign": int((~toxic).sum()),
        "accuracy": {"value": num_correct / len(toxic), "low": float(accuracy.low), "high": float(accuracy.high)},
        "majority": max(float(toxic.mean()), 1 - float(toxic.mean())),
        "auc": {"value": auc.value, "low": auc.low, "high": auc.high},
        "loss": float(-log_expit(np.where(toxic, scores, -scores)).mean()),
        "calibration_error": error,
        "bins": bins,
    }


def calibration(probabilities: FloatArray, toxic: BoolArray) -> tuple[float, list[CalibrationBin]]:
    """Compute the expected calibration error (Naeini et al. 2015) over bins of equal width.

    It is the mean over texts of the distance between their bin's mean probability and its share of toxic texts.

    Args:
        probabilities: predicted probabilities of toxic, ``(num_texts,)``.
        toxic: the labels, ``(num_texts,)``.

    Returns:
        The error, in [0, 1], and the bins that have texts.
    """
    bin_of = np.minimum((probabilities * NUM_BINS).astype(int), NUM_BINS - 1)
    bins: list[CalibrationBin] = []
    for index in range(NUM_BINS):
        in_bin = bin_of == index
        if in_bin.any():
            bins.append(
                {
                    "low": index / NUM_BINS,
                    "high": (index + 1) / NUM_BINS,
                    "num_texts": int(in_bin.sum()),
                    "mean_probability": float(probabilities[in_bin].mean()),
                    "share_toxic": float(toxic[in_bin].mean()),
                }
            )
    gaps = [entry["num_texts"] * abs(entry["mean_probability"] - entry["share_toxic"]) for entry in bins]
    return sum(gaps) / len(toxic), bins
