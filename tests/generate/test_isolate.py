"""A prompt that no engine can continue is distinguished from a broken engine."""

import pytest

from xgray.config import Generate
from xgray.generate.build import build_engine
from xgray.generate.engine import Weights, complete
from xgray.generate.isolate import PROBE, complete_isolated
from xgray.rows import Prompt

PROMPTS = [Prompt(f"en/{index}", "en", text) for index, text in enumerate(["It was", "a poisoned one", "The weather"])]
WEIGHTS = Weights("none", None, "float32")


def section(**dummy):
    return Generate.model_validate({"k": 2, "execution": {"engine": "dummy", "dummy": dummy}})


def complete_with_dummy(**dummy):
    """The rows, and the number of engines that were started."""
    engines = [build_engine("dummy", WEIGHTS, section(**dummy))]

    def engine(new):
        if new:
            engines.append(build_engine("dummy", WEIGHTS, section(**dummy)))
        return engines[-1]

    return complete_isolated(engine, PROMPTS, "base", None, 7), len(engines)


def test_failing_prompt_is_recorded_and_the_others_are_completed_as_usual():
    expected = complete(build_engine("dummy", WEIGHTS, section()), PROMPTS, "base", None, 7)
    rows, _ = complete_with_dummy(raises_on="poison")
    assert [rows[0], rows[2]] == [expected[0], expected[2]]
    assert (rows[1].prompt_id, rows[1].completions, rows[1].token_counts) == ("en/1", [], [])
    assert rows[1].error == "RuntimeError the dummy engine raises on this text"


def test_engine_without_failure_is_started_once():
    assert complete_with_dummy()[1] == 1


def test_engine_that_fails_on_an_ordinary_text_raises_its_error():
    with pytest.raises(RuntimeError, match="raises on this text"):
        complete_with_dummy(raises_on=PROBE[1])


def test_real_engine_that_fails_on_a_prompt_completes_the_others(tiny_model):
    """transformers fails on an empty prompt, and the engine continues to work after it."""
    generate = Generate.model_validate({"k": 2, "max_new_tokens": 4, "execution": {"engine": "transformers"}})
    weights = Weights(tiny_model, None, "float32")
    prompts = [PROMPTS[0], Prompt("en/9", "en", ""), PROMPTS[2]]
    engines = []

    def engine(new):
        if new or not engines:
            engines.append(build_engine("transformers", weights, generate))
        return engines[-1]

    rows = complete_isolated(engine, prompts, "base", None, 7)
    assert [rows[0], rows[2]] == complete(engine(False), [prompts[0], prompts[2]], "base", None, 7)
    assert rows[1].completions == []
    assert rows[1].error
