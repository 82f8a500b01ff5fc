"""``xgray serve``: local scorers behind Perspective's protocol."""

from __future__ import annotations

from collections.abc import Sequence

from xgray.cli.fields import with_fields
from xgray.cli.options import Arguments
from xgray.errors import InputError


@with_fields("score", "serve")
def serve(*arguments: Arguments, address: str | None = None) -> None:
    """Serve local scorers as POST /v1alpha1/comments:analyze, so that clients of Perspective only change the address.

    Several are served with --score given several times: the first answers requests to the address as it is, and each
    those to ADDRESS/NAME. The embedded scorer (--score embedding, or none) serves all attributes that it measures,
    unless --score.attributes lists some. The service also answers /card (what the scorers were fitted on, and how well
    they agree with people), /healthz, /readyz, /metrics and the discovery document of Google's client libraries. If
    XGRAY_SERVE_KEY is set, clients must send that key. Without --serve.host only this machine is served.

    xgray scorer replay shows how the answers differ from Perspective's, before you switch.

    Parameters
    ----------
    arguments
        None are needed. The options below are fields of the sections score and serve; fields of score change all
        scorers.
    address
        The Ray cluster to join; by default RAY_ADDRESS, or a local one.
    """
    from xgray.config import Serve, validate
    from xgray.config.file import parse_overrides, split
    from xgray.distributed.serve import run_service
    from xgray.score.served import named_scorers

    paths, options = split(arguments)
    if paths:
        raise InputError(f"{paths[0]}: xgray serve takes options alone; a scorer is named by --score {paths[0]}")
    names, rest = split_scorers(options)
    values = parse_overrides(rest)
    if others := [name for name in values if name not in ("score", "serve")]:
        raise InputError(f"--{others[0]}: not a field of the sections score and serve")
    sections = named_scorers(names, values.get("score", {}))
    section = validate(Serve, values.get("serve", {}), "options", "serve.")
    run_service(sections, section, address)


def split_scorers(options: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the scorers that ``--score NAME`` names, and the other options with their values."""
    names, rest, remaining = [], [], list(options)
    while remaining:
        option = remaining.pop(0)
        if option == "--score" and remaining and not remaining[0].startswith("{"):
            names.append(remaining.pop(0))
        else:
            rest.append(option)
    return names, rest
