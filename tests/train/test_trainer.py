"""The trainer with a tiny model in this process: its loss, reference, adapters, early stopping and resuming."""

import importlib.util
import math
import struct

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from tests.train.tiny import PAIRS, build_tiny_trainer
from xgray.config import Train
from xgray.errors import DivergedError, InputError
from xgray.models.load import load_tokenizer
from xgray.rows import PreferencePair
from xgray.storage.folder import Folder
from xgray.train.callbacks import CheckpointReport, MetricsLog
from xgray.train.flops import model_flops
from xgray.train.metrics import read_metrics
from xgray.train.pairs import prepare_pairs
from xgray.train.preference_trainer import TrainerFiles
from xgray.train.reference import ReferenceCache
from xgray.train.trackers import TrackedRun, tracker_callbacks
from xgray.train.trainer import StartingModel, build_trainer, tune_in_float32

pytestmark = pytest.mark.slow

SHORT = {"max_steps": 4, "eval_steps": 2, "warmup_steps": 1, "learning_rate": 1e-3, "validation_share": 0.2}


@pytest.fixture
def make(tiny_model, tmp_path):
    def build(name="run", pairs=PAIRS, seed=0, callbacks=(), **fields):
        section = Train(**(SHORT | fields))
        return build_tiny_trainer(tiny_model, section, tmp_path / name, pairs=pairs, seed=seed, callbacks=callbacks)

    return build


def train(trainer, checkpoint=None):
    """Train, and return the rows of ``metrics.jsonl`` about steps and validations, without times."""
    trainer.train(resume_from_checkpoint=checkpoint)
    times = ("tokens_per_second", "elapsed", "mfu", "peak_memory_bytes")
    return [
        {name: value for name, value in row.items() if not name.endswith("seconds") and name not in times}
        for row in read_metrics(metrics_of(trainer))
        if "checkpoint_seconds" not in row
    ]


def metrics_of(trainer):
    [path] = {callback.path for callback in trainer.callback_handler.callbacks if isinstance(callback, MetricsLog)}
    return path


