"""The documentation says what is so: fields, links, commands and options, and the notebook runs."""

import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("jobs/*.md")]
    if path.name != "CHANGELOG.md"
)


def page_id(path):
    return str(path.relative_to(ROOT))


def without_code(text):
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def test_the_page_of_fields_is_that_of_the_docstrings():
    from docs.write_configuration import PAGE, page

    assert PAGE.read_text(encoding="utf-8") == page(), "python docs/write_configuration.py writes it"


def anchors(path):
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_within_the_checkout_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def commands(page):
    """The xgray commands in a page's code blocks, one list of words each."""
    for block in re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip().startswith("xgray "):
                yield shlex.split(line.strip(), comments=True)


def known_options():
    """Every ``--section.field`` of the experiment file and of serving."""
    from xgray.config import Experiment, Serve
    from xgray.config.fields import all_fields

    fields = [*all_fields(Experiment), *all_fields(Serve, ("serve",))]
    return {"--" + ".".join(field.path).replace("_", "-") for field in fields}


@pytest.mark.parametrize("page", [page for page in PAGES if list(commands(page))], ids=page_id)
def test_commands_and_options_in_code_blocks_exist(page):
    from tests.processes import xgray

    options = known_options()
    for words in commands(page):
        names = words[1:3] if words[1] in ("scores", "scorer") else words[1:2]
        help_text = xgray(*names, "--help", cwd=ROOT).stdout
        assert "Usage" in help_text, words
        for word in words[1 + len(names) :]:
            option = word.partition("=")[0]
            if option.startswith("--"):
                assert option.replace("_", "-") in options or option in help_text, words


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    run = tmp_path / "runs" / "notebook"
    training = json.loads((run / "train" / "dpo" / "manifest.json").read_text())
    assert training["measured"]["first_loss"] == pytest.approx(0.6931, abs=2e-3), "the logarithm of 2"
    assert (run / "report" / "index.html").exists()
