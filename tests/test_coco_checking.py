"""Protects `odutils check`: each fault of a data set is found, with its file and ids, however many others there are,
and nothing that a file can hold makes the check fall over."""

import copy
import json
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from odutils.coco import checking
from odutils.coco.checking import check_dataset, to_text
from odutils.files import DATA
from odutils.images import list_images

CATEGORIES = {1: "person", 17: "cat"}
NAN = float("nan")
ANNOTATIONS = "annotations/instances_train.json"
OBJECTS = [
    [{"bbox": [10, 10, 30, 20], "category_id": 1}, {"bbox": [50, 5.5, 40, 50], "category_id": 17}],
    [],
    [{"bbox": [0, 0, 96, 64], "category_id": 17}, {"bbox": [0, 0, 96, 64], "category_id": 1, "iscrowd": 1}],
]


@pytest.fixture
def root(tmp_path, write_dataset):
    return write_dataset(tmp_path / "data", OBJECTS, CATEGORIES)


def edit(root, change):
    """Apply `change` to the content of the annotation file."""
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_clean_set_has_no_problems(root):
    assert check_dataset(root, "train") == []
    assert to_text([]) == "no problems"


def again(content, part, index, **changes):
    content[part].append(copy.deepcopy(content[part][index]) | changes)


def respell(content):
    again(content, "images", 2, id=9, file_name="./0003.png")


def name_a_unicorn(content):
    content["labelled_classes_by_source"] = {"voc": ["person", "unicorn"]}


# name: (what is done to the content, kind, file, image id, annotation id)
FAULTS = {
    "wrong width": (lambda c: c["images"][0].update(width=97), "wrong size", "train/0001.png", 1, None),
    "sides exchanged": (lambda c: c["images"][1].update(width=64, height=96), "wrong size", "train/0002.png", 2, None),
    "no width": (lambda c: c["annotations"][0].update(bbox=[5, 5, 0, 9]), "box without area", "train/0001.png", 1, 1),
    "negative": (lambda c: c["annotations"][2].update(bbox=[9, 9, -9, 9]), "box without area", "train/0003.png", 3, 3),
    "outside": (lambda c: c["annotations"][1].update(bbox=[96, 5, 9, 9]), "box outside", "train/0001.png", 1, 2),
    "partly": (lambda c: c["annotations"][1].update(bbox=[90, 5, 9, 9]), "box partly outside", "train/0001.png", 1, 2),
    "above": (lambda c: c["annotations"][1].update(bbox=[9, -3, 9, 9]), "box partly outside", "train/0001.png", 1, 2),
    "category": (lambda c: c["annotations"][3].update(category_id=2), "unknown category", "train/0003.png", 3, 4),
    "image": (lambda c: c["annotations"][0].update(image_id=77), "unknown image", ANNOTATIONS, 77, 1),
    "image id twice": (lambda c: c["images"][1].update(id=1), "duplicate image id", "train/0002.png", 1, None),
    "annotation id": (lambda c: c["annotations"][3].update(id=1), "duplicate annotation id", "train/0003.png", 3, 1),
    "category id": (lambda c: again(c, "categories", 0, name="dog"), "duplicate category id", ANNOTATIONS, None, None),
    "category name": (lambda c: again(c, "categories", 0, id=9), "duplicate category name", ANNOTATIONS, None, None),
    "box twice": (lambda c: again(c, "annotations", 1, id=9), "duplicate box", "train/0001.png", 1, 9),
    "image twice": (lambda c: again(c, "images", 2, id=9), "image listed twice", "train/0003.png", 9, None),
    "same, spelt anew": (respell, "image listed twice", "train/./0003.png", 9, None),
    "no box": (lambda c: c["annotations"][0].pop("bbox"), "missing key", "train/0001.png", 1, 1),
    "no file name": (lambda c: c["images"][1].pop("file_name"), "missing key", ANNOTATIONS, 2, None),
    "text as id": (lambda c: c["annotations"][0].update(id="1"), "wrong type", "train/0001.png", 1, None),
    "true as id": (lambda c: c["annotations"][0].update(category_id=True), "wrong type", "train/0001.png", 1, 1),
    "no number": (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, NAN]), "wrong type", "train/0001.png", 1, 1),
    "three numbers": (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "wrong type", "train/0001.png", 1, 1),
    "crowd": (lambda c: c["annotations"][0].update(iscrowd="no"), "wrong type", "train/0001.png", 1, 1),
    "entry": (lambda c: c["images"].append(5), "wrong type", ANNOTATIONS, None, None),
    "part": (lambda c: c.update(annotations={}), "wrong type", ANNOTATIONS, None, None),
    "sources": (name_a_unicorn, "unknown category", ANNOTATIONS, None, None),
}


