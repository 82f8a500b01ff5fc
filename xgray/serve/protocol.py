"""The wire protocol of Google's Comment Analyzer (Perspective) API, ``v1alpha1``, as a service speaks it.

    body ──parse──▶ Request ──resolve──▶ Analysis ──scorer──▶ Scored ──answer──▶ body of a response
               └──────────────────── ApiError, with Google's error body ─────────┘

Source: https://github.com/conversationai/perspectiveapi/tree/master/2-api (``methods.md``, ``limits.md``).
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from xgray.data.archives.archived import ATTRIBUTE_NAMES
from xgray.errors import InputError
from xgray.languages import LANGUAGES
from xgray.languages import language as language_of
from xgray.rows import EMPTY_TEXT
from xgray.score.perspective import MAX_BYTES
from xgray.score.scorer import Scored

PATH = "/v1alpha1/comments:analyze"
DISCOVERY_PATH = "/$discovery/rest"
STATUSES = {
    400: "INVALID_ARGUMENT",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}
"""The HTTP statuses of errors, and Google's names for them."""
SCORE_TYPES = (None, "SCORE_TYPE_UNSPECIFIED", "PROBABILITY")
TEXT_TYPES = (None, "TEXT_TYPE_UNSPECIFIED", "PLAIN_TEXT")
MAX_NAME = 100
"""An error repeats at most so many characters of what the client sent."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Matches are never given up in part (++, *+), so that the time is linear in the length of any body.
_STRING_OR_NAME = re.compile(rb'"(?:[^"\\]|\\.)*+\\?(?:"|\Z)|\b[A-Za-z_]\w*+(?=\s*+:)', re.DOTALL)
"""A JSON string, or the name of a field that is written without quotes."""
MAX_PARTS = 1000
"""So many strings and names are looked at; a request of the protocol has fewer."""
_REGION = re.compile(r"([a-z]{2,3})[-_](?!(?:tw|hk|mo)$)(?:[a-z]{2}|\d{3})")
"""A language of a region, such as pt-br; regions that write Chinese in traditional characters are left out."""


class ApiError(Exception):
    """An answer with a status other than 200, and its body in Google's format."""

    def __init__(
        self, code: int, message: str, kind: str | None = None, details: Sequence[dict[str, Any]] = ()
    ) -> None:
        super().__init__(message)
        self.code = code
        self.kind = kind or STATUSES[code]
        """The name under which it is counted."""
        self._details = list(details)

    def body(self) -> bytes:
        """Return the response's body."""
        error = {"code": self.code, "message": str(self), "status": STATUSES[self.code]}
        return json.dumps({"error": error | ({"details": self._details} if self._details else {})}).encode()


def invalid(kind: str, message: str, **fields: Any) -> ApiError:
    """Return a 400 with one of the analyzer's kinds of error.

    Args:
        kind: Google's name for the kind, such as ``COMMENT_EMPTY``.
        fields: further fields of the error's detail.
    """
    detail = {"@type": "type.googleapis.com/google.commentanalyzer.v1alpha1.Error", "errorType": kind}
    return ApiError(400, message, kind, [detail | fields])


class _Message(BaseModel):
    """Google's JSON: names in camel or snake case, null like an absent field, no unknown fields."""

    model_config = ConfigDict(
        extra="forbid", strict=True, alias_generator=to_camel, validate_by_name=True, allow_inf_nan=False, frozen=True
    )


class _Text(_Message):
    text: str | None = None
    type: str | None = None


class _Article(_Message):
    article: _Text | None = None
    parent_comment: _Text | None = None


class _Context(_Message):
    entries: list[_Text] | None = None
    article_and_parent_comment: _Article | None = None


class _Attribute(_Message):
    score_type: str | None = None
    score_threshold: float | None = None


class _Request(_Message):
    """A request. Fields that have no effect here (context, session, community) are checked and ignored."""

    comment: _Text | None = None
    context: _Context | None = None
    requested_attributes: dict[str, _Attribute] | None = None
    span_annotations: bool | None = None
    languages: list[str] | None = Field(None, max_length=100)
    do_not_store: bool | None = None
    client_token: str | None = None
    session_id: str | None = None
    community_id: str | None = None


