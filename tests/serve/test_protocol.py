import json
import time

import pytest

from xgray.rows import EMPTY_TEXT
from xgray.score.scorer import Scored
from xgray.serve.protocol import ApiError, answer, check_key, discovery, parse, resolve

ATTRIBUTES, LANGUAGES = ("toxicity", "insult"), ("en", "de", "zh-hans")


def body(**changes):
    whole = {"comment": {"text": "hello"}, "languages": ["en"], "requestedAttributes": {"TOXICITY": {}}} | changes
    return json.dumps({key: value for key, value in whole.items() if value is not None}).encode()


def analyse(content, **options):
    return resolve(parse(content), ATTRIBUTES, LANGUAGES, **options)


def refused(content, **options):
    """Return the error that parsing a body raises."""
    with pytest.raises(ApiError) as raised:
        analyse(content, **options)
    error = json.loads(raised.value.body())["error"]
    assert error["code"] == raised.value.code == 400
    assert error["status"] == "INVALID_ARGUMENT"
    return error


def test_every_field_of_perspectives_requests_is_accepted():
    request = body(
        comment={"text": "guten Tag", "type": "PLAIN_TEXT"},
        languages=["zh"],
        requestedAttributes={"TOXICITY": {"scoreType": "PROBABILITY", "scoreThreshold": 0.4}, "INSULT": {}},
        context={"entries": [{"text": "before", "type": "PLAIN_TEXT"}]},
        spanAnnotations=True,
        doNotStore=True,
        clientToken="token",
        sessionId="session",
        communityId="community",
    )
    analysis = analyse(request)
    assert (analysis.request.text, analysis.language, analysis.languages) == ("guten Tag", "zh-hans", ["zh"])
    assert analysis.request.thresholds == {"toxicity": 0.4, "insult": 0.0}
    response = json.loads(answer(analysis, Scored({"toxicity": 0.1 + 0.2, "insult": 0.0})))
    assert response == {
        "attributeScores": {
            "INSULT": {
                "spanScores": [{"begin": 0, "end": 9, "score": {"value": 0.0, "type": "PROBABILITY"}}],
                "summaryScore": {"value": 0.0, "type": "PROBABILITY"},
            }
        },
        "languages": ["zh"],
        "clientToken": "token",
    }
    response = json.loads(answer(analysis, Scored({"toxicity": 0.4, "insult": 0.1 + 0.2})))
    assert response["attributeScores"]["TOXICITY"]["summaryScore"]["value"] == 0.4
    assert response["attributeScores"]["INSULT"]["summaryScore"]["value"] == 0.1 + 0.2


def test_snake_case_names_and_nulls_are_read_as_google_reads_them():
    content = b'{"comment": {"text": "hi", "type": null}, "requested_attributes": {"TOXICITY": {"score_threshold": 1}},'
    analysis = analyse(content + b'"languages": ["de"], "client_token": null}')
    assert (analysis.language, analysis.request.thresholds) == ("de", {"toxicity": 1.0})
    assert json.loads(answer(analysis, Scored({"toxicity": 0.5}))) == {"languages": ["de"]}


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"comment": None}, "COMMENT_EMPTY", "Comment must be non-empty."),
        ({"comment": {"text": ""}}, "COMMENT_EMPTY", "Comment must be non-empty."),
        ({"comment": {"text": "é" * 10241}}, "COMMENT_TOO_LONG", "Value (20482) exceeded limit (20480)"),
        ({"comment": {"text": "a", "type": "HTML"}}, "INVALID_REQUEST", "only 'PLAIN_TEXT' comments"),
        (
            {"context": {"entries": [{}], "articleAndParentComment": {"article": {"text": "a"}}}},
            "INVALID_REQUEST",
            "both fields were populated",
        ),
        ({"requestedAttributes": None}, "NO_REQUESTED_ATTRIBUTES", "Missing requested_attributes"),
        ({"requestedAttributes": {}}, "NO_REQUESTED_ATTRIBUTES", "Missing requested_attributes"),
        ({"requestedAttributes": {"RUDENESS": {}}}, "INVALID_REQUEST", "Unknown requested attribute: RUDENESS"),
        ({"requestedAttributes": {"toxicity": {}}}, "INVALID_REQUEST", "Unknown requested attribute: toxicity"),
        ({"requestedAttributes": {"TOXICITY": {"scoreType": "RAW"}}}, "INVALID_REQUEST", "RAW is not supported by"),
        ({"languages": None}, "LANGUAGE_DETECTION_FAILED", "Unable to detect language"),
        ({"languages": []}, "LANGUAGE_DETECTION_FAILED", "name it in 'languages'"),
        ({"languages": ["tlh"]}, "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE", "TOXICITY does not support request languages"),
        ({"languages": ["fr"]}, "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE", "does not support request languages: fr"),
        ({"languages": ["en", "de"]}, "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE", "request languages: en, de"),
        (
            {"requestedAttributes": {"TOXICITY": {}, "THREAT": {}}},
            "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE",
            "Attribute THREAT does not support request languages: en",
        ),
    ],
)
def test_the_analyzers_refusals_have_their_kinds_of_error(changes, kind, message):
    error = refused(body(**changes))
    assert message in error["message"]
    (detail,) = error["details"]
    assert detail["@type"] == "type.googleapis.com/google.commentanalyzer.v1alpha1.Error"
    assert detail["errorType"] == kind


