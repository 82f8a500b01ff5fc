"""The actor that samples blocks of prompts with one engine.

    a thread for each call:  read prompts ─▶ wait ──────────────────────────▶ commit rows, report
                                              │                              ▲
    the engine's thread:                      └▶ open ─▶ finish the one before ─▶ finish

An open block has its prompts in the engine: their completions begin in the steps in which the last completions of the
block before it end, so that the steps stay full. A block is written while the next one is sampled.
"""

from __future__ import annotations

import gc
import logging
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from xgray.distributed.actors import Item, PipelineModel, PipelineSettings, decode_item, encode_item
from xgray.distributed.crash_ledger import MAX_DEATHS, CrashLedgerClient
from xgray.distributed.devices import check_gpus
from xgray.distributed.failures import Failure
from xgray.distributed.keys import take_keys
from xgray.distributed.metrics import BlockReport, count_block
from xgray.errors import StageError, XgrayError
from xgray.generate.build import build_engine
from xgray.generate.engine import Engine, Weights, begin_completions
from xgray.generate.isolate import PROBE, complete_isolated, failed_completions
from xgray.mechanism.neurons import Edit
from xgray.models.load import device_name
from xgray.rows import Completions, Prompt, from_table, to_table
from xgray.runs.blocks import UnsampledBlock, UnscoredBlock, block_file_name
from xgray.runs.prompts import PromptFile

if TYPE_CHECKING:
    from xgray.distributed.actors import Batch

log = logging.getLogger(__name__)

MAX_OPEN = 2
"""Blocks that one engine samples at the same time."""

MAX_DEATHS_WHOLE = 1
"""Deaths of the engine's process with a block, after which its prompts are sampled one by one.

The first death may be the fault of the block beside it, or of no prompt: on the second try the block is alone."""

MAX_DEATHS_WITH_PROMPT = 2
"""Deaths of the engine's process with a single prompt, after which the prompt is recorded as failed."""


@dataclass(frozen=True)
class Sampled:
    """The rows of a block."""

    rows: list[Completions]
    start_seconds: float
    """Seconds that the engine took to start for this block; 0 where it ran already."""
    began: float
    """When the engine was ready for the block, in seconds since the epoch."""
    seconds: float
    """Since then."""
    is_committed: bool
    """Whether an earlier process has committed the rows."""


@dataclass
class Block:
    """A block on its way through the engine."""

    model: PipelineModel
    name: str
    """Of its file."""
    prompts: list[Prompt]
    sampled: Future[Sampled] = field(default_factory=Future)
    num_deaths: int = 0
    start_seconds: float = 0.0
    began: float = 0.0
    clock: float = 0.0
    waiting: Callable[[], list[Completions]] | None = None
    """Waits for the rows; None where the prompts are not in the engine."""

    @property
    def work(self) -> str:
        """The block's name in the crash ledger."""
        return f"generate/{self.model.model}/{self.name}"

    def end(self, rows: list[Completions], is_committed: bool = False) -> None:
        """Hand the rows to the thread that waits for them."""
        seconds = time.perf_counter() - self.clock
        self.sampled.set_result(Sampled(rows, self.start_seconds, self.began, seconds, is_committed))


