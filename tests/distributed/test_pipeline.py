"""Prompts through a real Ray: committed by block, resumed by prompt, scored while generation goes on."""

import math

import pytest

from xgray.config import Generate, Score
from xgray.distributed.cluster import connect
from xgray.distributed.pipeline import Target, run_pipeline
from xgray.errors import InputError, StageError
from xgray.generate.engine import Weights
from xgray.rows import Completions, Prompt, Scores, from_table, schema
from xgray.storage import Folder

pytestmark = pytest.mark.slow

PROMPTS = [Prompt(f"{code}/{i}", code, f"{text} {i}") for code, text in (("en", "My"), ("de", "Der")) for i in range(6)]
GENERATE = Generate(k=2, max_new_tokens=4, execution={"engine": "transformers", "batch_size": 3})


@pytest.fixture(scope="module", autouse=True)
def ray_cluster():
    with connect():
        yield


def target(folder, tiny_model, model="base", adapter=None):
    places = Folder(str(folder)) / "generate" / model / "rows", Folder(str(folder)) / "score" / model / "rows"
    return Target(model, Weights(tiny_model, None, "float32"), adapter, *places)


def run(targets, generate=GENERATE, score=Score(), on_progress=lambda label, done, total: None):  # noqa: B008
    return run_pipeline(targets, PROMPTS, "transformers", generate, score, 0, on_progress)


def read(folder, row_type):
    return sorted(from_table(folder.read_parquet(schema(row_type)), row_type), key=lambda row: row.prompt_id)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_model, tiny_adapter):
    """Both models, with nothing going wrong."""
    folder = tmp_path_factory.mktemp("whole")
    both = [target(folder, tiny_model), target(folder, tiny_model, "dpo", tiny_adapter[0])]
    reported = []
    tallies = run(both, on_progress=lambda *report: reported.append(report))
    return folder, both, tallies, reported


def test_every_prompt_once_with_k_completions_and_a_score_each(whole):
    _, both, tallies, reported = whole
    ids = sorted(prompt.prompt_id for prompt in PROMPTS)
    for one in both:
        made, scored = read(one.completions, Completions), read(one.scores, Scores)
        assert [row.prompt_id for row in made] == [row.prompt_id for row in scored] == ids
        for completions, scores in zip(made, scored, strict=True):
            assert completions.model == scores.model == one.model
            for text, score, error in zip(completions.completions, scores.scores, scores.errors, strict=True):
                assert (score["toxicity"] is None) == (error is not None) == (not text.strip())
                assert score["insult"] is None
        assert tallies["generate", one.model].num_completions == 24
        assert reported[-1][1:] == (12, 12)
    assert (
        read(both[0].completions, Completions)[0].completions != read(both[1].completions, Completions)[0].completions
    )


def test_scores_are_the_scorers_own(whole):
    import asyncio

    from xgray.score.build import build_scorer

    _, both, _, _ = whole
    made, scored = read(both[0].completions, Completions)[0], read(both[0].scores, Scores)[0]
    alone = asyncio.run(build_scorer(Score()).score(made.completions, made.language))
    assert [one["toxicity"] for one in scored.scores] == [
        one.scores["toxicity"] if one.scores else None for one in alone
    ]


def test_missing_files_are_made_again_alike_and_nothing_else(whole, tiny_model, tmp_path):
    first = [target(tmp_path, tiny_model)]
    run(first)
    generated = sorted((tmp_path / "generate/base/rows").iterdir())
    scored = sorted((tmp_path / "score/base/rows").iterdir())
    assert len(generated) == math.ceil(len(PROMPTS) / 3)
    before = read(first[0].completions, Completions), read(first[0].scores, Scores)
    for path in (generated[0], scored[1], scored[2]):
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in [*generated[1:], scored[0], *scored[3:]]}
    tallies = run(first)
    assert (read(first[0].completions, Completions), read(first[0].scores, Scores)) == before
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert tallies["generate", "base"].num_reused == 9
    assert before[0] == read(whole[1][0].completions, Completions)


def test_stages_alone(tiny_model, tmp_path):
    one = [target(tmp_path, tiny_model)]
    assert set(run(one, score=None)) == {("generate", "base")}
    assert one[0].scores.names() == []
    assert set(run(one, generate=None)) == {("score", "base")}
    assert len(read(one[0].scores, Scores)) == len(PROMPTS)


def test_scoring_begins_before_generation_ends(whole):
    folder, _, _, _ = whole
    first_score = min(path.stat().st_mtime_ns for path in folder.glob("score/*/rows/*"))
    assert first_score < max(path.stat().st_mtime_ns for path in folder.glob("generate/*/rows/*"))


def test_damaged_file_is_named(tiny_model, tmp_path):
    one = target(tmp_path, tiny_model)
    one.completions.write_bytes("cut.parquet", b"PAR1 and no more")
    with pytest.raises(StageError, match=r"cut\.parquet is damaged"):
        run([one])


def test_workers_mistake_reaches_the_user_as_it_is(tiny_model, tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        run([target(tmp_path, tiny_model)], score=Score(labelled=str(tmp_path / "absent")))
