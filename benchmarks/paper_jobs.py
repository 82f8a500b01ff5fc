"""Run the paper's six experiments from end to end, each on a tiny random model of its own architecture.

    python -m benchmarks.paper_jobs [--only NAME ...] [--folder FOLDER]

Each file of ``jobs/`` is run by ``xgray run`` in a process of its own, with a local Ray, TRL, vLLM and the embedded
scorer. Options make it small, as a user would: a tiny model with a tokenizer of the kind that the real one has, the
embedded data in six languages, few steps and completions, and LoRA in place of QLoRA, which needs CUDA and is refused
without it before a stage begins (shown with one job). All else is as the file says: what is tuned and how, the
precisions, the stages.

A row for each stage says how long it took, how many rows it has, and what was checked. The exit code is 1 if a check
failed. The logs are in the folder. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LANGUAGES = ["en", "ar", "de", "hi", "ru", "zh-hans"]
"""English, and as many others as the correlation of the stage ``transfer`` needs."""
NUM_PROMPTS = 2
K = 3
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
}
"""The sizes of a tiny model: vLLM wants heads of 32 dimensions."""
RUN = {
    "OMP_NUM_THREADS": "1",  # the model is too small for several threads
    "RAY_worker_niceness": "0",
    "RAY_raylet_start_wait_time_s": "60",
    "HF_HUB_OFFLINE": "1",
}
"""The environment of a run, on a machine that may have other work."""


@dataclass(frozen=True)
class Job:
    """One of the paper's experiments."""

    kind: str
    """The model type of Hugging Face."""
    tokenizer: str
    """The kind of its tokenizer, as :func:`make_models` knows it."""
    sizes: dict[str, int]
    options: tuple[str, ...] = ()
    """What makes this file small or possible here, beside :func:`options`."""


QLORA = ("--train.method", "lora")
REFUSED = "bloom-7b1"
"""The one of the four jobs with QLoRA that is also tried as it is."""
JOBS = {
    "mgpt": Job(
        "gpt2",
        "bytes",
        {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 512},
        (
            *("--variants", json.dumps([{"name": f"dpo-seed{seed}", "train": {"seed": seed}} for seed in range(2)])),
            *("--probe.data", "embedded", "--probe.epochs", "2", "--vectors.limit", "2"),
            *("--vectors.given", "[[0, 1], [1, 5]]"),  # the file lists neurons of mGPT
        ),
    ),
    "bloom-1b7": Job("bloom", "bytes", {"hidden_size": 64, "n_layer": 2, "n_head": 2}),
    "bloom-7b1": Job("bloom", "bytes", {"hidden_size": 64, "n_layer": 2, "n_head": 2}, QLORA),
    "llama2-7b": Job("llama", "marked", SIZES, QLORA),
    "llama3-8b": Job("llama", "begun bytes", SIZES, QLORA),
    "aya-23-8b": Job("cohere", "begun bytes", SIZES, QLORA),
}


class CheckError(Exception):
    """A run lacks what it should have."""


def check(holds: object, what: str) -> None:
    """Raise a CheckError that says what does not hold."""
    if not holds:
        raise CheckError(what)


def make_models(name: str, folder: Path) -> None:
    """Write the tiny model of a job, the encoder-decoder that measures fluency, and the task of ``capability``."""
    from benchmarks.reference.harness_task import write_task
    from benchmarks.reference.tiny_models import (
        make_marked_tokenizer,
        make_model,
        make_t5,
        make_t5_tokenizer,
        make_tokenizer,
        save,
    )

    job = JOBS[name]
    if job.tokenizer == "marked":
        tokenizer = make_marked_tokenizer()
    else:
        tokenizer = make_tokenizer("<begin>", begins=job.tokenizer == "begun bytes")
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos")}
    model = make_model(job.kind, vocab_size=len(tokenizer), **job.sizes, **ids)
    save(model, tokenizer, folder / "model")
    save(make_t5(), make_t5_tokenizer(), folder / "t5")
    write_task(folder)


def options(name: str, folder: Path) -> list[str]:
    """Return the options that make a job small."""
    values = {
        "--runs": folder / "runs",
        "--model.id": folder / "model",
        "--languages": json.dumps(LANGUAGES),
        "--prompts.path": "embedded",
        "--prompts.limit": NUM_PROMPTS,
        "--train.pairs": "embedded",
        "--train.limit": 32,
        "--train.max-steps": 4,
        "--train.learning-rate": 1e-3,  # so that four steps change texts
        "--train.warmup-steps": 1,
        "--train.eval-steps": 2,
        "--generate.k": K,
        "--evaluate.diversity-tokenizer": folder / "t5",
        "--evaluate.fluency.model.id": folder / "t5",
        "--retrieve.parallel": "embedded",
    }
    if name == "bloom-7b1":  # the only one with this section
        values["--capability.tasks"] = json.dumps([str(folder / "facts.yaml")])
    return [str(part) for pair in values.items() for part in pair] + list(JOBS[name].options)


