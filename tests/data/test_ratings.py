import json

import numpy as np
import pytest

from xgray.data.answers import parse_other, parse_scale, read_answers
from xgray.data.ratings import Scale, read_ratings
from xgray.errors import InputError

HARMS = ("IdentityAttack", "Insult", "Violence", "SexualContent")


def record(index, toxicity, harm=(1, 1, 1), text="You are so", locale="EN", **fields):
    raw = {"Toxicity": list(toxicity), **{name: list(harm) for name in HARMS}}
    return {"Prompt": f"{text} {index}", "Index": index, "Locale": locale, "AnnotationsRaw": raw} | fields


def write(path, *records):
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records), encoding="utf-8")
    return str(path)


def test_rtp_lx_is_read_by_language_attribute_and_rater(tmp_path):
    write(tmp_path / "RTP_LX_EN.json", record(7, (5, 4, 3), (3, 2, 1)), record(9, (1, 1, 2), text="Have\u2028a day"))
    write(tmp_path / "RTP_LX_PT.json", record("7", (4, 4, 1), text="Tu és", locale="Pt-Br"))
    ratings = read_ratings([str(tmp_path)])
    assert list(ratings.languages) == ["en", "pt"]
    english = ratings.languages["en"]
    assert english.texts == ["You are so 7", "Have\u2028a day 9"]
    assert english.indices == ["7", "9"]
    assert ratings.languages["pt"].indices == ["7"], "a number in one file, text in the other"
    assert english.ratings["toxicity"].tolist() == [[5, 4, 3], [1, 1, 2]]
    assert english.ratings["severe_toxicity"].tolist() == [[1, 1, 0], [0, 0, 0]], "votes for 4 or more"
    assert english.ratings["threat"].tolist() == [[3, 2, 1], [1, 1, 1]]
    assert ratings.scales["toxicity"] == Scale(1, 5)
    assert ratings.scales["insult"] == ratings.scales["sexually_explicit"] == Scale(1, 3)
    assert ratings.scales["severe_toxicity"] == Scale(0, 1)
    assert (ratings.num_raters, ratings.num_unrated) == (3, 0)


def test_means_serve_where_there_are_no_single_ratings(tmp_path):
    means = {"Toxicity": 2.5, **dict.fromkeys(HARMS, 1.0)}
    line = {"Prompt": "So", "Index": 1, "Locale": "DE", "Annotations": means}
    ratings = read_ratings([write(tmp_path / "RTP_LX_DE.json", line)])
    assert ratings.languages["de"].ratings["toxicity"].tolist() == [[2.5]]
    assert ratings.num_raters == 1


def test_prompts_that_two_folders_hold_count_once(tmp_path):
    for name in ("all", "few"):
        (tmp_path / name).mkdir()
    write(tmp_path / "all" / "RTP_LX_EN.json", record(7, (5, 4, 3)), record(9, (1, 1, 2)))
    write(tmp_path / "few" / "RTP_LX_EN.json", record(9, (1, 1, 2)))
    both = [str(tmp_path / "all"), str(tmp_path / "few")]
    assert len(read_ratings(both).languages["en"].texts) == 2
    assert read_ratings(both).fingerprint == read_ratings(both[:1]).fingerprint
    write(tmp_path / "few" / "RTP_LX_EN.json", record(9, (1, 1, 3)))
    assert read_ratings(both[:1]).fingerprint != read_ratings(both[1:]).fingerprint
    with pytest.raises(InputError, match=r"few/RTP_LX_EN.json:1: Index '9' of en stands on .*all/RTP_LX_EN.json:2"):
        read_ratings(both)


def test_raters_columns_may_be_empty_and_a_text_without_ratings_is_counted(tmp_path):
    file = tmp_path / "rated.csv"
    file.write_text(
        'id,language,index,text,rater_1,rater_2\na,de,3,"Du, Idiot",5,4\nb,en,3,You idiot,,4\nc,en,4,Hello,,\n',
        encoding="utf-8-sig",
    )
    ratings = read_ratings([str(file)])
    assert ratings.languages["de"].texts == ["Du, Idiot"]
    assert ratings.languages["de"].indices == ratings.languages["en"].indices == ["3"]
    assert np.isnan(ratings.languages["en"].ratings["toxicity"]).tolist() == [[True, False]]
    assert (ratings.num_unrated, ratings.num_raters) == (1, 2)
    file.write_text("text,rater_1,language\nHello,40,en\n")
    assert read_ratings([str(file)], parse_scale("0-100", "--scale")).scales == {"toxicity": Scale(0, 100)}


def test_labels_are_ratings_of_one_rater(tmp_path):
    for name in ("de/forum.csv", "de/news.csv", "en/forum.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text,label\nDu Idiot,1\nDanke,0\n")
    ratings = read_ratings([str(tmp_path)])
    german = ratings.languages["de"]
    assert german.sources == ["forum", "forum", "news", "news"]
    assert german.ratings["toxicity"].tolist() == [[1], [0], [1], [0]]
    assert len(set(german.indices)) == 4
    assert ratings.scales == {"toxicity": Scale(0, 1)}