@pytest.mark.parametrize("change, kind, file, image_id, annotation_id", FAULTS.values(), ids=FAULTS)
def test_each_fault_is_found_and_nothing_else(root, change, kind, file, image_id, annotation_id):
    edit(root, change)
    problems = check_dataset(root, "train")
    assert [problem[:4] for problem in problems] == [(kind, file, image_id, annotation_id)]
    assert problems[0].message


def test_the_labels_of_the_photographs_that_come_with_the_project():
    assert check_dataset(DATA, "photos") == []
    labelled = json.loads((DATA / "annotations" / "instances_photos.json").read_text())
    assert [one["file_name"] for one in labelled["images"]] == [path.name for path in list_images(DATA / "photos")]


def test_a_box_may_touch_the_edge_and_rounding_is_forgiven(root):
    edit(root, lambda content: content["annotations"][0].update(bbox=[-0.4, 0, 96.8, 64.3]))
    assert check_dataset(root, "train") == []


def test_what_only_evaluation_needs_may_be_missing(root):
    edit(root, lambda content: [(one.pop("area"), one.pop("iscrowd")) for one in content["annotations"]])
    assert check_dataset(root, "train") == []


def break_file(path, how):
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("no image at all")
    else:
        Image.effect_noise((96, 64), 80).convert("RGB").save(path, how, lossless=True)
        path.write_bytes(path.read_bytes()[:-400])


@pytest.mark.parametrize("how", ["missing", "empty", "text", "JPEG", "PNG", "WEBP"])
def test_missing_and_broken_images(root, how):
    break_file(root / "train" / "0002.png", how)
    [problem] = check_dataset(root, "train")
    kind = "missing image" if how == "missing" else "broken image"
    assert problem[:4] == (kind, "train/0002.png", 2, None)


def test_a_truncated_jpeg_is_found_however_little_is_missing(root):
    """The quick look at an eighth of the size must not miss what `read_image` would stumble over."""
    path = root / "train" / "0002.png"
    for progressive in (False, True):
        Image.effect_noise((96, 64), 80).convert("RGB").save(path, "JPEG", progressive=progressive)
        assert check_dataset(root, "train") == []
        whole = path.read_bytes()
        for share in (0.5, 0.9, 0.97):
            path.write_bytes(whole[: int(share * len(whole))])
            assert [problem.kind for problem in check_dataset(root, "train")] == ["broken image"]


def test_the_size_of_a_turned_image_is_its_upright_size(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 96)).save(root / "train" / "0002.png", "JPEG", exif=exif)
    assert check_dataset(root, "train") == []
    Image.new("RGB", (96, 64)).save(root / "train" / "0002.png", "JPEG", exif=exif)
    assert [problem.kind for problem in check_dataset(root, "train")] == ["wrong size"]


def test_boxes_are_compared_with_the_image_that_is_there(root):
    Image.new("RGB", (48, 64)).save(root / "train" / "0001.png")
    kinds = [(problem.kind, problem.annotation_id) for problem in check_dataset(root, "train")]
    assert kinds == [("wrong size", None), ("box outside", 2)]


def test_missing_folders_and_files(tmp_path, root):
    assert [p[:2] for p in check_dataset(root, "val")] == [
        ("missing folder", "val"),
        ("missing file", "annotations/instances_val.json"),
    ]
    assert {p.kind for p in check_dataset(tmp_path / "nothing", "train")} == {"missing folder"}
    for image in (root / "train").iterdir():
        image.unlink()
    (root / "train").rmdir()
    assert [p[:2] for p in check_dataset(root, "train")] == [("missing folder", "train")]  # once, not once an image