@dataclass(frozen=True)
class Request:
    """A request that follows the protocol; whether a scorer can answer it is not known yet."""

    text: str
    thresholds: dict[str, float]
    """The requested attributes, in lower case; lower scores are left out of the answer."""
    languages: list[str]
    """The language codes as the client spells them; empty if it names none."""
    wants_spans: bool
    client_token: str | None


@dataclass(frozen=True)
class Analysis:
    """A request that a scorer can answer."""

    request: Request
    language: str
    """A code of :data:`xgray.languages.LANGUAGES`."""
    attributes: tuple[str, ...]
    """The requested attributes that the scorer measures, in lower case."""
    is_detected: bool
    """Whether the language was identified from the text."""

    @property
    def languages(self) -> list[str]:
        """The language codes of the answer: those of the request, or else the one that takes their place."""
        return self.request.languages or [LANGUAGES[self.language].short]


def parse(body: bytes) -> Request:
    """Return the request that a body holds.

    As Google does, it takes a byte order mark and names of fields without quotes, as in Google's example for curl.

    Raises:
        ApiError: the body is not a request of the protocol.
    """
    content = body.removeprefix(BYTE_ORDER_MARK)
    try:
        request = _Request.model_validate_json(content)
    except ValidationError as error:
        quoted = _quote_names(content) if error.errors(include_url=False)[0]["type"] == "json_invalid" else content
        if quoted == content:
            raise _malformed(error) from None
        try:
            request = _Request.model_validate_json(quoted)
        except ValidationError as second_error:
            raise _malformed(second_error) from None
    text = _checked_text(request)
    requested = _checked_attributes(request)
    return Request(
        text=text,
        thresholds={name.lower(): options.score_threshold or 0.0 for name, options in requested.items()},
        languages=request.languages or [],
        wants_spans=bool(request.span_annotations),
        client_token=request.client_token,
    )


def _quote_names(content: bytes) -> bytes:
    """Put quotes around the names of fields that have none; strings stay as they are."""
    return _STRING_OR_NAME.sub(
        lambda match: match[0] if match[0][:1] == b'"' else b'"%s"' % match[0], content, count=MAX_PARTS
    )


def resolve(
    request: Request,
    attributes: Collection[str],
    languages: Collection[str],
    *,
    default_language: str | None = None,
    detected: str | None = None,
    partial: bool = False,
) -> Analysis:
    """Return how a scorer answers a request.

    Args:
        attributes: the attributes that the scorer measures, in lower case.
        languages: the codes of the languages that it scores.
        default_language: the code that takes the place of the languages if the request names none.
        detected: the code of the text's language where it was identified in place of both.
        partial: whether attributes that the scorer does not measure are left out of the answer, instead of refused.

    Raises:
        ApiError: the scorer cannot answer it; the message says what it measures.
    """
    if request.languages:
        code = _single_language(request.languages)
    else:
        code = default_language or detected
        if code is None:
            message = "Unable to detect language of the comment; name it in 'languages'."
            raise invalid("LANGUAGE_DETECTION_FAILED", message)
    asked = request.languages or [str(code)]
    if code is None or code not in languages:
        raise _unsupported(next(iter(request.thresholds)), asked, attributes, languages)
    measured = tuple(name for name in request.thresholds if name in attributes)
    missing = [name for name in request.thresholds if name not in attributes]
    if missing and not (partial and measured):
        # To the client, an attribute that the scorer does not measure is supported in no language.
        raise _unsupported(missing[0], asked, attributes, languages)
    return Analysis(request, code, measured, is_detected=not request.languages and default_language is None)


def _checked_text(request: _Request) -> str:
    """Return the text of a request's comment.

    Raises:
        ApiError: there is none, it is too long, or the context is contradictory.
    """
    comment = request.comment or _Text()
    if not comment.text:
        raise invalid("COMMENT_EMPTY", "Comment must be non-empty.")
    if comment.type not in TEXT_TYPES:
        raise invalid("INVALID_REQUEST", "Currently, only 'PLAIN_TEXT' comments are supported")
    if (size := len(comment.text.encode())) > MAX_BYTES:
        message = f"Comment text was too many bytes. Value ({size}) exceeded limit ({MAX_BYTES})."
        raise invalid("COMMENT_TOO_LONG", message)
    if (context := request.context) and context.entries and context.article_and_parent_comment:
        message = "Context can have either entries or article_and_parent_comment, but both fields were populated."
        raise invalid("INVALID_REQUEST", message)
    return comment.text


