"""Protects the names of classes that come with labels: every way in which YAML writes a list, and what is no list."""

import pytest

from odutils.coco.class_names import classes_of, read_classes
from odutils.coco.labels import LabelledObject
from odutils.errors import InputError

LISTS = {
    "spaces": "names: ['person ', ' hard hat']",
    "one line": "train: a\nnames: ['person', 'hard hat']\nnc: 2\n",
    "plain": "names: [person, hard hat]",
    "double quotes": 'names: ["person", "hard hat"]  # two',
    "several lines": "nc: 2\nnames: [\n  'person',  # who\n  'hard hat',\n]\nroboflow:\n  url: x\n",
    "unindented brackets": "names: [\n'person',\n'hard hat']\n",
    "dashes": "names:\n- person\n- hard hat\nnc: 2\n",
    "indented dashes": "names:\n  - 'person'\n\n  # a comment\n  - \"hard hat\"\n",
    "mapping": "names:\n  0: person\n  1: hard hat  # yellow\npath: ../data\n",
    "mapping out of order": "names:\n  1: hard hat\n  0: person\n",
    "mapping in brackets": "names: {0: person, 1: 'hard hat'}\n",
}


@pytest.mark.parametrize("text", LISTS.values(), ids=LISTS)
def test_every_list_of_names(text, tmp_path):
    for name in ("data.yaml", "data.yml", "DATA.YAML"):
        (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8")
        assert read_classes(tmp_path / name) == ["person", "hard hat"]


def test_names_with_signs_of_yaml(tmp_path):
    (tmp_path / "a.yaml").write_text("names:\n- it's, well\n- C#\n- '#1: \"a\"'\n- 'it''s'\n- 7\n- Männer\n", "utf-8")
    assert read_classes(tmp_path / "a.yaml") == ["it's, well", "C#", '#1: "a"', "it's", "7", "Männer"]
    (tmp_path / "b.yaml").write_text(r"""names: ['a, b', "c ] \" d", 8, no]""")
    assert read_classes(tmp_path / "b.yaml") == ["a, b", 'c ] " d', "8", "no"]


def test_a_text_has_a_name_a_line(tmp_path):
    (tmp_path / "classes.txt").write_text("person\nhard hat\r\n\n")
    assert read_classes(tmp_path / "classes.txt") == ["person", "hard hat"]


@pytest.mark.parametrize(
    "text, words",
    [
        ("nc: 3\n", "its `names` are neither a list"),
        ("nc: 1\nnames: ['person'\n", "cannot be read as YAML"),
        ("names: coco.names\n", "its `names` are neither a list"),
        ("names:\n  person\n", "its `names` are neither a list"),
        ("names:\nnc: 2\n", "its `names` are neither a list"),
        ("names: []\n", "no class names in it"),
        ("\nnames:\n  0: a\n  2: b\n", "the `names` are not numbered from 0 to 1"),
        ("names: [a, 'a ']", "two classes are called 'a'"),
        ("names: " + "[" * 5000, "cannot be read as YAML (nested too deeply)"),
        ("names: [a, b, a]", "two classes are called 'a'"),
        ("names: [a, '']", "class 1 has no name"),
    ],
)
def test_what_is_no_list(text, words, tmp_path):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        read_classes(tmp_path / "data.yaml")
    assert str(error.value).startswith(str(tmp_path / "data.yaml")) and words in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="none.txt: no such file"):
        read_classes(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes("Männer".encode("latin-1"))
    with pytest.raises(InputError, match="latin.txt: not UTF-8 at byte 1"):
        read_classes(tmp_path / "latin.txt")


def test_the_labels_own_classes_or_those_that_are_wanted():
    objects = [[LabelledObject("dog", (0, 0, 1, 1))], [], [LabelledObject("cat", (0, 0, 1, 1))]]
    assert classes_of(objects, None, "here") == ["cat", "dog"]
    assert classes_of(objects, ["dog", "cow", "cat"], "here") == ["dog", "cow", "cat"]
    with pytest.raises(InputError, match="here: its classes cat are not in the file of --classes"):
        classes_of(objects, ["dog"], "here")
    with pytest.raises(InputError, match="here: no class names"):
        classes_of([[]], None, "here")