class GenerateActor:
    """Samples blocks for all languages and all models, and commits their rows. Calls may be concurrent."""

    def __init__(
        self, settings: PipelineSettings, models: Mapping[str, PipelineModel], ledger: CrashLedgerClient
    ) -> None:
        take_keys()  # of the hub, for weights that come from there
        self._settings = settings
        self._prompts = PromptFile(settings.run)
        self._models = models
        self._ledger = ledger
        self._engine = EngineThread(settings, ledger)
        self._device = "none" if settings.engine == "dummy" else device_name()

    def __call__(self, batch: Batch) -> Batch:
        item = decode_item(batch)
        try:
            return encode_item(self._sample(UnsampledBlock(**item["new"])))
        except Exception as error:
            traceback.print_exc()
            return encode_item({"failure": asdict(Failure.of(error))})

    def _sample(self, block: UnsampledBlock) -> Item:
        """Sample the block's prompts and commit their rows as one file, unless an earlier process committed it."""
        model = self._models[block.model]
        skipped = set(block.sampled_ids)
        prompts = [prompt for prompt in self._prompts.read(block.start, block.stop) if prompt.prompt_id not in skipped]
        name = block_file_name(block.model, [prompt.prompt_id for prompt in prompts])
        waiting = Block(model, name, prompts)
        sampled = self._engine.sample(waiting).result()
        rows, clock = sampled.rows, time.perf_counter()
        if not sampled.is_committed:
            model.completions.write_parquet(name, to_table(rows, Completions))
        self._ledger.end(waiting.work)
        report: BlockReport = {
            "stage": "generate",
            "model": block.model,
            "num_prompts": len(rows),
            "num_completions": sum(len(row.completions) for row in rows),
            "num_tokens": sum(sum(row.token_counts) for row in rows),
            "num_errors": sum(row.error is not None for row in rows),
            "start_seconds": sampled.start_seconds,
            "began": sampled.began,
            "ended": time.time(),
            "seconds": sampled.seconds + time.perf_counter() - clock,
            "device": self._device,
            "measured": {"engine": self._settings.engine, **self._engine.facts},
        }
        count_block(self._settings.run.name, report)
        made = UnscoredBlock(block.model, name, 0, len(rows), block.scored_ids)
        return {"made": asdict(made), "parts": [report]}


