from xgray.generate.seeds import prompt_seed


def test_seed_depends_on_experiment_and_prompt_alone():
    assert prompt_seed(0, "en/1") == prompt_seed(0, "en/1")
    seeds = {prompt_seed(seed, f"{language}/{i}") for seed in (0, 1) for language in ("en", "de") for i in range(100)}
    assert len(seeds) == 400


def test_seed_leaves_room_for_the_samples():
    largest = max(prompt_seed(0, f"en/{i}") for i in range(2000))
    assert 2**61 < largest < 2**62


def test_seed_and_id_cannot_be_confused():
    assert prompt_seed(1, "2/x") != prompt_seed(12, "/x")
