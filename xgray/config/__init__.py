"""The experiment file: one YAML file, one experiment; every section is a stage.

The docstring below a field is its documentation, on the command line and in the docs. An ``execution`` block says how a
stage is run, not what it computes, and is not part of its fingerprint. Where a published protocol leaves something open
or is wrong, the field is a switch between ``corrected`` (the default) and ``released`` (what the paper's scripts do).
"""

from xgray.config.evaluate import Evaluate, Fluency, Report
from xgray.config.experiment import STORE, Experiment
from xgray.config.mechanism import (
    MECHANISM,
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
    Classifier,
    Dummy,
    Generate,
    GenerateExecution,
    OpenAI,
    Prompts,
    Score,
    ScoreExecution,
    Serve,
)
from xgray.config.section import MeasuringExecution, Model, Section, Switch, merge, validate
from xgray.config.train import BASE, Train, TrainExecution, Variant

__all__ = [
    "BASE", "LOADS_CLASSIFIER", "MECHANISM", "STORE", "Activations", "Capability", "Classifier", "Dummy", "Evaluate",
    "Experiment", "Fluency", "Generate", "GenerateExecution", "Greedy", "Intervene", "MeasuringExecution", "Model",
    "Neuron", "OpenAI", "Probe", "Prompts", "Report", "Retrieve", "Score", "ScoreExecution", "Section", "Serve",
    "Switch", "Train", "TrainExecution", "Variant", "Vectors", "merge", "validate",
]  # fmt: skip
