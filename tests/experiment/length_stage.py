"""A stage of its own in one file: the mean length of a model's completions, in characters."""

from xgray.report.sections import Section
from xgray.rows import Completions, from_table, schema
from xgray.runs.manifest import StageResult


def payload(plan, model):
    return {"inputs": {"completions": plan.stage("generate", model).fingerprint}}


def run(plan, planned, on_progress):
    table = plan.finished("generate", planned.model).rows.read_parquet(schema(Completions))
    texts = [text for row in from_table(table, Completions) for text in row.completions]
    on_progress(planned.label, 0, len(texts))
    planned.folder.write_json("metrics.json", {"mean_length": sum(map(len, texts)) / len(texts)})
    on_progress(planned.label, len(texts), len(texts))
    return StageResult({"num_texts": len(texts)})


def make(files, experiment):
    """The section of the report: one sentence for each model."""
    lengths = {
        model: (files.run / "lengths" / model).read_json("metrics.json")["mean_length"] for model in files.models
    }
    sentences = [f"{model}: {length:.1f} characters" for model, length in lengths.items()]
    return Section("lengths", "Lengths of completions", reason="; ".join(sentences))
