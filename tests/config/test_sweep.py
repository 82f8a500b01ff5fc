from typing import Any

import pytest

from xgray.config import Experiment, SweepPoint, validate
from xgray.errors import InputError


def experiment(**fields: Any) -> Experiment:
    read: Experiment = validate(Experiment, {"name": "mine", "model": {"id": "some/model"}, **fields}, "mine.yaml")
    return read


def test_each_variant_that_is_trained_is_crossed_with_the_product_of_the_lists() -> None:
    variants = [{"name": "dpo"}, {"name": "given", "checkpoint": "folder"}, {"name": "lora", "train": {"lora_r": 8}}]
    swept = experiment(variants=variants, sweep={"seed": [1, 12], "learning_rate": ["1e-5", 2e-6]})
    points = ["lr1e-05-seed1", "lr1e-05-seed12", "lr2e-06-seed1", "lr2e-06-seed12"]
    names = [variant.name for variant in swept.variants]
    assert names == [*(f"dpo-{point}" for point in points), "given", *(f"lora-{point}" for point in points)]
    section = swept.train_section(swept.variant("lora-lr2e-06-seed12"))
    assert (section.learning_rate, section.seed, section.lora_r) == (2e-6, 12, 8)
    assert swept.variant("given").checkpoint == "folder"
    assert swept.sweep_points()["lora-lr2e-06-seed12"] == SweepPoint("lora", {"learning_rate": 2e-6, "seed": 12})
    assert [name for name in names if name not in swept.sweep_points()] == ["given"]
    assert Experiment(**swept.model_dump()) == swept, "by a call of the class as well"


def test_losses_and_languages_stand_in_the_names() -> None:
    swept = experiment(sweep={"languages": ["en", ["zh-hans", "de"]], "loss": ["sigmoid", "ipo"], "beta": [0.1, 1]})
    assert len(swept.variants) == 8
    last = swept.variants[-1]
    assert last.name == "dpo-beta1.0-ipo-from-de.zh-hans"
    assert swept.sweep_points()[last.name].values == {"beta": 1.0, "loss": "ipo", "languages": ["zh-hans", "de"]}
    assert swept.train_section(swept.variants[0]).languages == ["en"]


def test_dump_holds_the_file_s_variants_and_reads_back_as_the_same_experiment() -> None:
    variants = [{"name": "a", "train": {"beta": 0.2}}, {"name": "b", "checkpoint": "folder"}]
    swept = experiment(variants=variants, sweep={"seed": [1, 2], "languages": ["de", ["en", "fr"]]})
    dumped = swept.model_dump(mode="json")
    assert [(variant["name"], variant["train"]) for variant in dumped["variants"]] == [("a", {"beta": 0.2}), ("b", {})]
    assert experiment(**dumped) == swept
    assert experiment(**dumped).sweep_points() == swept.sweep_points()


def test_without_lists_nothing_changes() -> None:
    assert experiment(sweep={}).variants == experiment().variants
    assert experiment(sweep={}).sweep_points() == experiment().sweep_points() == {}


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ({"seed": [1]}, "sweep.seed: a sweep needs two values or more, not 1"),
        ({"seed": []}, "sweep.seed: a sweep needs two values or more, not 0"),
        ({"learning_rate": [1e-5, 0.00001]}, "sweep.learning_rate: 1e-05 is listed twice"),
        ({"languages": [["en", "de"], ["de", "en"]]}, "sweep.languages: de.en is listed twice"),
        ({"languages": ["de", ["de"]]}, "sweep.languages: de is listed twice"),
        ({"learning_rate": [0, 1]}, "sweep.learning_rate.0: Input should be greater than 0"),
        ({"loss": ["sigmoid", "dpo"]}, "sweep.loss.1: Input should be 'sigmoid'"),
        ({"languages": [[], ["de"]]}, "sweep.languages"),
        ({"seed": list(range(40)), "beta": [0.01 * (1 + i) for i in range(30)]}, "sweep: 1,200 combinations"),
        ({"sed": [1, 2]}, "unknown key 'sweep.sed'; did you mean 'seed'?"),
    ],
)
def test_wrong_list_is_refused_by_its_path(sweep: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        experiment(sweep=sweep)
    assert f"mine.yaml: {expected}" in str(caught.value)


def test_field_that_a_variant_sets_too_is_refused() -> None:
    with pytest.raises(InputError, match=r"variants\.a\.train\.seed: sweep\.seed sets it too"):
        experiment(variants=[{"name": "a", "train": {"seed": 3}}], sweep={"seed": [1, 2]})


def test_names_that_the_sweep_would_give_twice_are_refused() -> None:
    with pytest.raises(InputError, match="two variants have the same name"):
        experiment(variants=[{"name": "a"}, {"name": "a-seed1", "checkpoint": "c"}], sweep={"seed": [1, 2]})
    with pytest.raises(InputError, match="two variants have the same name: a a"):
        experiment(variants=[{"name": "a"}, {"name": "a", "checkpoint": "c"}], sweep={"seed": [1, 2]})
