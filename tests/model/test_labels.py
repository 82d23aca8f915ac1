"""Labels: every file that an editor or Keras writes is read right, or refused in one sentence that says why."""

import json
import os
from pathlib import Path

import pytest

from serving.errors import ModelUnavailable
from serving.model.labels import load_labels

BOMS = {"utf-8": b"", "utf-8-sig": b"", "utf-16": b"", "utf-16-be": b"\xfe\xff", "utf-16-le": b"\xff\xfe"}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", BOMS)
@pytest.mark.parametrize("name", ["labels.txt", "index.json", "names.json", "indices.json"])
def test_labels_are_read_as_editors_save_them(tmp_path: Path, name: str, encoding: str, end: str) -> None:
    text = {
        "labels.txt": "Hündin\nwild\u2028cat\n",
        "index.json": json.dumps({"1": ["n2", "wild\u2028cat"], "0": ["n1", "Hündin"]}, ensure_ascii=False, indent=1),
        "names.json": json.dumps(["Hündin", "wild\u2028cat"], ensure_ascii=False, indent=1),
        "indices.json": json.dumps({"wild\u2028cat": 1, "Hündin": 0}, ensure_ascii=False, indent=1),
    }[name]
    path = tmp_path / name
    path.write_bytes(BOMS[encoding] + text.replace("\n", end).encode(encoding))
    assert load_labels(str(path), 2) == ["Hündin", "wild\u2028cat"]  # which is no end of a line


@pytest.mark.parametrize("end", ["", "\n", "\n\n\n", "\r\n \r\n"])
def test_empty_lines_at_the_end_are_no_labels(tmp_path: Path, end: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_text(f"dog\n cat \nmaillot\nmaillot{end}")  # ImageNet itself has a label twice
    assert load_labels(str(path), 4) == ["dog", "cat", "maillot", "maillot"]


NOT_TEXT = "it is not UTF-8 text, so save it as UTF-8"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("labels.txt", None, "No such file or directory"),
        ("labels.txt", "Hündin\n".encode("latin-1"), NOT_TEXT),
        ("labels.txt", "Hündin\n".encode("utf-16-le"), NOT_TEXT),
        ("labels.txt", "Hündin\n".encode("utf-32"), NOT_TEXT),
        ("labels.txt", b"", "it is empty"),
        ("labels.txt", b"\xef\xbb\xbf\r\n \r\n", "it is empty"),
        ("labels.txt", b"dog\n\ncat\n", "line 2 is empty, and every class needs a label"),
        ("index.json", '{"0": "Hündin"}'.encode("latin-1"), NOT_TEXT),
        ("index.json", b"", "it is empty"),
        ("index.json", b"{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("index.json", b"[" * 100_000, "maximum recursion depth exceeded"),
        ("index.json", b"7", "it is no JSON object"),
        ("index.json", b"null", "it is no JSON object"),
        ("index.json", b'{"0": "dog", "2": "cat"}', 'there are 2 entries, but none is "1"'),
        ("index.json", b'{"dog": 0, "cat": 0}', '"dog" and "cat" both have the index 0'),
        ("index.json", b'{"dog": 0, "cat": 2}', "there are 2 labels, but none has the index 1"),
        ("index.json", b'{"dog": 1, "cat": 2}', "there are 2 labels, but none has the index 0"),
        ("index.json", b'{"dog": 0, "cat": -1}', "there are 2 labels, but none has the index 1"),
        ("index.json", b'{"dog": 0, "cat": true}', 'there are 2 entries, but none is "0"'),
        ("index.json", b'{"dog": 0, "dog": 1}', '"dog" stands in it twice'),
        ("index.json", b'{"0": "dog", "0": "cat"}', '"0" stands in it twice'),
        ("index.json", b'{"": 0, "cat": 1}', 'entry "0" is no label'),
        ("index.json", b'{"0": []}', 'entry "0" is no label'),
        ("index.json", b'{"0": "dog", "1": {"name": "cat"}}', 'entry "1" is no label'),
        ("index.json", b'{"0": ["n1", null]}', 'entry "0" is no label'),
        ("index.json", b'["dog", ["n2", ["cat"]]]', 'entry "1" is no label'),
        ("index.json", b'["dog", ""]', 'entry "1" is no label'),
        ("index.json", b'["dog", "\\ud83d"]', 'entry "1" is no text'),
    ],
)
def test_a_wrong_label_file_is_refused_with_why_and_with_what_it_should_be(
    tmp_path: Path, name: str, content: bytes | None, says: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelUnavailable) as refused:
        load_labels(str(path), 2)
    begins = f"MODEL_LABELS={path} cannot be read: {says}"
    assert str(refused.value).startswith(begins)
    assert str(refused.value).endswith(
        '. It is imagenet, numbers, a JSON file ({"0": ["n01440764", "tench"], …}, or {"tench": 0, …} as Keras\'s '
        'class_indices, or ["tench", …]), or a text file with a label a line.'
    )
    assert "\n" not in str(refused.value)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in tmp_path, tmp_path / "pipe":
        with pytest.raises(ModelUnavailable, match="it is no file"):
            load_labels(str(path), 2)
    with pytest.raises(ModelUnavailable, match=r"MODEL_LABELS=/proc/1/mem cannot be read: (Input|Permission)"):
        load_labels("/proc/1/mem", 2)


def test_folders_that_are_named_by_numbers_keep_them(tmp_path: Path) -> None:
    """flow_from_directory sorts names as text: the folder 10 comes before the folder 2."""
    path = tmp_path / "class_indices.json"
    path.write_text('{"0": 0, "1": 1, "10": 2, "2": 3}')
    assert load_labels(str(path), 4) == ["0", "1", "10", "2"]


def test_the_default_names_what_a_network_of_ones_own_needs() -> None:
    with pytest.raises(ModelUnavailable) as refused:
        load_labels("imagenet", 5)
    assert str(refused.value) == (
        "The model tells 5 classes apart, and MODEL_LABELS=imagenet, the default, names 1000. Set MODEL_LABELS to a "
        "file with 5 labels, or to numbers."
    )
