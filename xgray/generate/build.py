"""From the ``generate`` section of an experiment to the engine it asks for."""

from __future__ import annotations

import importlib.util

from xgray.config import Generate
from xgray.errors import InputError
from xgray.generate.engine import Engine, EngineName, Weights


def engine_name(section: Generate) -> EngineName:
    """The engine that the section asks for; ``auto`` is vLLM where it is installed.

    Raises:
        InputError: the engine is not installed.
    """
    installed = importlib.util.find_spec("vllm") is not None
    wanted = section.execution.engine
    if wanted == "vllm" and not installed:
        raise InputError(
            "generate.execution.engine: vllm is not installed; make install EXTRA=cpu (or gpu), or take transformers"
        )
    if wanted == "auto":
        return "vllm" if installed else "transformers"
    return wanted


def build_engine(name: EngineName, weights: Weights, section: Generate) -> Engine:
    """Load the weights; this takes from seconds to minutes."""
    if name == "vllm":
        from xgray.generate.vllm_engine import VllmEngine

        return VllmEngine(weights, section)
    if name == "dummy":
        from xgray.generate.dummy_engine import DummyEngine

        return DummyEngine(section)
    from xgray.generate.transformers_engine import TransformersEngine

    return TransformersEngine(weights, section)
