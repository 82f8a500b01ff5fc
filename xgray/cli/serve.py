"""``xgray serve``: a local scorer behind Perspective's protocol."""

from __future__ import annotations

from xgray.cli.fields import with_fields
from xgray.cli.options import Arguments
from xgray.errors import InputError


@with_fields("score", "serve")
def serve(*arguments: Arguments, address: str | None = None) -> None:
    """Serve a local scorer as POST /v1alpha1/comments:analyze, so that clients of Perspective only change the address.

    The embedded scorer serves all attributes that it measures, unless --score.attributes lists some. The service also
    answers /card (what the scorer was fitted on, and how well it agrees with people), /healthz, /readyz, /metrics and
    the discovery document of Google's client libraries. If XGRAY_SERVE_KEY is set, clients must send that key. Without
    --serve.host only this machine is served.

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
    from xgray.score.embedded_weights import packaged_card, uses_packaged_weights

    values = parse_overrides(list(arguments))
    if others := [name for name in values if name not in ("score", "serve")]:
        raise InputError(f"--{others[0]}: not a field of the sections score and serve")
    score: Score = validate(Score, values.get("score", {}), "options", "score.")
    if "attributes" not in values.get("score", {}) and score.scorer == "embedding" and uses_packaged_weights(score):
        score = score.model_copy(update={"attributes": packaged_card().attributes})
    section = validate(Serve, values.get("serve", {}), "options", "serve.")
    run_service(score, section, address)
