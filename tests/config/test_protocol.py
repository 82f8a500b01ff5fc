"""The experiment's protocol is the default of every switch; a switch that is set keeps its value."""

from pathlib import Path
from typing import Any

import pytest

from xgray.config import Experiment, Probe, Train, Variant, merge
from xgray.config.file import load_experiment
from xgray.config.protocol import switch_paths, with_protocol, without_default_switches
from xgray.report.provenance import switches
from xgray.runs.manifest import section_payload
from xgray.runs.resolved import load_run
from xgray.storage.folder import Folder

MINIMAL: dict[str, Any] = {"name": "mine", "model": {"id": "some/model"}}
INSIDE: dict[str, Any] = {"probe": {}, "vectors": {}, "activations": {}, "intervene": {}, "retrieve": {}}


def experiment(**values: Any) -> Experiment:
    return Experiment.model_validate({**MINIMAL, **values})


def test_one_word_sets_every_switch() -> None:
    for protocol in ("corrected", "released"):
        switches = experiment(protocol=protocol, **INSIDE).switches()
        assert set(switches.values()) == {protocol}
        assert {"train.tokenization", "evaluate.fluency.protocol", "probe.protocol", "score.empty_text"} < set(switches)
    below_sections = {".".join(path) for path, _ in switch_paths(Experiment)} - {"protocol"}
    assert below_sections == set(switches)


def test_a_switch_that_is_set_differs_and_is_named() -> None:
    released = experiment(
        protocol="released",
        train={"dropout": "corrected"},
        variants=[{"name": "a"}, {"name": "b", "train": {"length_filter": "corrected", "dropout": "released"}}],
        **INSIDE | {"probe": {"protocol": "corrected"}},
    )
    assert released.differing_switches() == {
        "train.dropout": "corrected",
        "probe.protocol": "corrected",
        "variants.b.train.length_filter": "corrected",
    }
    corrected = experiment(evaluate={"grouping": "released"})
    assert corrected.differing_switches() == {"evaluate.grouping": "released"}
    assert not experiment(protocol="released").differing_switches()


def test_every_scorer_of_a_list_has_the_protocols_switch() -> None:
    scorers = [{}, {"scorer": "perspective"}, {"scorer": "dummy", "empty_text": "corrected"}]
    released = experiment(protocol="released", score=scorers)
    assert [section.empty_text for section in released.scores] == ["released", "released", "corrected"]
    assert released.differing_switches() == {"score.2.empty_text": "corrected"}
    row = next(row for row in switches(released) if row.name == "score.2.empty_text")
    assert row.differs
    assert "empty completion" in row.meaning


def test_sections_that_are_off_stay_off() -> None:
    released = experiment(protocol="released", retrieve=None)
    assert [getattr(released, name) for name in (*INSIDE, "capability")] == [None] * 6


def test_sections_may_be_models() -> None:
    released = Experiment(
        **MINIMAL,
        protocol="released",
        train=Train(dropout="corrected", epochs=3),
        probe=Probe(),
        variants=[Variant(name="a")],
    )
    assert released.train == Train(
        epochs=3, dropout="corrected", tokenization="released", lora_targets="released", length_filter="released"
    )
    assert released.probe == Probe(protocol="released")


def test_the_values_of_the_file_are_not_changed() -> None:
    values = {**MINIMAL, "protocol": "released", "evaluate": {"fluency": {"kind": "none"}}}
    with_protocol(values, "released", Experiment)
    assert values["evaluate"] == {"fluency": {"kind": "none"}}


def test_switches_that_older_runs_lack_are_in_no_payload_unless_released() -> None:
    """A section's payload is part of the fingerprint by which a finished run is known."""
    whole = experiment(**INSIDE)
    lacking = {"train": ("tokenization", "dropout"), "vectors": ("protocol", "probe"), "activations": ("protocol",)}
    for name, fields in {**lacking, "intervene": ("protocol",)}.items():
        assert not set(fields) & set(section_payload(getattr(whole, name)))
    released = experiment(protocol="released", **INSIDE)
    assert section_payload(released.train)["tokenization"] == "released"


def test_another_protocol_reaches_the_switches_of_a_finished_run() -> None:
    resolved = experiment(protocol="released", train={"dropout": "corrected"}, **INSIDE).model_dump(mode="json")
    assert Experiment.model_validate(resolved).differing_switches() == {"train.dropout": "corrected"}
    again = merge(without_default_switches(resolved, Experiment), {"protocol": "corrected"})
    assert set(Experiment.model_validate(again).switches().values()) == {"corrected"}
    kept = Experiment.model_validate(without_default_switches(resolved, Experiment))
    assert kept.switches() == Experiment.model_validate(resolved).switches()


def test_neurons_may_be_a_files(tmp_path: Path) -> None:
    import pickle

    (tmp_path / "sources.pkl").write_bytes(pickle.dumps([(13, 2337), (0, 5)]))
    (tmp_path / "e.yaml").write_text(
        f"name: e\nmodel: {{id: m}}\nactivations: {{neurons: {tmp_path}/sources.pkl}}\nprobe: {{}}\n"
        f"vectors: {{given: {tmp_path}/sources.pkl}}\n"
    )
    loaded = load_experiment(tmp_path / "e.yaml")
    assert loaded.activations is not None
    assert loaded.vectors is not None
    assert loaded.activations.neurons == loaded.vectors.given == [(13, 2337), (0, 5)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_sections_of_a_run_of_an_earlier_version_ran_in_the_models_dtype(tmp_path: Path, dtype: str) -> None:
    (tmp_path / "experiment.yaml").write_text(
        f"name: e\nmodel: {{id: m, dtype: {dtype}}}\nprobe: {{}}\nretrieve: null\n"
    )
    earlier = load_run(Folder(str(tmp_path)))
    assert earlier.probe is not None
    assert (earlier.probe.dtype, earlier.retrieve) == (dtype, None)


def test_an_earlier_runs_texts_in_a_pass_are_no_tokens(tmp_path: Path) -> None:
    text = "name: e\nmodel: {id: m}\nevaluate: {execution: {num_workers: 2, batch_size: 32}}\n"
    (tmp_path / "experiment.yaml").write_text(text)
    execution = load_run(Folder(str(tmp_path))).evaluate.execution
    assert (execution.num_workers, execution.batch_tokens) == (2, 2048)
