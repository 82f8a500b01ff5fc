"""The command line with one more stage: a row in the table, and the file ``length_stage.py``."""

from xgray.config import stages

ROW = stages.Stage(
    "lengths",
    version=1,
    summary="Measure how long completions are.",
    per="model",
    needs={"completions": "generate/{model}"},
    module="tests.experiment.length_stage",
    report_section="tests.experiment.length_stage",
)
stages.STAGES = (*stages.STAGES[:-1], ROW, stages.STAGES[-1])

if __name__ == "__main__":
    from xgray.cli.main import main

    main()
