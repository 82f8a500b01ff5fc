"""Count the work of an experiment, from its file, its input files and its run directory."""

from __future__ import annotations

from collections.abc import Callable

from xgray.config import Experiment, Score, Train, Variant
from xgray.config.stages import model_names, scoring_stage
from xgray.config.train import REFERENCE_FREE
from xgray.data.pairs import read_pairs
from xgray.data.prompts import read_prompts
from xgray.errors import ConflictError, InputError
from xgray.estimate.counts_mechanism import count_inside, has_begun
from xgray.estimate.lines import num_training_steps
from xgray.estimate.work import ModelWork, TrainingWork, Work
from xgray.experiment.plan import Plan, PlannedStage, make_plan, run_folder
from xgray.rows import Completions, Pairs, Scores, from_table, schema
from xgray.runs.training_progress import read_training_steps
from xgray.score.store.location import store_uri
from xgray.train.pairs import num_held_out

REFERENCE_FIELDS = {"method", "dtype", "max_length", "max_prompt_length", "tokenization", "chat_template"}
"""The fields on which a pair's reference log-probabilities depend."""


def count_work(experiment: Experiment, with_model: bool) -> Work:
    """Count the work of an experiment, and how much of it is done.

    Args:
        with_model: whether to use the model's tokenizer and its reference cache. Without them pairs are counted before
            the length filter, and no reference log-probability as cached.

    Raises:
        InputError: an input file is missing or wrong.
    """
    from xgray.score.build import scorer_inputs

    for section in experiment.scores:
        if section.scorer == "embedding":
            scorer_inputs(section)
    num_prompts = num_characters = 0
    for prompt in read_prompts(experiment.prompts, experiment.languages):
        num_prompts, num_characters = num_prompts + 1, num_characters + len(prompt.text)
    notes: list[str] = []
    plan, models = _plan(experiment, notes), model_names(experiment)
    return Work(
        num_prompts=num_prompts,
        trainings=_trainings(experiment, plan, with_model, notes),
        models={model: _sampling(experiment, plan, model, num_prompts) for model in models},
        other_scorers={
            scorer: {
                model: _sampling(experiment, plan, model, num_prompts, scorer) for model in model_names(experiment)
            }
            for scorer in experiment.scorer_names[1:]
        },
        num_perplexities=_num_perplexities(experiment, plan),
        is_evaluated=plan is not None and plan.stage("evaluate").is_finished,
        is_reported=plan is not None and plan.stage("report").is_finished,
        prompt_characters=num_characters / num_prompts,
        inside=count_inside(experiment, plan),
        notes=notes,
    )


def _plan(experiment: Experiment, notes: list[str]) -> Plan | None:
    """Return the plan of a run that has begun, or None where nothing of it can count as done."""
    run = run_folder(experiment)
    if not run.exists("experiment.yaml"):
        return None
    try:
        plan = make_plan(experiment)
    except InputError as error:  # the model is on another machine; the input files were read above
        notes.append(f"{run} exists, but how much of it is done cannot be known here: {error}")
        return None
    if conflicts := [stage.label for stage in plan.stages if _is_conflict(stage)]:
        notes.append(
            f"{run} holds {', '.join(conflicts)} of another configuration: the run will need another --name or "
            "--force, and all of it is counted"
        )
    return plan


def _is_conflict(stage: PlannedStage) -> bool:
    try:
        stage.state()
    except ConflictError:
        return True
    return False


def _trainings(
    experiment: Experiment, plan: Plan | None, with_model: bool, notes: list[str]
) -> dict[str, TrainingWork]:
    trainings: dict[str, TrainingWork] = {}
    referenced: set[object] = set()
    variants = [variant for variant in experiment.variants if variant.checkpoint is None]
    prepare = _preparing(experiment) if with_model and variants else None
    for variant in variants:
        section = experiment.train_section(variant)
        pairs = read_pairs(section.pairs, section.limit, section.languages)
        if prepare:
            num_train, num_validation, missing = prepare(section, pairs, experiment.training_seed(variant))
        else:
            num_validation = num_held_out(section, len(pairs))
            num_train = len(pairs) - num_validation
            shared = section.model_dump_json(include=REFERENCE_FIELDS)
            missing = {(shared, pair) for pair in pairs}
        if section.loss in REFERENCE_FREE:
            missing = set()
        steps = num_training_steps(section, num_train)
        trainings[variant.name] = TrainingWork(
            section, num_train, num_validation, len(missing - referenced), steps, _steps_done(plan, variant, steps),
            sum(2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in pairs) / 2 / len(pairs),
        )  # fmt: skip
        referenced |= missing
    if not with_model and any(training.num_steps > training.num_steps_done for training in trainings.values()):
        notes.append("pairs are counted before the length filter (train.max_length), and no reference as cached")
    return trainings


