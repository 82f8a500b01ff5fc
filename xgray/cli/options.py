"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

Arguments = Annotated[str, Parameter(allow_leading_hyphen=True)]
Json = Annotated[bool, Parameter("--json")]
DEFAULT_STORE = "runs/scores"
