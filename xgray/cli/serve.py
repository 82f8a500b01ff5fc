"""``xgray serve``: a local scorer behind Perspective's protocol."""

from __future__ import annotations

from xgray.cli.options import Arguments
from xgray.errors import InputError


def serve(*arguments: Arguments, address: str | None = None) -> None:
    """Serve a local scorer as POST /v1alpha1/comments:analyze: clients of Perspective work with another address.

    Also there: /healthz, /readyz, /metrics and the discovery document of Google's client libraries. With a key in
    XGRAY_SERVE_KEY clients must name it. It answers on this machine alone unless --serve.host says otherwise.

    Parameters
    ----------
    arguments
        Fields of the sections score and serve: --score.scorer classifier --serve.port 8080 --serve.max-replicas 4.
    address
        The Ray cluster to join; by default RAY_ADDRESS, or a local one.
    """
    from xgray.config import Score, Serve, validate
    from xgray.config.file import parse_overrides
    from xgray.distributed.serve import run_service

    values = parse_overrides(list(arguments))
    if others := [name for name in values if name not in ("score", "serve")]:
        raise InputError(f"--{others[0]}: only fields of the sections score and serve are taken here")
    section = validate(Serve, values.get("serve", {}), "options")
    run_service(validate(Score, values.get("score", {}), "options"), section, address)