@pytest.mark.parametrize(
    "content, words",
    [
        (b'{"images": [],\n "annotations": [1,,2]}', "line 2, column 20"),
        (b"", "line 1, column 1"),
        (b'{"name": "caf\xe9"}', "not utf-8 at byte 13: save the file as UTF-8"),
        (b"[" * 100_000, "RecursionError"),
        (b"[" + b"9" * 5000 + b"]", "ValueError"),
        (b"[1, 2]", "not an object"),
    ],
)
def test_a_file_that_is_no_json_object(root, content, words):
    (root / "annotations" / "instances_train.json").write_bytes(content)
    [problem] = check_dataset(root, "train")
    assert problem.kind == "invalid JSON" and words in problem.message


def test_all_faults_at_once_are_all_listed(root):
    def change(content):
        again(content, "images", 0, id=50, file_name="lost.png")
        content["images"][2]["height"] = 65
        content["annotations"][0]["bbox"] = [1, 1, 0, 0]
        content["annotations"][1]["category_id"] = 3
        again(content, "annotations", 2, id=3)
        content["annotations"].append({"id": 8})

    edit(root, change)
    break_file(root / "train" / "0002.png", "JPEG")
    problems = check_dataset(root, "train")
    assert sorted(problem[:4] for problem in problems if problem.kind != "missing key") == [
        ("box without area", "train/0001.png", 1, 1),
        ("broken image", "train/0002.png", 2, None),
        ("duplicate annotation id", "train/0003.png", 3, 3),
        ("duplicate box", "train/0003.png", 3, 3),
        ("missing image", "train/lost.png", 50, None),
        ("unknown category", "train/0001.png", 1, 2),
        ("wrong size", "train/0003.png", 3, None),
    ]
    missing = [problem for problem in problems if problem.kind == "missing key"]
    assert [problem.annotation_id for problem in missing] == [8, 8, 8]
    text = to_text(problems).splitlines()
    assert len(text) == 1 + len(problems)
    column = text[0].index("image")
    assert all(line[column - 2 : column] == "  " and line[column] != " " for line in text)


def test_the_progress_of_many_images_is_shown(root, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for many, shown in ((4, False), (3, True)):
        monkeypatch.setattr(checking, "MANY", many)
        assert check_dataset(root, "train") == []
        assert ("3/3" in capsys.readouterr().err) == shown


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -1, 0, 1e308, float("nan"), float("inf"), "\ud800", "\0", "x" * 5000, "..", "/", "\n"])
    | st.floats()
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def mutate(draw, value):
    """Walk down to a random place and put anything there, or take it away, or put it there twice."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw(st.sampled_from(keys))
    if isinstance(value[key], dict | list) and value[key] and draw(st.integers(0, 9)):
        mutate(draw, value[key])
    elif draw(st.booleans()):
        value[key] = draw(ANYTHING)
    elif isinstance(value, list):
        value.insert(key, copy.deepcopy(value[key]))
    else:
        del value[key]


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory, write_dataset):
    """One set for all mutations; its annotation file is written anew each time. Returns (root, content)."""
    sources = {"voc": ["cat"]}
    root = write_dataset(tmp_path_factory.mktemp("mutated"), OBJECTS, CATEGORIES, labelled_classes_by_source=sources)
    return root, (root / "annotations" / "instances_train.json").read_text()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_content_makes_it_fall_over(shared_root, data):
    root, text = shared_root
    if data.draw(st.booleans()):
        content = json.loads(text)
        for _ in range(data.draw(st.integers(1, 4))):
            if content:
                mutate(data.draw, content)
        changed = json.dumps(content)
    else:
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, min(len(text), start + 20)))
        changed = text[:start] + data.draw(st.text(alphabet='[]{},:"0-.eE\\x', max_size=4)) + text[stop:]
    (root / "annotations" / "instances_train.json").write_text(changed, encoding="utf-8")
    problems = check_dataset(root, "train")
    assert isinstance(problems, list)
    to_text(problems).encode()
