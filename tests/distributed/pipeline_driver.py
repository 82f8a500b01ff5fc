"""A program that samples and scores with tiny models under a local Ray: ``pipeline_driver.py SETTINGS_JSON``."""

import json
import sys
from dataclasses import asdict

from xgray.config import Generate, Score
from xgray.distributed.actors import PipelineModel, PipelineSettings
from xgray.distributed.cluster import connect
from xgray.distributed.pipeline import run_pipeline
from xgray.errors import XgrayError
from xgray.generate.engine import Weights
from xgray.rows import Prompt
from xgray.runs.prompts import PROMPTS as FILE
from xgray.runs.prompts import encode_prompts
from xgray.storage.folder import Folder

PROMPTS = [
    Prompt(f"{language}/{index}", language, f"{text} number {index}")
    for language, text in (("en", "My neighbour is a"), ("de", "Mein Nachbar ist ein"))
    for index in range(10)
]
MODELS = ("base", "dpo", "full")


def pipeline_models(root, model, adapter, merged):
    """The base model, an adapter of it, and another whole model."""
    weights = {"base": (model, None), "dpo": (model, adapter), "full": (merged, None)}
    return [
        PipelineModel(
            name,
            Weights(path, None, "float32"),
            loaded,
            Folder(f"{root}/generate/{name}/rows"),
            Folder(f"{root}/score/{name}/rows"),
        )
        for name, (path, loaded) in weights.items()
    ]


def run(
    root,
    models,
    generate=None,
    score=None,
    on_progress=lambda label, done, total, errors=0: None,
    prompts=PROMPTS,
    names=MODELS,
):
    section = None
    if generate is not None:
        section = Generate.model_validate({"k": 2, "max_new_tokens": 8, "execution": generate})
    Folder(str(root)).write_bytes(FILE, encode_prompts(prompts, ""))
    settings = PipelineSettings(
        Folder(str(root)),
        section.execution.engine if section else None,
        section,
        None if score is None else Score.model_validate(score),
        7,
    )
    return run_pipeline(
        [target for target in pipeline_models(root, **models) if target.model in names], settings, on_progress
    )


def run_recorded(root, models, **settings):
    """Run the pipeline, and return its tallies by stage and model, and its progress."""
    progress = []
    tallies = run(str(root), models, **settings, on_progress=lambda *report: progress.append(report[:3]))
    by_name = {f"{stage}/{model}": asdict(tally) for (stage, model), tally in tallies.items()}
    return {"tallies": by_name, "progress": progress}


if __name__ == "__main__":
    try:
        with connect():
            result = run_recorded(**json.loads(sys.argv[1]))
    except XgrayError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(json.dumps(result))
