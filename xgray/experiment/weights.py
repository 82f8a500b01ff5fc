"""Find the weights of a model of the experiment: the base model's, a training's, or a checkpoint's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from xgray.config import BASE

if TYPE_CHECKING:
    from xgray.experiment.plan import Plan
    from xgray.generate.engine import Weights


def model_weights(
    plan: Plan, model: str, takes_adapter: Callable[[str], bool] = lambda adapter: False
) -> tuple[Weights, str | None]:
    """Return the weights to load for ``model``, and the adapter to put on them; None where there is no adapter.

    An adapter that the loader does not take is merged into the base model's weights, here and once. The merged weights
    lie in the run directory, which every node reaches. A model's training must be finished
    (:meth:`xgray.experiment.plan.Plan.require_model`).

    Args:
        takes_adapter: whether the loader takes an adapter, given the adapter's folder.

    Raises:
        InputError: the weights do not exist.
    """
    from xgray.generate.engine import Weights
    from xgray.models.check import lacks_tokenizer
    from xgray.models.source import is_adapter, path_for_workers
    from xgray.train.export import merge_adapter, merge_into

    experiment = plan.experiment
    dtype = experiment.model.dtype
    base = Weights(path_for_workers(experiment.model), experiment.model.revision, dtype)
    if training := plan.find("train", model):
        adapter, merged = training.folder / "adapter", training.folder / "merged"
        if adapter.exists("") and takes_adapter(adapter.uri):
            return base, adapter.uri
        if adapter.exists(""):
            merge_into(experiment.model, adapter.uri, merged)
        return Weights(merged.uri, None, dtype), None
    if model == BASE:
        return base, None
    checkpoint = experiment.variant(model).checkpoint_model
    path = path_for_workers(checkpoint)
    if not is_adapter(path):
        stand_in = (base.path, base.revision) if lacks_tokenizer(path) else None
        return Weights(path, checkpoint.revision, dtype, tokenizer=stand_in), None
    if takes_adapter(path):
        return base, path
    return Weights(merge_adapter(experiment.model, path, plan.run / "merged"), None, dtype), None