def perturb(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def log_prob(model, prompt_ids, ids):
    """The summed log-probability of a completion, computed one position at a time."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt_ids + ids])).logits[0].double()
    positions = range(len(prompt_ids) - 1, len(prompt_ids) + len(ids) - 1)
    return sum(
        torch.log_softmax(logits[position], -1)[token].item() for position, token in zip(positions, ids, strict=True)
    )


@pytest.mark.parametrize(
    ("method", "lora_targets"), [("full", "corrected"), ("lora", "corrected"), ("lora", "released")]
)
def test_first_loss_is_ln_2(make, method, lora_targets):
    trainer = make(method=method, lora_targets=lora_targets)
    rows = train(trainer)
    assert not any(group["foreach"] for group in trainer.optimizer.param_groups), "copies all gradients on CUDA"
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert rows[-1]["eval_loss"] < math.log(2) - 0.01


def test_loss_is_the_formula_computed_by_hand(make, tiny_model):
    trainer = make(pairs=PAIRS[:4], validation_share=0, beta=0.3)
    perturb(trainer.model)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    loss = trainer.compute_loss(trainer.model, batch).item()

    reference = AutoModelForCausalLM.from_pretrained(tiny_model)
    policy = AutoModelForCausalLM.from_pretrained(tiny_model)
    perturb(policy)
    losses = []
    for row in trainer.train_dataset:
        ratios = [
            log_prob(policy, row["prompt_ids"], row[side]) - log_prob(reference, row["prompt_ids"], row[side])
            for side in ("chosen_ids", "rejected_ids")
        ]
        losses.append(math.log1p(math.exp(-0.3 * (ratios[0] - ratios[1]))))
    assert len(set(losses)) == 4
    assert loss == pytest.approx(sum(losses) / 4, abs=1e-4)


def test_swapping_chosen_and_rejected_flips_the_margin(make):
    swapped = [PreferencePair(pair.prompt, pair.rejected, pair.chosen) for pair in PAIRS]
    margins = []
    for name, pairs in (("original", PAIRS), ("swapped", swapped)):
        trainer = make(pairs=pairs, validation_share=0, name=name)
        perturb(trainer.model)
        trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset)))
        margins += trainer._metrics["eval"]["rewards/margins"]
    assert abs(margins[0]) > 1e-3
    assert margins[1] == pytest.approx(-margins[0], rel=1e-4)


@pytest.mark.parametrize(("method", "accumulation"), [("full", 1), ("lora", 3)])
def test_tokens_reference_and_losses_are_those_of_trl(make, tiny_model, tmp_path, method, accumulation):
    trainer = make(
        method=method,
        lora_dropout=0.0,
        lora_alpha=16,
        batch_size=2,
        gradient_accumulation=accumulation,
        max_grad_norm=0.3,  # some gradients are above it, and some below
        max_steps=30,
        eval_steps=100,
        validation_share=0,
    )
    arguments = DPOConfig(
        output_dir=str(tmp_path / "trl"),
        seed=0,
        data_seed=0,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=accumulation,
        max_steps=30,
        learning_rate=1e-3,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=1,
        optim="rmsprop",
        weight_decay=0.05,
        max_grad_norm=0.3,
        precompute_ref_log_probs=True,
        dataloader_drop_last=True,
        logging_steps=1,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
    )
    expected = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_model),
        args=arguments,
        train_dataset=Dataset.from_list([vars(pair) for pair in PAIRS]),
        processing_class=load_tokenizer(tiny_model),
        peft_config=LoraConfig(r=64, lora_alpha=16, target_modules="all-linear") if method == "lora" else None,
    )
    dataset = trainer.train_dataset
    for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert dataset[column] == expected.train_dataset[column]
    for index, column in enumerate(("ref_chosen_logps", "ref_rejected_logps")):
        values = [row[index] for row in dataset["reference"]]
        assert values == pytest.approx(list(expected.train_dataset[column]), abs=1e-4)
    if method == "lora":  # the same first weights
        weights = {name: value for name, value in expected.model.named_parameters() if "lora_" in name}
        with torch.no_grad():
            for name, value in trainer.model.named_parameters():
                if "lora_" in name:
                    value.copy_(weights[name])
    expected.train()
    rows = [row for row in train(trainer) if "loss" in row]
    losses, norms = [row["loss"] for row in rows], [row["grad_norm"] for row in rows]
    assert losses == pytest.approx([row["loss"] for row in expected.state.log_history if "loss" in row], abs=1e-4)
    assert min(norms) < 0.3 < max(norms)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("loss", ["robust", "kto", "orpo", "cpo", "simpo"])
def test_other_losses_fall(make, loss):
    trainer = make(loss=loss, max_steps=12, eval_steps=12, beta=2.0 if loss == "simpo" else 0.1)
    rows = train(trainer)
    is_reference_free = loss in ("orpo", "cpo", "simpo")
    assert trainer.num_reference_computed == (0 if is_reference_free else 20)  # mismatched pairs are among the 20
    losses = [row["loss"] for row in rows if "loss" in row]
    first = {"robust": math.log(2), "kto": 0.5}.get(loss, losses[0])
    assert losses[0] == pytest.approx(first, abs=1e-4)
    assert losses[-1] < 0.9 * losses[0]
    assert rows[-1]["eval_loss"] < losses[0]


def test_passes_by_tokens_change_no_number(make, monkeypatch):
    fields = {"validation_share": 0, "batch_size": 2, "gradient_accumulation": 3, "max_steps": 6}
    whole = train(make(name="whole", **fields))
    monkeypatch.setattr("xgray.train.preference_trainer.pass_tokens", lambda section: 40)
    split = train(make(name="split", **fields))
    assert [row["loss"] for row in split if "loss" in row] == pytest.approx(
        [row["loss"] for row in whole if "loss" in row], abs=1e-5
    )
    assert [row["computed_tokens"] for row in split if "loss" in row] == [
        row["computed_tokens"] for row in whole if "loss" in row
    ]


def test_trainings_with_another_seed_method_or_beta_reuse_the_reference(make):
    first = make()
    assert (first.num_reference_computed, first.num_reference_reused) == (len(PAIRS), 0)
    for name, change in (("seed", {"seed": 5}), ("lora", {"method": "lora"}), ("beta", {"beta": 0.5})):
        other = make(name=name, **change)
        assert (other.num_reference_computed, other.num_reference_reused) == (0, len(PAIRS))
    more = [*PAIRS, PreferencePair("The postman", " smiled.", " swore.")]
    assert make(name="more", pairs=more).num_reference_computed == 1


def test_numbers_depend_on_the_seed_and_not_on_whether_the_reference_was_cached(make):
    cold = train(make(method="lora", lora_dropout=0.5, name="cold"))
    warm = train(make(method="lora", lora_dropout=0.5, name="warm"))
    other = train(make(method="lora", lora_dropout=0.5, seed=1, name="other"))
    assert cold == warm
    assert [row.get("loss") for row in cold] != [row.get("loss") for row in other]


def test_a_step_says_what_it_computed_and_where_its_time_went(make):
    """All pairs are one batch, so its numbers are known without their order."""
    trainer = make(validation_share=0, batch_size=len(PAIRS), max_steps=2, eval_steps=1)
    trainer.train()
    first, checkpoint, second, _ = read_metrics(metrics_of(trainer))
    pairs = trainer.train_dataset
    counted = sum(len(pair[side]) for pair in pairs for side in ("chosen_ids", "rejected_ids"))
    prompts = sum(len(pair["prompt_ids"]) for pair in pairs)
    assert first["tokens"] == second["tokens"] == 2 * prompts + counted
    assert first["computed_tokens"] == prompts + counted
    assert first["padding_share"] == 0
    squares = sum(sum(len(pair[part]) for part in ("prompt_ids", "chosen_ids", "rejected_ids")) ** 2 for pair in pairs)
    expected = model_flops(trainer.model).total(prompts + counted, counted, squares)
    assert first["flops"] == pytest.approx(expected)
    assert 0 < second["mfu"] < 1
    phases = [second[f"{phase}_seconds"] for phase in ("data", "forward", "backward", "optimizer")]
    assert all(seconds > 0 for seconds in phases)
    assert 0.5 * second["seconds"] < sum(phases) <= second["seconds"]
    assert second["peak_memory_bytes"] >= first["peak_memory_bytes"] > 1e8
    assert first["elapsed"] + checkpoint["checkpoint_seconds"] + second["seconds"] == pytest.approx(
        second["elapsed"], abs=0.02
    )


def scalars(folder, tag):
    """The values of one tag by step, as TensorBoard shows them: a new attempt replaces what is after its beginning."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    values = []
    for file in sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime_ns):
        content, at = file.read_bytes(), 0
        while at < len(content):  # a record: length, its checksum, content, its checksum
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += length + 16
            if event.session_log.status == SessionLog.START:
                values = [(step, value) for step, value in values if step < event.step]
            values += [(event.step, value.simple_value) for value in event.summary.value if value.tag == tag]
    return values


