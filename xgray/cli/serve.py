"""``xgray serve``: a local scorer behind Perspective's protocol."""

from __future__ import annotations

from xgray.cli.fields import with_fields
from xgray.cli.options import Arguments
from xgray.errors import InputError


@with_fields("score", "serve")
def serve(*arguments: Arguments, address: str | None = None) -> None:
    """Serve a local scorer as POST /v1alpha1/comments:analyze, so that clients of Perspective only change the address.

    The service also answers /healthz, /readyz, /metrics and the discovery document of Google's client libraries. If
    XGRAY_SERVE_KEY is set, clients must send that key. Without --serve.host only this machine is served.

    Parameters
    ----------
    arguments
        None are needed. The options below are fields of the sections score and serve.
    address
        The Ray cluster to join; by default RAY_ADDRESS, or a local one.
    """
    from xgray.config import Score, Serve, validate
    from xgray.config.file import parse_overrides
    from xgray.distributed.serve import run_service

    values = parse_overrides(list(arguments))
    if others := [name for name in values if name not in ("score", "serve")]:
        raise InputError(f"--{others[0]}: not a field of the sections score and serve")
    section = validate(Serve, values.get("serve", {}), "options")
    run_service(validate(Score, values.get("score", {}), "options"), section, address)