def xgray(name: str, folder: Path, extra: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a job in a process of its own; its log is added to ``run.log``."""
    command = [sys.executable, "-m", "xgray.cli", "run", str(ROOT / "jobs" / f"{name}.yaml"), "--json", *extra]
    with (folder / "run.log").open("a") as log:
        return subprocess.run(command, env=os.environ | RUN, stdout=subprocess.PIPE, stderr=log, text=True)


def last_line(folder: Path) -> str:
    """Return the last line of the log, which says why a run ended."""
    return (folder / "run.log").read_text(errors="replace").strip().splitlines()[-1]


def check_refused(name: str, folder: Path) -> str:
    """Check that a job's QLoRA is refused on a machine without a GPU, before a stage begins."""
    refused = xgray(name, folder, [*options(name, folder), "--train.method", "qlora"])
    check(refused.returncode == 2 and "qlora needs a CUDA device" in last_line(folder), "qlora was not refused")
    check(not list((folder / "runs").rglob("pending.json")), "a stage had begun")
    return "refused without CUDA, before a stage begins"


def num_changed(base: Path, tuned: Path) -> str:
    """Return how many weights of the base model are others in the tuned one."""
    from safetensors.torch import load_file

    before, after = load_file(base / "model.safetensors"), load_file(tuned / "model.safetensors")
    common = before.keys() & after.keys()
    changed = sum(not before[weight].to(after[weight].dtype).equal(after[weight]) for weight in common)
    check(changed, "training changed no weight")
    return f"{changed} of {len(common)} weights changed"


class Checks:
    """What is checked of each stage of a finished run."""

    def __init__(self, folder: Path, result: dict[str, Any]) -> None:
        self.folder, self.result = folder, result
        self.run = Path(result["run"])

    def stage(self, label: str) -> str:
        """Check a stage, and return what was found."""
        name, _, model = label.partition("/")
        manifest = self.result["stages"][label]
        check(manifest is not None, "not finished")
        function: Callable[[str, dict[str, Any]], str] = getattr(self, name)
        return function(model, manifest)

    def metrics(self, label: str) -> dict[str, Any]:
        """Return the metrics of a stage inside the network."""
        found: dict[str, Any] = self.result["mechanism"][label]
        return found

    def train(self, model: str, manifest: dict[str, Any]) -> str:
        loss, section = manifest["measured"]["first_loss"], manifest["payload"]["section"]
        check(abs(loss - math.log(2)) < 2e-3, f"the first loss is {loss}, not ln 2")
        folder = self.run / "train" / model
        is_adapter = section["method"] != "full"
        check((folder / "adapter" / "adapter_config.json").is_file() == is_adapter, "the adapter is missing")
        what = f"adapter of rank {section['lora_r']}, merged" if is_adapter else "all weights"
        changed = num_changed(self.folder / "model", folder / "merged")
        return f"first loss {loss:.4f}, {section['dtype']}; {what}, {changed}"

    def generate(self, model: str, manifest: dict[str, Any]) -> str:
        measured, counts = manifest["measured"], manifest["counts"]
        check(measured["engine"] == "vllm", f"sampled by {measured['engine']}")
        check(counts["num_completions"] == len(LANGUAGES) * NUM_PROMPTS * K, f"{counts['num_completions']} completions")
        begin = measured["checkpoint"]["texts_begin_with"] or ["nothing"]
        return f"vLLM, {counts['num_completions']} completions; texts begin with {' '.join(begin)}"

    def score(self, model: str, manifest: dict[str, Any]) -> str:
        import pyarrow.parquet as pq

        rows = [
            row
            for file in self.run.glob(f"score/{model}/rows/[!.]*.parquet")
            for row in pq.read_table(file).to_pylist()
        ]
        errors = [error for row in rows for error in row["errors"]]
        check(len(errors) == len(LANGUAGES) * NUM_PROMPTS * K, f"{len(errors)} scores")
        check(set(errors) <= {None, "empty text"}, f"errors: {set(errors)}")
        return f"{errors.count(None)} scores, {errors.count('empty text')} empty completions"

    def evaluate(self, model: str, manifest: dict[str, Any]) -> str:
        models = self.result["metrics"]["models"]
        check(all(models[name]["languages"].keys() == set(LANGUAGES) for name in models), "a language is missing")
        found = models[next(iter(reversed(models)))]["average"]
        values = {name: found[name]["value"] for name in ("emt", "perplexity", "dist_2")}
        check(all(value is not None and math.isfinite(value) for value in values.values()), f"{values}")
        return ", ".join(f"{name} {value:.3g}" for name, value in values.items())

    def probe(self, model: str, manifest: dict[str, Any]) -> str:
        metrics = self.metrics("probe")
        return f"validation AUC {metrics['validation']['auc']['value']:.2f}, {len(metrics['transfer'])} languages"

    def vectors(self, model: str, manifest: dict[str, Any]) -> str:
        metrics = self.metrics("vectors")
        check(metrics["sources"], "no sources")
        given = metrics["given"]["sources"]["num_common"]
        num_given = metrics["given"]["num_given"]
        return f"{len(metrics['vectors'])} vectors, {len(metrics['sources'])} sources, {given} of the {num_given} given"

    def activations(self, model: str, manifest: dict[str, Any]) -> str:
        metrics = self.metrics(f"activations/{model}")
        check(metrics["languages"].keys() == set(LANGUAGES), "a language is missing")
        change = metrics.get("change", {}).get("average", {})
        return f"mean {metrics['average']['mean']['value']:.3g}" + (", with its change" if change else "")

    def intervene(self, model: str, manifest: dict[str, Any]) -> str:
        settings = self.metrics("intervene")["settings"]
        check(len(settings) == 6, f"settings: {' '.join(settings)}")
        return f"settings {' '.join(settings)}"

    def retrieve(self, model: str, manifest: dict[str, Any]) -> str:
        metrics = self.metrics("retrieve")
        check(len(metrics["languages"]) == len(LANGUAGES) - 1, "a language is missing")
        return f"{metrics['num_layers']} layers, {len(metrics['languages'])} languages"

    def transfer(self, model: str, manifest: dict[str, Any]) -> str:
        variants = self.metrics("transfer")["variants"]
        return "; ".join(textwrap.shorten(variant["statement"], 90) for variant in variants.values())

    def capability(self, model: str, manifest: dict[str, Any]) -> str:
        tasks = self.metrics(f"capability/{model}")["tasks"]
        return f"accuracy {tasks['facts']['metrics']['acc']['value']:.2f}"

    def report(self, model: str, manifest: dict[str, Any]) -> str:
        size = (self.run / "report" / "index.html").stat().st_size
        return f"{size // 1024} KiB, {manifest['counts']['num_figures']} figures"


def show(name: str, stage: str, seconds: float, rows: object, found: str) -> None:
    """Print a row of the table."""
    print(f"{name:<11}{JOBS[name].kind:<8}{stage:<22}{seconds:>8.1f}{rows:>6}  {found}", flush=True)


def run_job(name: str, folder: Path) -> bool:
    """Run a job, print its rows, and return whether all checks hold."""
    folder.mkdir(parents=True)
    make_models(name, folder)
    try:
        if name == REFUSED:
            began = time.perf_counter()
            found = check_refused(name, folder)
            show(name, "qlora", time.perf_counter() - began, "", found)
        began = time.perf_counter()
        run = xgray(name, folder, options(name, folder))
        check(run.returncode == 0, f"ended with {run.returncode}: {last_line(folder)}")
    except CheckError as error:
        show(name, "run", time.perf_counter() - began, "", f"FAILED: {error}")
        return False
    seconds, result, has_passed = time.perf_counter() - began, json.loads(run.stdout), True
    checks = Checks(folder, result)
    for label, manifest in result["stages"].items():
        try:
            found = checks.stage(label)
        except CheckError as error:
            found, has_passed = f"FAILED: {error}", False
        rows = manifest["counts"].get("num_prompts", "") if manifest else ""
        show(name, label, manifest["seconds"] if manifest else 0.0, rows, found)
    show(name, "all", seconds, "", "finished")
    return has_passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS), metavar="NAME", help=", ".join(JOBS))
    parser.add_argument("--folder", type=Path, help="for runs and logs; by default a temporary one, which stays")
    arguments = parser.parse_args()
    folder = (arguments.folder or Path(tempfile.mkdtemp(prefix="xgray-jobs-"))).resolve()
    print(
        f"runs and logs: {folder}\n\n{'job':<11}{'model':<8}{'stage':<22}{'seconds':>8}{'rows':>6}  found", flush=True
    )
    passed = [run_job(name, folder / name) for name in arguments.only]
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()