def test_tensorboard_shows_every_step_of_a_resumed_training_once(make, tmp_path):
    stage = Folder(str(tmp_path / "train" / "dpo"))
    first = make(callbacks=tracker_callbacks(["tensorboard"], TrackedRun(stage, "0", 0)))
    train(first)
    resumed = make(name="resumed", callbacks=tracker_callbacks(["tensorboard"], TrackedRun(stage, "0", 2)))
    train(resumed, str(tmp_path / "run" / "work" / "checkpoint-2"))
    assert len(list((stage.local / "tensorboard").iterdir())) == 2
    rows = [row for row in read_metrics(metrics_of(first)) if row["step"] <= 2] + read_metrics(metrics_of(resumed))
    for tag, name in (
        ("train/loss", "loss"),
        ("train/tokens_per_second", "tokens_per_second"),
        ("eval/loss", "eval_loss"),
    ):
        expected = [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows if name in row]
        assert scalars(stage.local / "tensorboard", tag) == expected


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_writes_offline_under_the_id_of_the_training(make, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    stage = Folder(str(tmp_path / "made" / "train" / "dpo"))
    train(make(callbacks=tracker_callbacks(["wandb"], TrackedRun(stage, "0123456789abcdef", 0))))
    (folder,) = (stage.local / "wandb").glob("offline-run-*")
    content = (folder / "run-0123456789abcdef.wandb").read_bytes()
    assert all(text in content for text in (b"made/dpo", b"train/tokens_per_second", b"eval/loss"))


def tuned_parameters(trainer):
    return {name: parameter for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}


def copies(parameters):
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def share_moved(trainer, before):
    """The share of numbers in LoRA's A that differ from ``before``."""
    after = tuned_parameters(trainer)
    moved = [(after[name] != value).flatten() for name, value in before.items() if "lora_A" in name]
    return torch.cat(moved).float().mean().item()


@pytest.mark.parametrize("in_float32", [False, True])
def test_small_steps_move_a_bfloat16_adapter_only_after_its_conversion_to_float32(make, in_float32):
    trainer = make(method="lora", dtype="bfloat16", learning_rate=1e-5, lora_dropout=0)
    for parameter in tuned_parameters(trainer).values():  # as TRL does with the adapter of a 4-bit model
        parameter.data = parameter.data.to(torch.bfloat16)
    if in_float32:
        tune_in_float32(trainer.model)
    parameters = dict(trainer.model.named_parameters())
    frozen = copies({name: parameter for name, parameter in parameters.items() if not parameter.requires_grad})
    before = copies(tuned_parameters(trainer))
    rows = train(trainer)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert (share_moved(trainer, before) > 0.95) is in_float32
    after = dict(trainer.model.named_parameters())
    assert all(torch.equal(after[name], value) and value.dtype == torch.bfloat16 for name, value in frozen.items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="QLoRA needs CUDA")
def test_qlora_tunes_in_float32(make):
    trainer = make(method="qlora", dtype="bfloat16", learning_rate=1e-5, lora_dropout=0)
    assert {parameter.dtype for parameter in tuned_parameters(trainer).values()} == {torch.float32}
    before = copies(tuned_parameters(trainer))
    assert train(trainer)[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert share_moved(trainer, before) > 0.95


def test_lora_adapts_the_linear_layers_of_the_blocks_and_keeps_its_dropout(make):
    def adapted(trainer):
        modules = trainer.model.named_modules()
        return {name.split(".")[-1] for name, module in modules if isinstance(module, LoraLayer)}

    blocks = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    corrected = make(method="lora", lora_dropout=0.25)
    assert adapted(corrected) == blocks
    dropouts = {module.p for module in corrected.model.modules() if isinstance(module, torch.nn.Dropout)}
    assert dropouts == {0.25}
    released = make(method="lora", lora_targets="released", name="released")
    assert adapted(released) == blocks | {"embed_tokens", "lm_head"}


def test_released_targets_train_the_head(make):
    trainer = make(method="lora", lora_targets="released")
    trainer.train()
    weights = dict(trainer.model.named_parameters())
    [head] = [weight for name, weight in weights.items() if "lm_head.lora_B" in name]
    assert head.abs().max() > 0


def test_training_stops_when_validation_does_not_improve(make):
    rows = train(make(learning_rate=1e-12, patience=1, max_steps=20))
    assert max(row["step"] for row in rows) == 4


@pytest.mark.parametrize("stop_at", [4, 5])
def test_patience_counts_on_over_a_resume(make, stop_at):
    """Validations come at steps 2, 4, 6 and 8. The first is the best, so the third after it ends the training at 8."""
    fields = {"learning_rate": 1e-12, "patience": 3, "max_steps": 20}
    saved = {}
    steps = iter(range(1, 20))
    report = CheckpointReport(
        lambda folder, step, score, ends_training: saved.update({step: (str(folder), ends_training)}),
        is_stop_requested=lambda: next(steps) == stop_at,
        is_node_leaving=lambda: False,
        seconds_between=1e9,
    )
    first = make(name="stopped", callbacks=[report], **fields)
    assert max(row["step"] for row in train(first)) == stop_at
    assert saved.keys() == {2, stop_at}, "the best, and the last"
    folder, ends_training = saved[stop_at]
    assert not ends_training
    resumed = train(make(name="resumed", **fields), folder)
    assert resumed[-1]["step"] == 8
    assert resumed == [row for row in train(make(name="whole", **fields)) if row["step"] > stop_at]


def test_unknown_model_is_refused_by_name(tiny_model, tmp_path):
    section, tokenizer = Train(**SHORT), load_tokenizer(tiny_model)
    prepared = prepare_pairs(PAIRS, tokenizer, section, 0)
    reference = ReferenceCache.of(section, "none", str(tmp_path))
    files = TrainerFiles(reference, tmp_path / "work", tmp_path / "metrics.jsonl")
    unknown = StartingModel(str(tmp_path / "no-such-model"), None, tokenizer)
    with pytest.raises(InputError, match=r"model\.id: cannot load .*no-such-model"):
        build_trainer(unknown, section, prepared, files, 0)


def test_a_loss_that_is_no_number_ends_training_with_the_likely_field(make):
    with pytest.raises(DivergedError, match=r"of step \d is (nan|inf), .*train\.learning_rate \(1e\+30\)"):
        train(make(learning_rate=1e30, warmup_steps=0))
