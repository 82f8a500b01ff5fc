"""The experiment file: one YAML file, one experiment; every section is a stage.

The docstring below a field is its documentation, on the command line and in the docs. An ``execution`` block says how a
stage is run, not what it computes, and is not part of its fingerprint. Where a published protocol leaves something open
or is wrong, the field is a switch between ``corrected`` (the default) and ``released`` (what the paper's scripts do).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xgray.config.evaluate import Evaluate, Fluency, Report
    from xgray.config.experiment import STORE, Experiment
    from xgray.config.mechanism import (
        Activations,
        Capability,
        Greedy,
        Intervene,
        Neuron,
        Probe,
        Retrieve,
        Vectors,
    )
    from xgray.config.sampling import (
        LOADS_CLASSIFIER,
        LOADS_MODEL,
        Classifier,
        Dummy,
        Generate,
        GenerateExecution,
        Guard,
        OpenAI,
        Prompts,
        Score,
        ScoreExecution,
        Serve,
    )
    from xgray.config.scorer_training import Encoder, ScorerTraining, ScorerTrainingExecution, TextSource
    from xgray.config.section import MeasuringExecution, Model, Section, Switch, merge, validate
    from xgray.config.stages import BASE
    from xgray.config.sweep import Sweep, SweepPoint
    from xgray.config.train import Train, TrainExecution, TrainingWorkers, Variant

__all__ = [
    "BASE", "LOADS_CLASSIFIER", "LOADS_MODEL", "STORE", "Activations", "Capability", "Classifier", "Dummy", "Encoder",
    "Evaluate", "Experiment", "Fluency", "Generate", "GenerateExecution", "Greedy", "Guard", "Intervene",
    "MeasuringExecution", "Model", "Neuron", "OpenAI", "Probe", "Prompts", "Report", "Retrieve", "Score",
    "ScoreExecution", "ScorerTraining", "ScorerTrainingExecution", "Section", "Serve", "Sweep", "SweepPoint", "Switch",
    "TextSource", "Train", "TrainExecution", "TrainingWorkers", "Variant", "Vectors", "merge", "validate",
]  # fmt: skip

_MODULES = ("evaluate", "experiment", "mechanism", "sampling", "scorer_training", "section", "stages", "sweep", "train")


def __getattr__(name: str) -> Any:
    """Import the models when one of them is first used: ``xgray --help`` needs only the table of stages."""
    if name in __all__:
        for module in (import_module(f"xgray.config.{name}") for name in _MODULES):
            if hasattr(module, name):
                globals()[name] = getattr(module, name)
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
