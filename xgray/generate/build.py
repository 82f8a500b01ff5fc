"""Choose and start the engine that the ``generate`` section names."""

from __future__ import annotations

import importlib.util

from xgray.config import Generate
from xgray.errors import InputError
from xgray.generate.engine import Engine, EngineName, Weights


def engine_name(section: Generate) -> EngineName:
    """Return the name of the section's engine; ``auto`` is vLLM where it is installed, otherwise transformers.

    Raises:
        InputError: the engine is not installed.
    """
    installed = importlib.util.find_spec("vllm") is not None
    name = section.execution.engine
    if name == "vllm" and not installed:
        raise InputError(
            "generate.execution.engine: vllm is not installed; install it with make install EXTRA=cpu (or gpu), or use "
            "transformers"
        )
    if name == "auto":
        return "vllm" if installed else "transformers"
    return name


def build_engine(name: EngineName, weights: Weights, section: Generate) -> Engine:
    """Start the engine, which loads its weights: this takes seconds to minutes."""
    if name == "vllm":
        from xgray.generate.vllm_engine import VllmEngine

        return VllmEngine(weights, section)
    if name == "dummy":
        from xgray.generate.dummy_engine import DummyEngine

        return DummyEngine(section)
    from xgray.generate.transformers_engine import TransformersEngine

    return TransformersEngine(weights, section)
