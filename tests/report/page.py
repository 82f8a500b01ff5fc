"""Parses the report's page strictly, and finds the facts in it by element instead of by sentence."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

import pytest
from markupsafe import Markup

from xgray.report import figures
from xgray.report.build import build_report, make_sections, render, shown_in_examples
from xgray.report.examples import choose_examples
from xgray.report.files import RunFiles
from xgray.report.metrics import TOXICITY
from xgray.report.points import shown_files

VOID = {"meta", "input", "br", "link", "img", "hr"}
NOT_TEXT = {"style", "script"}


@dataclass
class Element:
    """An HTML element, or the whole page."""

    tag: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    children: list["Element | str"] = field(default_factory=list)

    @property
    def text(self):
        """The text that a reader sees, with single spaces."""
        return " ".join(" ".join(self._texts()).split())

    def _texts(self):
        for child in self.children:
            if isinstance(child, str):
                yield child
            elif child.tag not in NOT_TEXT:
                yield from child._texts()

    def all(self, tag=None, css_class=None):
        """All elements below this one with the tag and the class, in the page's order."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if tag in (None, child.tag) and css_class in (None, child.attributes.get("class")):
                    found.append(child)
                found += child.all(tag, css_class)
        return found

    def texts(self, tag=None, css_class=None):
        return [element.text for element in self.all(tag, css_class)]

    def section(self, key):
        """The section with this anchor; None where the page has none."""
        return next((element for element in self.all("section") if element.attributes.get("id") == key), None)

    @property
    def facts(self):
        """The lists of facts: values by their names. Of equal names the last one."""
        return dict(zip(self.texts("dt"), self.texts("dd"), strict=True))

    @property
    def table_rows(self):
        """The rows of all tables as lists of cell texts, with the header rows."""
        return [[cell.text for cell in row.children if isinstance(cell, Element)] for row in self.all("tr")]

    def rows_of(self, *first_cells):
        """The rows of all tables that begin with these cells."""
        return [row for row in self.table_rows if row[: len(first_cells)] == list(first_cells)]


class Parser(HTMLParser):
    """Builds the elements of a page; every element must be closed, in order."""

    def __init__(self):
        super().__init__()
        self.open = [Element("page")]

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)


def parse(html):
    parser = Parser()
    parser.feed(html)
    parser.close()
    (page,) = parser.open
    return page


def report_html(run, experiment, with_pdf=False):
    """Build the report of a run, with its figures, and return the page's HTML.

    The figures are files of SVG. Those of PDF take longer than all the rest together, so few tests ask for them.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not with_pdf:
            patch.setattr(figures, "pdf", lambda figure: b"")
        build_report(run, experiment)
    return (run / "report").read_bytes("index.html").decode()


def page_without_figures(run, experiment):
    """Return the parsed page of a run. Figures, which take most of a report's time, are left out of it."""
    files = shown_files(RunFiles(run))
    sections = make_sections(files, experiment)
    names = [*TOXICITY, *(name for section in sections for name in section.figures)]
    chosen = choose_examples(files, experiment.report.num_examples, models=shown_in_examples(files))
    return parse(render(files, experiment, dict.fromkeys(names, Markup()), chosen, sections))
