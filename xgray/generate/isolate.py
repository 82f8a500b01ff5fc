"""A prompt that makes the engine fail every time: told apart from a broken engine, recorded, and the rest goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from xgray.errors import XgrayError
from xgray.generate.engine import Engine, complete
from xgray.rows import Completions, Prompt

log = logging.getLogger(__name__)

PROBE = "Hello"
"""A text that every engine can continue."""

Source = Callable[[bool], Engine]
"""The engine; a new one where its argument says so."""


def failed(prompt: Prompt, model: str, reason: str) -> Completions:
    """The row of a prompt that no engine could continue."""
    log.warning("%s: no completions of %s: %s", model, prompt.prompt_id, reason)
    return Completions(prompt.prompt_id, prompt.language, model, prompt.text, [], [], [], reason)


def complete_isolated(
    engine: Source, prompts: Sequence[Prompt], model: str, adapter: str | None, seed: int
) -> list[Completions]:
    """As :func:`~xgray.generate.engine.complete`; where the engine fails, each prompt by itself.

    Raises:
        XgrayError: the engine refuses the work.
        Exception: the engine's own error, where it fails on an ordinary text as well.
    """
    try:
        return complete(engine(False), prompts, model, adapter, seed)
    except XgrayError:
        raise
    except Exception as error:
        log.warning("%s: the engine failed (%s); %d prompts one by one", model, _reason(error), len(prompts))
    return [_complete_one(engine, prompt, model, adapter, seed) for prompt in prompts]


def _complete_one(engine: Source, prompt: Prompt, model: str, adapter: str | None, seed: int) -> Completions:
    # The first failure may be that of an engine which another prompt has broken, the second one is not.
    for fresh in (False, True):
        try:
            return complete(engine(fresh), [prompt], model, adapter, seed)[0]
        except XgrayError:
            raise
        except Exception as error:
            reason = _reason(error)
    engine(True).sample([PROBE], [seed], adapter)
    return failed(prompt, model, reason)


def _reason(error: Exception) -> str:
    return " ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