BAD_RTP_LX = {
    "out of scale": (record(1, (5, 6, 1)), r"RTP_LX_EN.json:1: AnnotationsRaw.Toxicity: a rating from 1 to 5.*not 6"),
    "out of the harms' scale": (record(1, (5, 5, 1), (4, 1, 1)), r":1: AnnotationsRaw.IdentityAttack: .* 1 to 3"),
    "a rating that is text": (record(1, ("5", 5, 1)), r"not '5'"),
    "a rating that is true": (record(1, (True, 5, 1)), r"not True"),
    "another language": (record(1, (5, 5, 1), locale="DE"), r":1: Locale 'DE' in a file of en prompts"),
    "no ratings": (record(1, (5,), AnnotationsRaw=None), r":1: no AnnotationsRaw"),
    "nothing rated": (record(1, (), ()), r"none of 1 texts is rated"),
    "an empty text": (record(1, (5,), Prompt=" "), r":1: Prompt is empty"),
}


@pytest.mark.parametrize(("line", "message"), BAD_RTP_LX.values(), ids=BAD_RTP_LX)
def test_a_wrong_line_of_rtp_lx_is_named(tmp_path, line, message):
    with pytest.raises(InputError, match=message) as caught:
        read_ratings([write(tmp_path / "RTP_LX_EN.json", line)])
    assert "\n" not in str(caught.value)


BAD_CSV = {
    "out of scale": ("rated.csv", "text,language,rater_1\nHi,en,7\n", r"rated.csv:2: rater_1: .*1 to 5.*--scale"),
    "no number": ("rated.csv", "text,language,rater_1\nHi,en,high\n", r"rated.csv:2: rater_1: a number.*'high'"),
    "no columns of ratings": ("en.csv", "text,score\nHi,1\n", r"columns found: text, score"),
    "no rows": ("en.csv", "text,label\n", r"no rows below the header"),
    "no language": ("rated.csv", "text,rater_1\nHi,1\n", r"rated.csv:2: no language; add the column"),
    "an unknown language": ("rated.csv", "text,language,rater_1\nHi,tlh,1\n", r"rated.csv:2: unknown language 'tlh'"),
    "another language": ("en.csv", "text,language,rater_1\nHi,de,1\n", r"en.csv:2: a de text in the file of en"),
    "a label that is none": ("en.csv", "text,label\nHi,2\n", r"en.csv:2: label must be 1"),
    "one class": ("en.csv", "text,label\nHi,0\nHo,0\n", r"en: all 2 texts are labelled benign"),
    "nothing filled in": ("en.csv", "text,rater_1\nHi,\n", r"none of 1 texts is rated; fill in"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_CSV.values(), ids=BAD_CSV)
def test_a_wrong_csv_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_ratings([str(tmp_path / name)])
    assert "\n" not in str(caught.value)


def test_forms_are_not_mixed(tmp_path):
    (tmp_path / "en.csv").write_text("text,label\nHi,0\n")
    rtp_lx = write(tmp_path / "RTP_LX_DE.json", record(1, (1, 1, 1), locale="DE"))
    with pytest.raises(InputError, match="one by one"):
        read_ratings([str(tmp_path / "en.csv"), rtp_lx])
    with pytest.raises(InputError, match="leave out --scale"):
        read_ratings([rtp_lx], Scale(0, 1))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no RTP_LX_\{CODE\}.json"):
        read_ratings([str(tmp_path / "empty")])


@pytest.fixture
def rated(tmp_path):
    lines = [record(index, (1, 2, 3)) for index in (1, 2, 3)]
    return read_ratings([write(tmp_path / "RTP_LX_EN.json", *lines)]).languages


def test_other_answers_are_matched_by_index_and_put_on_the_unit_scale(tmp_path, rated):
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "EN.csv").write_text("index,grade\n3,5\n1,2\n2,\n8,4\n")
    found = read_answers(parse_other(f"judge={tmp_path}/answers:grade:1-5"), rated)
    assert found["en"].tolist() == pytest.approx([0.25, np.nan, 1.0], nan_ok=True)
    (tmp_path / "by_text.csv").write_text("text,language,score\nYou are so 2,en,.5\n")
    by_text = read_answers(parse_other(f"judge={tmp_path}/by_text.csv:score"), rated)
    assert by_text["en"].tolist() == pytest.approx([np.nan, 0.5, np.nan], nan_ok=True)


WRONG_ANSWERS = {
    "out of scale": ("index,x\n1,4\n", r"EN.csv:2: x: 4 is not on the scale 0 to 1\. .*:x:LOW-HIGH"),
    "no number": ("index,x\n1,high\n", r"EN.csv:2: x: a number is expected"),
    "no column": ("index,y\n1,1\n", r"no column x; columns found: index, y"),
    "two answers": ("index,x\n1,1\n1,0\n", r"EN.csv:3: another row has another x for the index '1'"),
    "no text in common": ("index,x\n8,1\n", r"no row has the index or text of a rated text"),
}


@pytest.mark.parametrize(("content", "message"), WRONG_ANSWERS.values(), ids=WRONG_ANSWERS)
def test_wrong_answers_are_named(tmp_path, rated, content, message):
    (tmp_path / "EN.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        read_answers(parse_other(f"judge={tmp_path}/EN.csv:x"), rated)


@pytest.mark.parametrize("option", ["judge", "judge=file", "=file:x", "judge=file:x:5-1", "judge=file:x:a-b"])
def test_an_option_of_another_form_is_explained(option):
    with pytest.raises(InputError, match="written"):
        parse_other(option)