class EngineThread:
    """Holds one engine, for all languages and for all models that share its base weights.

    The engine starts with the first block. When a block needs other weights, they replace the loaded ones. All calls of
    the engine come from one thread: a library that computes on several cores keeps threads for each one that calls it.
    """

    def __init__(self, settings: PipelineSettings, ledger: CrashLedgerClient) -> None:
        assert settings.engine is not None
        assert settings.generate is not None
        self.facts: dict[str, object] = {}
        """What the engine says of itself."""
        self._engine_name = settings.engine
        self._section = settings.generate
        self._seed = settings.seed
        self._ledger = ledger
        self._engine: Engine | None = None
        self._loaded: Weights | None = None
        self._edit: Edit | None = None
        self._start_seconds = 0.0
        self._new: queue.SimpleQueue[Block] = queue.SimpleQueue()
        self._open: deque[Block] = deque()
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    def sample(self, block: Block) -> Future[Sampled]:
        """Have a block sampled, after those before it; the ledger notes that it begins, and the caller that it ends."""
        self._new.put(block)
        return block.sampled

    def _run(self) -> None:
        """Finish one block after the other, and open the next before that."""
        block: Block | None = None
        while True:
            if block is None:
                block = self._next(wait=not self._open)
            if block is not None and self._may_open(block):
                self._begin(block)
                block = None
            else:
                self._finish(self._open.popleft())

    def _next(self, wait: bool) -> Block | None:
        try:
            return self._new.get(block=wait)
        except queue.Empty:
            return None

    def _may_open(self, block: Block) -> bool:
        """Return whether the block may enter the engine now: where a block of the same model is alone in it, or none.

        A block with which an engine has failed has the next one to itself.
        """
        if not self._open:
            return True
        last = self._open[-1]
        return len(self._open) < MAX_OPEN and last.model.model == block.model.model and last.waiting is not None

    def _begin(self, block: Block) -> None:
        """Open the block, unless its rows are committed."""
        try:
            self._start_seconds = 0.0
            engine = self._ready_engine(block.model)
            block.start_seconds, block.began, block.clock = self._start_seconds, time.time(), time.perf_counter()
            block.num_deaths, has_ended = self._ledger.begin(block.work)
            folder = block.model.completions
            if (block.num_deaths or has_ended) and folder.exists(block.name):
                block.end(from_table(folder.read_table(block.name), Completions), is_committed=True)
                return
        except Exception as error:
            block.sampled.set_exception(error)
            return
        self._open.append(block)
        if not block.num_deaths:
            self._enter(block, engine)

    def _enter(self, block: Block, engine: Engine) -> None:
        """Put the block's prompts into the engine."""
        model = block.model
        try:
            block.waiting = begin_completions(engine, block.prompts, model.model, model.adapter, self._seed)
        except Exception as error:
            self._lose_all(error)

    def _lose_all(self, error: Exception) -> None:
        """Note that the engine has failed, and with all blocks that are in it: each is tried again alone."""
        log.warning("the engine failed (%s: %s); its blocks are sampled again", type(error).__name__, error)
        for block in self._open:
            block.waiting = None

    def _finish(self, block: Block) -> None:
        """Have the block's rows made, and hand them or the error to the thread that waits for them."""
        try:
            has_killed = block.num_deaths > MAX_DEATHS_WHOLE
            block.end(self._sample_singly(block) if has_killed else self._sample_whole(block))
        except Exception as error:
            block.sampled.set_exception(error)

    def _sample_whole(self, block: Block) -> list[Completions]:
        if block.waiting is not None:
            try:
                return block.waiting()
            except Exception as error:
                self._lose_all(error)
        return self._sample_isolated(block.model, block.prompts)

    def _sample_isolated(self, model: PipelineModel, prompts: list[Prompt]) -> list[Completions]:
        return complete_isolated(
            lambda restart: self._ready_engine(model, restart), prompts, model.model, model.adapter, self._seed
        )

    def _sample_singly(self, block: Block) -> list[Completions]:
        """Sample one prompt at a time, because an engine's process died with the block.

        Raises:
            StageError: the process also dies with a harmless text, so that the engine is at fault and not a prompt.
        """
        rows, model = [], block.model
        for prompt in block.prompts:
            work = f"{block.work} {prompt.prompt_id}"
            num_deaths, _ = self._ledger.begin(work)
            if num_deaths >= MAX_DEATHS_WITH_PROMPT:
                cause = f"with {PROBE!r} as with {prompt.prompt_id}, so the engine is at fault"
                probe = self._begin_own_work("probe", cause)
                self._ready_engine(model).sample([PROBE], [self._seed], model.adapter)
                self._ledger.end(probe)
                reason = f"the engine's process died {num_deaths} times with this prompt alone"
                rows.append(failed_completions(prompt, model.model, reason))
            else:
                rows += self._sample_isolated(model, [prompt])
            self._ledger.end(work)
        return rows

    def _ready_engine(self, model: PipelineModel, restart: bool = False) -> Engine:
        """Return the engine with the model's weights and edit; a new one if ``restart`` is set."""
        if self._engine is None or restart or not self._has(self._engine, model.weights):
            self._engine = self._start(model.weights)
        if self._edit != model.edit:
            self._engine.edit(model.edit)
            self._edit = model.edit
        return self._engine

    def _has(self, engine: Engine, weights: Weights) -> bool:
        """Return whether the engine holds these weights, or has loaded them in place of others."""
        if self._loaded != weights and engine.reload(weights):
            self._loaded = weights
        return self._loaded == weights

    def _start(self, weights: Weights) -> Engine:
        work = self._begin_own_work("start", f"as it started with {weights.path}")
        began = time.perf_counter()
        if self._engine is not None:
            try:
                self._engine.close()
            finally:  # a broken engine may fail to close, and must not be closed a second time
                self._engine = None
            gc.collect()  # memory need not hold two engines
        if self._engine_name != "dummy":
            check_gpus()
        try:
            engine = build_engine(self._engine_name, weights, self._section)
        except XgrayError:
            raise
        except Exception as error:  # which would otherwise be taken for the fault of a prompt
            raise Failure.of(error).error() from error
        self._loaded, self._edit, self.facts = weights, None, engine.facts
        self._start_seconds += time.perf_counter() - began
        self._ledger.end(work)
        return engine

    def _begin_own_work(self, kind: str, cause: str) -> str:
        """Note work that no other actor does, and return its name in the ledger.

        Raises:
            StageError: this actor's process died with the work ``MAX_DEATHS`` times; ``cause`` says when.
        """
        import ray

        work = f"{kind} {ray.get_runtime_context().get_actor_id()}"
        num_deaths, _ = self._ledger.begin(work)
        if num_deaths >= MAX_DEATHS:
            raise StageError(f"generate: the engine's process died {num_deaths} times {cause}")
        return work
