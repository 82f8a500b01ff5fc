"""Tell a prompt that makes the engine fail from a broken engine, record it, and continue with the other prompts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from xgray.errors import XgrayError
from xgray.generate.engine import Engine, complete
from xgray.rows import Completions, Prompt

log = logging.getLogger(__name__)

PROBE = "Hello"
"""An ordinary text: an engine that cannot continue it is broken."""

EngineSource = Callable[[bool], Engine]
"""Returns the engine; a new one if its argument is true."""


def failed_completions(prompt: Prompt, model: str, reason: str) -> Completions:
    """Return the row of a prompt that no engine could continue."""
    log.warning("%s: no completions of %s: %s", model, prompt.prompt_id, reason)
    return Completions(prompt.prompt_id, prompt.language, model, prompt.text, [], [], [], reason)


def complete_isolated(
    engine: EngineSource, prompts: Sequence[Prompt], model: str, adapter: str | None, seed: int
) -> list[Completions]:
    """Return what :func:`~xgray.generate.engine.complete` returns, prompt by prompt where the engine fails.

    A prompt that fails with two engines while :data:`PROBE` succeeds gets a row with its error and no completions.

    Raises:
        XgrayError: the engine refuses the prompts.
        Exception: the engine's error, where it also fails on :data:`PROBE`.
    """
    try:
        return complete(engine(False), prompts, model, adapter, seed)
    except XgrayError:
        raise
    except Exception as error:
        log.warning(
            "%s: the engine failed (%s); its %d prompts are sampled one by one", model, _reason(error), len(prompts)
        )
    return [_complete_prompt(engine, prompt, model, adapter, seed) for prompt in prompts]


def _complete_prompt(engine: EngineSource, prompt: Prompt, model: str, adapter: str | None, seed: int) -> Completions:
    # The first failure may come from an engine that another prompt has broken. The second comes from a new engine.
    for new_engine in (False, True):
        try:
            return complete(engine(new_engine), [prompt], model, adapter, seed)[0]
        except XgrayError:
            raise
        except Exception as error:
            reason = _reason(error)
    engine(True).sample([PROBE], [seed], adapter)
    return failed_completions(prompt, model, reason)


def _reason(error: Exception) -> str:
    return " ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
