"""A client's connection: the errors that the HTTP library finds are answered in JSON, and logged without their content.

The library would log a request that it cannot read, and with it a key or a comment, and answer in plain text.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong, PayloadEncodingError

from xgray.serve.protocol import ApiError

log = logging.getLogger(__name__)

KEEPALIVE_SECONDS = 75.0
LINGER_SECONDS = 2.0
"""How long the rest of a refused body is read, so that the client can read why it was refused."""
MAX_LINE_BYTES = 8190
"""The greatest length of a request's first line, and of each header."""
MALFORMED = "MALFORMED_HTTP"


def wrongly_encoded() -> ApiError:
    """Return the error of a body whose chunks or compression are broken."""
    return ApiError(400, "The request's body is not encoded as its header says.", "INVALID_BODY")


class Connection(web.RequestHandler):
    """One client's connection."""

    __slots__ = ("_respond",)

    def __init__(self, server: web.Server, respond: Callable[[ApiError], web.Response], **options: Any) -> None:
        """Make a connection.

        Args:
            respond: returns the response of an error, and counts it.
            options: what else aiohttp's handler takes.
        """
        super().__init__(
            server,
            access_log=None,  # type: ignore[arg-type]  # None is no log
            keepalive_timeout=KEEPALIVE_SECONDS,
            lingering_time=LINGER_SECONDS,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            **options,
        )
        self._respond = respond

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the response to a request that cannot be read, or at which the service failed.

        Args:
            message: the library's, which repeats what the client sent; it is not used.

        Raises:
            ConnectionError: part of another response is sent already.
        """
        if isinstance(exc, LineTooLong):
            refusal = ApiError(400, f"A line of the request's head exceeds {MAX_LINE_BYTES} bytes.", MALFORMED)
        elif isinstance(exc, PayloadEncodingError):
            refusal = wrongly_encoded()
        elif isinstance(exc, HttpProcessingError):
            refusal = ApiError(400, "The request is not well-formed HTTP/1.1.", MALFORMED)
        else:
            self.log_exception(exc_info=exc)
            refusal = ApiError(500, "The service failed with this request; its log says where.")
        if request.writer.output_size > 0:
            raise ConnectionError("part of a response is sent already")
        response = self._respond(refusal)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send a response; what the library refuses before the service sees it, such as an ``Expect``, in JSON."""
        if isinstance(resp, web.HTTPException):
            resp = self._respond(ApiError(400, resp.reason, MALFORMED))
            resp.force_close()
        return await super().finish_response(request, resp, start_time)

    def log_exception(self, *_: Any, exc_info: BaseException | None = None, **__: Any) -> None:
        """Log where an error arose, without its message: it may repeat what a client sent."""
        if exc_info is not None:
            frames = "".join(traceback.format_tb(exc_info.__traceback__))
            log.error("a request failed: %s\n%s", type(exc_info).__name__, frames)
