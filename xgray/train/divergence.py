"""End a training whose loss or gradient is no number: it would never become one again."""

from __future__ import annotations

import math
from collections.abc import Mapping

from xgray.errors import DivergedError


def check_finite(step: int, values: Mapping[str, float | None], learning_rate: float, section: str = "") -> None:
    """Check what was measured of an optimizer step.

    Args:
        step: counted from 1.
        values: the loss and the like by name; None is passed over.
        learning_rate: that of the training, for the message.
        section: where its fields are in the file, such as ``train.``.

    Raises:
        DivergedError: a value is no number or infinite; names the step and the likely field.
    """
    for name, value in values.items():
        if value is None or math.isfinite(value):
            continue
        cause = f"The likely field is {section}learning_rate ({learning_rate:g}): lower it"
        if step == 1:  # nothing has been learned yet
            cause = f"No step came before, so the likely cause is the model, or {section}dtype"
        raise DivergedError(f"train: the {name} of step {step} is {value}, and the training has ended. {cause}")