def test_an_unsupported_attribute_is_named():
    (detail,) = refused(body(requestedAttributes={"TOXICITY": {}, "THREAT": {}}))["details"]
    assert detail["languageNotSupportedByAttributeError"] == {"requestedLanguages": ["en"], "attribute": "THREAT"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Invalid JSON payload received. EOF"),
        (b'{"comment": {"text": "a"}', "Invalid JSON payload received. EOF"),
        (b"\xff\xfe{}", "Invalid JSON payload received."),
        (b'{"comment": {"text": "\xff"}}', "Invalid JSON payload received."),
        (b'{"comment": {"text": "half \\ud83d pair"}}', "Invalid JSON payload received."),
        (b"[" * 100_000, "recursion limit"),
        (b"[]", "Invalid value at ''"),
        (b"comment=hello", "Invalid JSON payload received."),
        (b'{"comment": {"text": "a", "words": 3}}', "Unknown name \"words\" at 'comment': Cannot find field."),
        (b'{"tongue": "en"}', 'Unknown name "tongue": Cannot find field.'),
        (b'{"comment": "hello"}', "Invalid value at 'comment'"),
        (b'{"comment": {"text": 5}}', "Invalid value at 'comment.text'"),
        (b'{"languages": "en"}', "Invalid value at 'languages'"),
        (b'{"languages": [null]}', "Invalid value at 'languages.0'"),
        (b'{"requestedAttributes": ["TOXICITY"]}', "Invalid value at 'requestedAttributes'"),
        (b'{"requestedAttributes": {"TOXICITY": {"scoreThreshold": NaN}}}', "scoreThreshold"),
        (b'{"doNotStore": "yes"}', "Invalid value at 'doNotStore'"),
    ],
)
def test_malformed_bodies_are_refused_in_googles_words(content, message):
    assert message in refused(content)["message"]


def test_names_of_fields_go_without_quotes_and_texts_stay_as_they_are():
    for text in ('a "b: c", {d: 1}', "back\\slash: \\", "{comment: {text: x}}", "nul \x00 é: 🙂"):
        content = f"{{comment : {{text: {json.dumps(text)}}}, requestedAttributes: {{TOXICITY:{{}}}}}}".encode()
        assert parse(content).text == text


@pytest.mark.parametrize("content", [b'"' + b'\\"' * 100_000, b"a" * 250_000, b"a " * 120_000, b'{"a": "' * 40_000])
def test_no_body_takes_long_to_refuse(content):
    began = time.perf_counter()
    refused(content)
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize(
    ("name", "code"),
    [("pt-BR", None), ("de-AT", "de"), ("de_at", "de"), ("zh-CN", "zh-hans"), ("zh-TW", None), ("zh-Hant", None)],
)
def test_a_region_is_taken_for_its_language_unless_it_writes_otherwise(name, code):
    if code is None:
        refused(body(languages=[name]))
    else:
        analysis = analyse(body(languages=[name]))
        assert (analysis.language, analysis.languages) == (code, [name])


def test_texts_of_all_kinds_are_read_unchanged():
    for text in (
        "a",
        "x" * 20480,
        "nul \x00 bell \x07",
        "line\u2028separator",
        "\u202eright to left",
        "🙂👩‍👩‍👧",
        " \n",
    ):
        assert parse(body(comment={"text": text})).text == text


@pytest.mark.parametrize(
    ("scored", "code", "kind"),
    [
        (Scored(None, EMPTY_TEXT), 400, "COMMENT_EMPTY"),
        (Scored(None, "too long: 30000 bytes"), 400, "INVALID_REQUEST"),
        (Scored(None, "status 500 (tried 8 times)", is_permanent=False), 503, "UNAVAILABLE"),
        (Scored({"toxicity": None}), 503, "UNAVAILABLE"),
    ],
)
def test_a_missing_score_is_answered_with_an_error(scored, code, kind):
    with pytest.raises(ApiError) as raised:
        answer(analyse(body()), scored)
    assert (raised.value.code, raised.value.kind) == (code, kind)


def test_keys_are_checked_as_google_does():
    check_key("right", ["right", ""])
    check_key("right", ["right", "right"])
    for given, code, reason in (
        ([""], 403, None),
        (["wrong"], 400, "API_KEY_INVALID"),
        (["right", "é\udc80"], 400, "API_KEY_INVALID"),
    ):
        with pytest.raises(ApiError) as raised:
            check_key("right", given)
        error = json.loads(raised.value.body())["error"]
        assert error["code"] == code
        assert [detail["reason"] for detail in error.get("details", [])] == ([reason] if reason else [])
        assert not any(key in json.dumps(error) for key in ("right", "wrong"))


def test_the_discovery_document_holds_every_schema_that_it_refers_to():
    document = discovery("http://127.0.0.1:1/")
    text = json.dumps(document)
    assert {part.split('"')[0] for part in text.split('"$ref": "')[1:]} == document["schemas"].keys()