def _preparing(
    experiment: Experiment,
) -> Callable[[Train, Pairs, int], tuple[int, int, set[object]]]:
    """Return a function that counts training pairs and validation pairs, and gives the keys the cache lacks."""
    from xgray.models.cache import cache_folder
    from xgray.models.load import load_tokenizer
    from xgray.models.revisions import pin_revision
    from xgray.models.source import model_fingerprint, resolve
    from xgray.train.pairs import prepare_pairs
    from xgray.train.reference import ReferenceCache

    base = pin_revision(experiment.model)
    tokenizer = load_tokenizer(resolve(base), base.revision)
    fingerprint = model_fingerprint(base)

    def prepare(section: Train, pairs: Pairs, seed: int) -> tuple[int, int, set[object]]:
        prepared = prepare_pairs(pairs, tokenizer, section, seed)
        cache = ReferenceCache.of(section, fingerprint, str(cache_folder()))
        keys: set[object] = {cache.key(pair) for pair in (*prepared.train, *prepared.validation)}
        return len(prepared.train), len(prepared.validation), keys - cache.read().keys()

    return prepare


def _steps_done(plan: Plan | None, variant: Variant, num_steps: int) -> int:
    if plan is None:
        return 0
    stage = plan.stage("train", variant.name)
    if stage.is_finished:
        return num_steps
    if not has_begun(stage):
        return 0
    every = plan.experiment.train_section(variant).eval_steps
    return min(read_training_steps(stage.place)[0] // every * every, num_steps)


def _sampling(
    experiment: Experiment, plan: Plan | None, model: str, num_prompts: int, scorer: str | None = None
) -> ModelWork:
    """Count what is done of one model's prompts; ``scorer`` is another scorer than the first."""
    if plan is None:
        return ModelWork()
    generated, scored = plan.stage("generate", model), plan.stage(scoring_stage(scorer), model)
    num_generated = num_prompts if generated.is_finished else generated.rows.count_rows() if has_begun(generated) else 0
    num_scored = num_prompts if scored.is_finished else scored.rows.count_rows() if has_begun(scored) else 0
    section = experiment.score_section(scorer)
    known = _num_known(section, experiment.runs, generated, scored) if num_generated > num_scored else 0
    return ModelWork(num_generated, num_scored, known)


def _num_known(section: Score, runs: str, generated: PlannedStage, scored: PlannedStage) -> int:
    """Count completions on disk that wait for a score of Perspective and need no request for it."""
    if section.scorer != "perspective":
        return 0
    from xgray.score.perspective import perspective_id
    from xgray.score.scorer import text_to_score
    from xgray.score.store.store import ScoreStore

    present = set(scored.rows.read_parquet(schema(Scores), ["prompt_id"])["prompt_id"].to_pylist())
    rows = from_table(generated.rows.read_parquet(schema(Completions)), Completions)
    waiting = [row for row in rows if row.prompt_id not in present]
    store = ScoreStore(store_uri(section, runs))
    scorer, attributes = perspective_id(section), section.attributes
    num_requests = 0
    for language in {row.language for row in waiting}:
        texts = {
            text_to_score(text, section.empty_text)
            for row in waiting
            if row.language == language
            for text in row.completions
        }
        scorable = [text for text in texts if text is not None]
        results = store.get(scorable, language, scorer, attributes) if scorable else []
        num_requests += sum(result is None for result in results)
    return sum(len(row.completions) for row in waiting) - num_requests


def _num_perplexities(experiment: Experiment, plan: Plan | None) -> int:
    if plan is None or not has_begun(plan.stage("evaluate")):
        return 0
    from xgray.evaluate.rows import PERPLEXITY

    return (plan.stage("evaluate").folder / PERPLEXITY).count_rows() * experiment.generate.k
