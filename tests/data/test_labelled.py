import csv

import pytest

from xgray.data.labelled import labelled_fingerprint, read_comments, read_labelled
from xgray.errors import InputError
from xgray.languages import LANGUAGES

ROWS = [
    ("you idiot", "1", "fit"),
    ("good morning, all", "0", "fit"),
    ("stupid, stupid man", "1", "validate"),
    ('he said "fine"\nand left', "0", "validate"),
]


def write(path, rows, header=("text", "label", "split"), encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def test_a_folder_is_read_in_the_order_of_languages_and_lines(tmp_path):
    write(tmp_path / "zh.csv", ROWS)
    write(tmp_path / "de.csv", ROWS)
    read = read_labelled(str(tmp_path))
    assert [comment.language for comment in read] == ["de"] * 4 + ["zh-hans"] * 4
    assert [(comment.text, comment.toxic, comment.split) for comment in read[:4]] == [
        (t, label == "1", s) for t, label, s in ROWS
    ]


def test_a_single_file_with_a_byte_order_mark_is_read(tmp_path):
    path = write(tmp_path / "en.csv", ROWS, encoding="utf-8-sig")
    assert [comment.text for comment in read_labelled(str(path))] == [text for text, *_ in ROWS]


def test_the_embedded_texts_cover_every_language_and_both_labels():
    read = read_labelled("embedded")
    for code in LANGUAGES:
        for split in ("fit", "validate"):
            labels = [comment.toxic for comment in read if comment.language == code and comment.split == split]
            assert sum(labels) >= 20
            assert len(labels) - sum(labels) >= 20


def test_a_file_without_splits_is_split_by_label_and_text(tmp_path):
    rows = [(f"text {index % 50}", "1" if index % 50 < 20 else "0") for index in range(100)]
    first = read_labelled(str(write(tmp_path / "en.csv", rows, ("text", "label"))))
    assert [(comment.text, comment.toxic) for comment in first] == [(text, label == "1") for text, label in rows]
    validate = {comment.text for comment in first if comment.split == "validate"}
    assert validate.isdisjoint(comment.text for comment in first if comment.split == "fit")
    assert len([comment for comment in first if comment.split == "validate" and comment.toxic]) == 2 * (20 // 3)
    assert len([comment for comment in first if comment.split == "validate" and not comment.toxic]) == 2 * (30 // 3)
    # The order of the file does not matter.
    again = read_labelled(str(write(tmp_path / "en.csv", rows[::-1], ("text", "label"))))
    assert {comment.text for comment in again if comment.split == "validate"} == validate


def test_the_fingerprint_depends_on_the_texts_alone(tmp_path):
    write(tmp_path / "en.csv", ROWS)
    before = labelled_fingerprint(str(tmp_path))
    write(tmp_path / "en.csv", [(*row, "note") for row in ROWS], ("text", "label", "split", "comment"))
    assert labelled_fingerprint(str(tmp_path)) == before
    write(tmp_path / "en.csv", [("you fool", "1", "fit"), *ROWS[1:]])
    assert labelled_fingerprint(str(tmp_path)) != before


@pytest.mark.parametrize(
    ("rows", "header", "expected"),
    [
        ([*ROWS, ("more", "2", "fit")], ("text", "label", "split"), r"en\.csv:7: label must be 1 .* not '2'"),
        ([*ROWS, ("more", "maybe", "fit")], ("text", "label", "split"), r"en\.csv:7: label must be .* not 'maybe'"),
        ([("you idiot", "1", "de-AT")], ("text", "label", "language"), r"en\.csv:2: language is 'de-AT'"),
        ([*ROWS, ("more", "1", "test")], ("text", "label", "split"), r"en\.csv:7: split must be fit or validate"),
        ([*ROWS, (" ", "1", "fit")], ("text", "label", "split"), r"en\.csv:7: text is empty"),
        ([*ROWS, ("more", "1")], ("text", "label", "split"), r"en\.csv:7: 2 values for 3 columns"),
        ([*ROWS, ("you idiot", "1", "validate")], ("text", "label", "split"), r"en\.csv:7: .* a fit row on line 2"),
        (ROWS, ("text", "toxic", "split"), r"en\.csv:1: no column label; columns found: text, toxic, split"),
        ([], ("text", "label", "split"), r"en\.csv: no rows below the header"),
        (ROWS[:2], ("text", "label", "split"), r"en\.csv: no toxic rows \(label 1\) to validate"),
        ([*ROWS[1:], ("fine", "0", "fit")], ("text", "label", "split"), r"en\.csv: no toxic rows \(label 1\) to fit"),
        ([("you idiot", "1")] * 9, ("text", "label"), r"en\.csv: no benign rows \(label 0\) to fit"),
    ],
)
def test_an_invalid_row_is_refused_by_its_line(tmp_path, rows, header, expected):
    write(tmp_path / "en.csv", rows, header)
    with pytest.raises(InputError, match=expected):
        read_labelled(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("en.csv", b"", r"en\.csv:1: no column text and label; the file is empty"),
        ("en.csv", b"text,label\nfine,0\n\xff\xfe,1\n", r"en\.csv:3: not UTF-8"),
        ("en.csv", b'text,label\n"fine,0\n', r"en\.csv:\d+: broken CSV"),
        ("english.csv", b"text,label\n", r"english\.csv: .* named after its language"),
        ("notes.txt", b"", r"holds no \{language\}\.csv files"),
    ],
)
def test_a_file_that_is_not_a_labelled_csv_is_refused(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=expected):
        read_labelled(str(tmp_path))


def test_two_files_of_one_language_are_refused(tmp_path):
    write(tmp_path / "zh.csv", ROWS)
    write(tmp_path / "zh-hans.csv", ROWS)
    with pytest.raises(InputError, match="zh-hans has another file"):
        read_labelled(str(tmp_path))


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        read_labelled(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("header", "labels"),
    [
        (("id", "comment_text", "toxic", "obscene"), ("1", "0")),  # Jigsaw's
        (("rev_id", "comment", "toxic"), ("True", "False")),
        (("id", "text", "is_toxic"), ("Toxic", "Not Toxic")),
        (("id", "text", "label"), ("1", "0")),
    ],
)
def test_a_file_of_comments_is_read_with_the_columns_of_its_collection(tmp_path, header, labels):
    width = len(header) - 3
    rows = [(str(at), f"text {at}", labels[at % 4 > 0], *["0"] * width) for at in range(80)]
    path = str(write(tmp_path / "train.csv", rows, header))
    read = read_comments(path, 0.1, seed=0)
    assert [(comment.text, comment.toxic) for comment in read] == [(f"text {at}", at % 4 == 0) for at in range(80)]
    held_out = {comment.text for comment in read if comment.split == "validate"}
    assert [
        sum(comment.text in held_out and comment.toxic == toxic for comment in read) for toxic in (True, False)
    ] == [2, 6]
    # The same seed holds out the same texts, whatever their order; another seed holds out others.
    write(tmp_path / "train.csv", rows[::-1], header)
    assert {comment.text for comment in read_comments(path, 0.1, seed=0) if comment.split == "validate"} == held_out
    assert {comment.text for comment in read_comments(path, 0.1, seed=1) if comment.split == "validate"} != held_out


def test_a_file_of_comments_keeps_its_splits_and_can_be_limited(tmp_path):
    path = str(write(tmp_path / "mine.csv", [*ROWS, ("another idiot", "1", "fit")]))
    assert [comment.split for comment in read_comments(path, 0.5, seed=0)] == [split for *_, split in ROWS] + ["fit"]
    assert len(read_comments(path, 0.5, seed=0, limit=4)) == 4
    with pytest.raises(InputError, match=r"no benign rows \(label 0\) to validate among the first 3 rows;"):
        read_comments(path, 0.5, seed=0, limit=3)
    embedded = [comment for comment in read_labelled("embedded") if comment.language == "en"]
    assert read_comments("embedded", 0.5, seed=0) == embedded


def test_labels_may_be_words_or_numbers_of_pandas_and_contradictions_are_counted(tmp_path, caplog):
    words = ["toxic", "benign", "1.0", "0.0", "True", "non-toxic"]
    rows = [("same text", "toxic"), *((f"text {at}", words[at % 6]) for at in range(24)), ("same text", "0")]
    write(tmp_path / "en.csv", rows, ("text", "label"))
    assert [text.toxic for text in read_labelled(str(tmp_path))[1:7]] == [True, False, True, False, True, False]
    assert "1 texts are labelled toxic in one row and benign in another" in caplog.text


@pytest.mark.parametrize(
    ("rows", "header", "expected"),
    [
        ([("you idiot", "1")] * 40, ("text", "toxic"), r"train\.csv: no benign rows"),
        ([("fine", "0")] * 40, ("text", "toxic"), r"train\.csv: no toxic rows"),
        ([("fine", "maybe")], ("text", "toxic"), r"train\.csv:2: label must be 1 .* not 'maybe'"),
        ([("fine", "0", "1")], ("text", "toxic", "label"), r"train\.csv:2: label '1', toxic '0'; the columns"),
        ([("fine", "0")], ("body", "toxic"), r"train\.csv:1: no column text or comment_text or comment;"),
    ],
)
def test_an_invalid_file_of_comments_is_refused(tmp_path, rows, header, expected):
    with pytest.raises(InputError, match=expected):
        read_comments(str(write(tmp_path / "train.csv", rows, header)), 0.1, seed=0)


def test_a_folder_of_comments_is_refused(tmp_path):
    with pytest.raises(InputError, match="name one CSV file"):
        read_comments(str(tmp_path), 0.1, seed=0)