def _checked_attributes(request: _Request) -> dict[str, _Attribute]:
    """Return the requested attributes, whose names are in upper case.

    Raises:
        ApiError: there are none, or Perspective never had one of that name.
    """
    requested = request.requested_attributes or {}
    if not requested:
        raise invalid("NO_REQUESTED_ATTRIBUTES", "Missing requested_attributes")
    for name, options in requested.items():
        if name != name.upper() or not (name.lower() in ATTRIBUTE_NAMES or name.endswith("_EXPERIMENTAL")):
            raise invalid("INVALID_REQUEST", f"Unknown requested attribute: {name[:MAX_NAME]}")
        if options.score_type not in SCORE_TYPES:
            message = f"Requested score type {options.score_type[:MAX_NAME]} is not supported by attribute {name}"
            raise invalid("INVALID_REQUEST", message)
    return requested


def answer(analysis: Analysis, scored: Scored) -> bytes:
    """Return the body of a successful response. Floats keep every digit.

    Raises:
        ApiError: the scorer has no score for the text.
    """
    if scored.scores is None:
        if scored.error == EMPTY_TEXT:
            raise invalid("COMMENT_EMPTY", "Comment must be non-empty.")
        if scored.is_permanent:
            raise invalid("INVALID_REQUEST", f"The comment has no score: {scored.error}")
        raise ApiError(503, f"The comment has no score now: {scored.error}")
    request = analysis.request
    scores = {}
    for name in analysis.attributes:
        value = scored.scores[name]
        if value is None:
            raise ApiError(503, f"The comment has no score now for {name.upper()}")
        if value >= request.thresholds[name]:
            score = {"value": value, "type": "PROBABILITY"}
            scores[name.upper()] = _spans(request.text, score) if request.wants_spans else {"summaryScore": score}
    body: dict[str, Any] = {"attributeScores": scores} if scores else {}
    body["languages"] = analysis.languages
    if analysis.is_detected:
        body["detectedLanguages"] = analysis.languages
    if request.client_token is not None:
        body["clientToken"] = request.client_token
    return json.dumps(body).encode()


def _spans(text: str, score: dict[str, Any]) -> dict[str, Any]:
    """Return a score with its spans: one, the whole text, as the scorer reads a text as a whole."""
    return {"spanScores": [{"begin": 0, "end": len(text), "score": score}], "summaryScore": score}


def check_key(expected: str, given: Sequence[str]) -> None:
    """Check a request's key.

    Args:
        expected: the service's key.
        given: the keys in the request's address and header; empty strings if there are none.

    Raises:
        ApiError: the request has no key, or a wrong one. The message repeats neither key.
    """
    if not any(given):
        message = (
            "Method doesn't allow unregistered callers (callers without established identity). "
            "Please use API Key or other form of API consumer identity to call this API."
        )
        raise ApiError(403, message)
    if not all(hmac.compare_digest(expected.encode(), key.encode("utf-8", "replace")) for key in given if key):
        detail = {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "API_KEY_INVALID",
            "domain": "googleapis.com",
        }
        raise ApiError(400, "API key not valid. Please pass a valid API key.", "API_KEY_INVALID", [detail])


def _single_language(requested: Sequence[str]) -> str | None:
    """Return the code of the requested language; None if there are several, or it is unknown."""
    try:
        codes = {_known_code(name) for name in requested}
    except InputError:
        return None
    return codes.pop() if len(codes) == 1 else None


def _known_code(name: str) -> str:
    """Return the code of a language; one of a region, such as ``pt-BR``, is taken for the language.

    Raises:
        InputError: it is unknown.
    """
    region = _REGION.fullmatch(name.lower())
    return language_of(region[1] if region else name).code


def _unsupported(
    attribute: str, languages: Sequence[str], measured: Collection[str], scored: Collection[str]
) -> ApiError:
    """Return Google's refusal of an attribute in languages, and what there is."""
    listed = [language[:MAX_NAME] for language in languages]
    there = f"{', '.join(name.upper() for name in measured)} in {', '.join(LANGUAGES[code].short for code in scored)}"
    return invalid(
        "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE",
        f"Attribute {attribute.upper()} does not support request languages: {', '.join(listed)}. "
        f"This service measures {there}.",
        languageNotSupportedByAttributeError={"requestedLanguages": listed, "attribute": attribute.upper()},
    )


