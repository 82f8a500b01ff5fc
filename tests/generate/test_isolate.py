"""A prompt that no engine can continue is told apart from an engine that is broken."""

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


def isolated(given):
    engines = [build_engine("dummy", WEIGHTS, given)]

    def engine(anew):
        if anew:
            engines.append(build_engine("dummy", WEIGHTS, given))
        return engines[-1]

    return complete_isolated(engine, PROMPTS, "base", None, 7), len(engines)


def test_poisoned_prompt_is_recorded_and_the_others_are_as_ever():
    expected = complete(build_engine("dummy", WEIGHTS, section()), PROMPTS, "base", None, 7)
    rows, _ = isolated(section(raises_on="poison"))
    assert [rows[0], rows[2]] == [expected[0], expected[2]]
    assert (rows[1].prompt_id, rows[1].completions, rows[1].token_counts) == ("en/1", [], [])
    assert rows[1].error == "RuntimeError the dummy engine raises on this text"


def test_sound_engine_is_not_started_again():
    assert isolated(section())[1] == 1


def test_broken_engine_is_no_prompts_fault():
    with pytest.raises(RuntimeError, match="raises on this text"):
        isolated(section(raises_on=PROBE[1]))


def test_real_engine_refuses_a_prompt_without_tokens(tiny_model):
    """An empty prompt gives transformers nothing to continue: a real failure, and the engine goes on after it."""
    given = Generate.model_validate({"k": 2, "max_new_tokens": 4, "execution": {"engine": "transformers"}})
    weights = Weights(tiny_model, None, "float32")
    prompts = [PROMPTS[0], Prompt("en/9", "en", ""), PROMPTS[2]]
    engines = {}

    def engine(anew):
        if anew or not engines:
            engines["now"] = build_engine("transformers", weights, given)
        return engines["now"]

    rows = complete_isolated(engine, prompts, "base", None, 7)
    assert [rows[0], rows[2]] == complete(engine(False), [prompts[0], prompts[2]], "base", None, 7)
    assert rows[1].completions == []
    assert rows[1].error
