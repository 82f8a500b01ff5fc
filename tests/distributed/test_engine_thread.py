"""Blocks that share an engine: what is sampled together, and what an engine's failure costs the others."""

import threading
from dataclasses import replace

import pytest

from xgray.config import Generate
from xgray.distributed import generate_actor
from xgray.distributed.actors import PipelineModel, PipelineSettings
from xgray.distributed.crash_ledger import CrashLedger
from xgray.distributed.generate_actor import Block, EngineThread
from xgray.generate.build import build_engine
from xgray.generate.dummy_engine import DummyEngine
from xgray.generate.engine import Weights, complete
from xgray.rows import Prompt
from xgray.storage.folder import Folder

SECTION = Generate.model_validate({"k": 2, "execution": {"engine": "dummy"}})
WEIGHTS = Weights("first", None, "float32")
SEED = 7


class SharedEngine(DummyEngine):
    """Samples all that was begun in the same step, as vLLM does: what fails there fails for all of it."""

    def __init__(self, section):
        super().__init__(section)
        self.begun, self.steps, self.reloads = {}, [], []

    def begin(self, texts, seeds, adapter):
        key = len(self.steps), *texts
        self.begun[key] = seeds

        def wait():
            self.steps.append([text for _, *texts in self.begun for text in texts])
            if any("poison" in text for text in self.steps[-1]):
                self.begun.clear()
                raise RuntimeError("a poisoned text")
            return self.sample(texts, self.begun.pop(key), adapter)

        return wait

    def reload(self, weights):
        assert not self.begun
        self.reloads.append(weights.path)
        return True


class Scene:
    """An engine's thread, and what it worked with."""

    def __init__(self, folder, monkeypatch):
        self.engines, self.ledger, self.has_all = [], CrashLedger(), threading.Event()
        self.model = PipelineModel("base", WEIGHTS, None, Folder(f"{folder}/rows"), Folder(f"{folder}/scores"))
        settings = PipelineSettings(Folder(str(folder)), "dummy", SECTION, None, SEED)
        self.thread = EngineThread(settings, self.ledger)

        def build(name, weights, section):
            self.has_all.wait()
            self.engines.append(SharedEngine(section))
            return self.engines[-1]

        monkeypatch.setattr(generate_actor, "build_engine", build)

    def block(self, *texts, model=None):
        return Block(model or self.model, f"{texts[0]}.parquet", [Prompt(text, "en", text) for text in texts])

    def sample(self, *blocks):
        """Hand in the blocks before the first is sampled, and return their rows."""
        waiting = [self.thread.sample(block) for block in blocks]
        self.has_all.set()
        return [each.result(timeout=60).rows for each in waiting]


@pytest.fixture
def scene(tmp_path, monkeypatch):
    return Scene(tmp_path, monkeypatch)


def expected(*blocks):
    engine = build_engine("dummy", WEIGHTS, SECTION)
    return [complete(engine, block.prompts, block.model.model, None, SEED) for block in blocks]


def test_the_next_block_is_in_the_engine_before_the_last_is_finished(scene):
    blocks = [scene.block(f"text {number}", f"more {number}") for number in range(6)]
    assert scene.sample(*blocks) == expected(*blocks)
    steps = scene.engines[0].steps
    assert list(map(len, steps)) == [4, 4, 4, 4, 4, 2], "two blocks of two until the last"
    assert all(scene.ledger.begin(block.work) == (1, False) for block in blocks), "the caller ends them"


def test_a_failure_is_recorded_for_its_prompt_and_not_for_the_block_beside_it(scene):
    blocks = [scene.block("first"), scene.block("poison", "second"), scene.block("third")]
    first, second, third = scene.sample(*blocks)
    assert [first, third] == expected(blocks[0], blocks[2])
    assert second[0].error == "RuntimeError a poisoned text"
    assert second[1:] == expected(blocks[1])[0][1:]


def test_a_block_that_was_in_a_dead_process_is_first_sampled_alone_and_then_prompt_by_prompt(scene):
    blocks = [scene.block("a", "b"), scene.block("c", "d"), scene.block("e", "f")]
    for block, num_deaths in zip(blocks, (0, 1, 2), strict=True):
        for _ in range(num_deaths):
            scene.ledger.begin(block.work)
    assert scene.sample(*blocks) == expected(*blocks)
    (engine,) = scene.engines
    assert ["c", "d"] in engine.steps
    assert [step for step in engine.steps if "e" in step or "f" in step] == [["e"], ["f"]]
    assert scene.ledger.begin(f"{blocks[2].work} e") == (0, True)


def test_other_weights_are_loaded_when_nothing_is_in_the_engine(scene):
    other = replace(scene.model, model="full", weights=replace(WEIGHTS, path="second"))
    blocks = [scene.block(f"text {number}", model=model) for model in (scene.model, other) for number in range(2)]
    assert scene.sample(*blocks) == expected(*blocks)
    (engine,) = scene.engines
    assert engine.reloads == ["second"]


def test_rows_that_a_dead_process_has_committed_are_not_sampled_again(scene):
    block = scene.block("a")
    scene.ledger.begin(block.work)
    rows = expected(block)[0]
    scene.model.completions.write_parquet(block.name, generate_actor.to_table(rows, type(rows[0])))
    scene.has_all.set()
    sampled = scene.thread.sample(block).result(timeout=60)
    assert sampled.is_committed
    assert sampled.rows == rows
    assert scene.engines[0].steps == []