def _malformed(error: ValidationError) -> ApiError:
    """Return Google's error for a body that is not a request, without the values in the body."""
    problem = error.errors(include_url=False, include_input=False)[0]
    *parents, last = problem["loc"] or ("",)
    place = ".".join(str(part)[:MAX_NAME] for part in parents)
    if problem["type"] == "json_invalid":
        message = f"Invalid JSON payload received. {problem['msg'].removeprefix('Invalid JSON: ')}"
    elif problem["type"] == "extra_forbidden":
        where = f" at '{place}'" if place else ""
        message = f'Invalid JSON payload received. Unknown name "{str(last)[:MAX_NAME]}"{where}: Cannot find field.'
    else:
        path = ".".join(part for part in (place, str(last)[:MAX_NAME]) if part)
        message = f"Invalid value at '{path}': {problem['msg']}"
    return ApiError(400, message, "INVALID_JSON")


def discovery(root_url: str) -> dict[str, Any]:
    """Return the document from which Google's client libraries build themselves.

    Args:
        root_url: the service's address, which ends with a slash.
    """
    schemas = {name: {"id": name, "type": "object", "properties": fields} for name, fields in _SCHEMAS.items()}
    method = {
        "id": "commentanalyzer.comments.analyze",
        "path": PATH[1:],
        "flatPath": PATH[1:],
        "httpMethod": "POST",
        "description": "Analyzes the provided text and returns scores for requested attributes.",
        "parameters": {},
        "parameterOrder": [],
        "request": {"$ref": "AnalyzeCommentRequest"},
        "response": {"$ref": "AnalyzeCommentResponse"},
    }
    return {
        "kind": "discovery#restDescription",
        "discoveryVersion": "v1",
        "id": "commentanalyzer:v1alpha1",
        "name": "commentanalyzer",
        "version": "v1alpha1",
        "title": "Perspective Comment Analyzer API",
        "description": "Scores of a local scorer, in the protocol of the Perspective Comment Analyzer API.",
        "protocol": "rest",
        "rootUrl": root_url,
        "servicePath": "",
        "baseUrl": root_url,
        "parameters": _PARAMETERS,
        "schemas": schemas,
        "resources": {"comments": {"methods": {"analyze": method}}},
    }


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": name}


def _list(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _map(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": values}


_STRING = {"type": "string"}
_BOOLEAN = {"type": "boolean"}
_FLOAT = {"type": "number", "format": "float"}
_INT = {"type": "integer", "format": "int32"}
_SCHEMAS: dict[str, dict[str, Any]] = {
    "AnalyzeCommentRequest": {
        "comment": _ref("TextEntry"),
        "context": _ref("Context"),
        "requestedAttributes": _map(_ref("AttributeParameters")),
        "spanAnnotations": _BOOLEAN,
        "languages": _list(_STRING),
        "doNotStore": _BOOLEAN,
        "clientToken": _STRING,
        "sessionId": _STRING,
        "communityId": _STRING,
    },
    "AnalyzeCommentResponse": {
        "attributeScores": _map(_ref("AttributeScores")),
        "languages": _list(_STRING),
        "detectedLanguages": _list(_STRING),
        "clientToken": _STRING,
    },
    "TextEntry": {"text": _STRING, "type": _STRING},
    "Context": {
        "entries": _list(_ref("TextEntry")),
        "articleAndParentComment": _ref("ArticleAndParentComment"),
    },
    "ArticleAndParentComment": {"article": _ref("TextEntry"), "parentComment": _ref("TextEntry")},
    "AttributeParameters": {"scoreType": _STRING, "scoreThreshold": _FLOAT},
    "AttributeScores": {"summaryScore": _ref("Score"), "spanScores": _list(_ref("SpanScore"))},
    "SpanScore": {"begin": _INT, "end": _INT, "score": _ref("Score")},
    "Score": {"value": _FLOAT, "type": _STRING},
}
_PARAMETERS = {
    "key": {"type": "string", "location": "query", "description": "API key."},
    "alt": {"type": "string", "location": "query", "default": "json", "enum": ["json"], "enumDescriptions": [""]},
}
