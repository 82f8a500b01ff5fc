"""Fluency on a real local Ray, with a tiny random model read from disk."""

import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tests.processes import descendants
from xgray.config import Evaluate, Fluency, Model
from xgray.errors import InputError
from xgray.evaluate.fluency import load_measuring_model, perplexities
from xgray.experiment.stages.evaluate import FluencyWorker, measure_fluency
from xgray.rows import Completions, to_table
from xgray.storage.folder import Folder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
SECTION = Evaluate()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([], trainers.BpeTrainer(special_tokens=["<end>"], initial_alphabet=alphabet))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=257, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return Model(id=str(folder))


def make_run(path, models=("base", "dpo"), languages=("de", "en")):
    run = Folder(str(path / "run"))
    for model in models:
        rows = [
            Completions(
                f"{code}/{at}", code, model, f"prompt {at}", [f" {model} {at}", "", " x" * at], [2] * 3, [""] * 3
            )
            for code in languages
            for at in range(1, 4)
        ]
        (run / "generate" / model / "rows").write_parquet("0.parquet", to_table(rows, Completions))
    return run


def written(run):
    table = (run / "evaluate" / "perplexity").local
    return {path.name: pq.read_table(path).to_pylist() for path in sorted(table.iterdir())}


def assert_values_of_the_plain_function(run, base):
    files = written(run)
    assert list(files) == ["base.de.parquet", "base.en.parquet", "dpo.de.parquet", "dpo.en.parquet"]
    model, tokenizer = load_measuring_model(base, "causal")
    for name, rows in files.items():
        assert [row["prompt_id"] for row in rows] == [f"{name.split('.')[1]}/{at}" for at in (1, 2, 3)]
        assert {(row["model"], row["language"]) for row in rows} == {tuple(name.split(".")[:2])}
        completions = [[f" {row['model']} {at}", "", " x" * at] for at, row in enumerate(rows, start=1)]
        expected = perplexities(model, tokenizer, [f"prompt {at}" for at in (1, 2, 3)], completions, Fluency(), 4096)
        for row, values in zip(rows, expected, strict=True):
            assert row["perplexities"][1] is values[1] is None
            assert row["perplexities"][::2] == pytest.approx(values[::2], rel=1e-5)


def test_two_workers_write_a_file_for_each_model_and_language_and_one_makes_what_is_missing(tmp_path, base):
    run, two = make_run(tmp_path), Evaluate(execution={"num_workers": 2})
    progress = []
    result = measure_fluency(run, ["base", "dpo"], two, base, lambda done, total: progress.append((done, total)))
    assert result.counts == {"num_completions": 36, "num_reused": 0}
    assert result.device == "cuda:0" if torch.cuda.is_available() else "cpu"
    assert progress == [(0, 36), (9, 36), (18, 36), (27, 36), (36, 36)]
    assert_values_of_the_plain_function(run, base)
    folder = (run / "evaluate" / "perplexity").local
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "dpo.de.parquet").unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    result = measure_fluency(run, ["base", "dpo"], SECTION, base)
    assert result.counts == {"num_completions": 36, "num_reused": 27}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    assert measure_fluency(run, ["base", "dpo"], SECTION, base).counts["num_reused"] == 36


def test_the_stage_survives_the_death_of_its_worker(tmp_path, base):
    run = make_run(tmp_path)
    killed = []

    def kill_once(done, total):
        workers = descendants(name="ray::WorkerActor")
        if done and not killed:
            killed.extend(workers)
            for worker in workers:
                worker.kill()

    result = measure_fluency(run, ["base", "dpo"], SECTION, base, kill_once)
    assert len(killed) == 1
    assert result.counts == {"num_completions": 36, "num_reused": 0}
    assert {name: len(rows) for name, rows in written(run).items()} == {
        f"{model}.{language}.parquet": 3 for model in ("base", "dpo") for language in ("de", "en")
    }


def test_a_missing_model_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        FluencyWorker(SECTION, Model(id="/nowhere/at/all"), Folder(str(tmp_path)))


def test_a_model_of_the_other_kind_is_an_input_error(tmp_path, base):
    run = make_run(tmp_path, models=["base"])
    section = Evaluate(fluency=Fluency(kind="seq2seq"))
    with pytest.raises(InputError, match=r"evaluate\.fluency\.model: cannot load .* as a seq2seq model"):
        measure_fluency(run, ["base"], section, base)


def test_fluency_off_writes_nothing(tmp_path, base):
    run = make_run(tmp_path, models=["base"])
    assert measure_fluency(run, ["base"], Evaluate(fluency=Fluency(kind="none")), base).counts == {}
    assert not run.exists("evaluate")
