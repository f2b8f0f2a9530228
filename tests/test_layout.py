"""Protects the layout that the README draws: imports that point one way, a light `import odutils`, short files, the
field's words, a small base install, and a Makefile that works as root, as in a container."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "odutils"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
HEAVY = {"torch", "torchvision", "numpy", "cv2", "PIL", "av", "timm", "pycocotools", "onnx", "onnxruntime", "tqdm"}
OPTIONAL = {"fastprogress", "imgaug", "fastai", "miniai", "accelerate", "matplotlib", "onnx", "onnxruntime"}
WORDS_ALLOWED = {
    "model.py": 2,  # fastai's create_body, and the comment that says so
    "weights.py": 2,  # the names in files of version 0.1
}


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def layers():
    """The lines of the README's map: [["odutils.errors", …], …] from the lowest to the highest."""
    drawn = (ROOT / "README.md").read_text(encoding="utf-8").split("\nodutils/ ")[1].split("\ndata/ ")[0]
    found = []
    for line in drawn.splitlines()[1:]:
        room, names = "odutils.", re.split(r"  +", line.strip(), maxsplit=1)[1].split()
        if names[0].endswith("/"):
            room += names.pop(0).replace("/", ".")
        found.append([room + name for name in names])
    return found


def imports_of(path):
    """(module, name) for every import of the package in a file, in functions, too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module.split(".")[0] == "odutils":
                yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "odutils")


def needed_modules(path, modules):
    return {f"{m}.{name}" if f"{m}.{name}" in modules else m for m, name in imports_of(path)} & modules


def test_the_map_names_exactly_the_modules_there_are():
    drawn = [module for layer in layers() for module in layer]
    assert sorted(drawn) == sorted(map(module_of, FILES))


def test_imports_point_down_the_map_without_circles():
    height = {module: number for number, layer in enumerate(layers()) for module in layer}
    needs = {module_of(path): needed_modules(path, set(height)) for path in FILES}
    upward = [
        f"{module} imports {below}" for module in needs for below in needs[module] if height[below] > height[module]
    ]
    assert not upward
    done = set()
    while ready := {module for module in needs if module not in done and needs[module] <= done}:
        done |= ready
    assert not set(needs) - done, "a circle of imports"


def test_no_module_takes_a_private_name_of_another():
    taken = [f"{module_of(path)}: {name}" for path in FILES for _, name in imports_of(path) if re.match("_[^_]", name)]
    assert not taken


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_are_short_and_say_what_they_are(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    assert ast.get_docstring(ast.parse(text))


def test_the_fields_words():
    found = {}
    for path in FILES:
        if lines := re.findall(r".*(?:picture|film|\bbody\b|create_body).*", path.read_text("utf-8"), re.IGNORECASE):
            found[path.name] = len(lines)
    assert found == WORDS_ALLOWED


def loaded_by(statement):
    """The modules that a fresh Python has loaded after a statement."""
    script = f"{statement}; import sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    """`test_cli.py` asks the same of --help."""
    assert not loaded_by("import odutils") & HEAVY


def test_no_module_loads_an_optional_package_when_it_is_imported():
    everything = ", ".join(module_of(path) for path in FILES if path.name != "__main__.py")
    loaded = loaded_by(f"import {everything}") & OPTIONAL
    assert not loaded - {"miniai"}


def test_the_base_install_is_enough_to_detect_to_annotate_and_to_evaluate(tmp_path):
    """What `make detect` installs holds no web framework for a progress bar, and nothing that only training needs."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    base = text.split("\ndependencies = [")[1].split("\n]")[0]
    assert not OPTIONAL & set(re.findall(r'"([\w-]+)', base))
    script = f"""
import sys
sys.modules.update(dict.fromkeys({sorted(OPTIONAL)}))  # each of them cannot be imported
from odutils.__main__ import main
assert main(["detect", "data/photos/kitten.jpg", "--out", {str(tmp_path)!r}]) == 0
assert main(["video", "data/clip.mp4", "--limit", "2", "--out", {str(tmp_path / "clip.mp4")!r}]) == 0
assert main(["evaluate", "--data", "data", "--split", "photos", "--size", "96"]) == 0
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.skipif(not shutil.which("make") or os.name == "nt", reason="needs make and a shell")
@pytest.mark.parametrize("user, allowed", [("0", True), ("1000", False)])
def test_notebooks_open_as_root_and_only_then_with_leave(user, allowed, tmp_path):
    (tmp_path / "id").write_text(f"#!/bin/sh\necho {user}\n")
    (tmp_path / "id").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = ["make", "--dry-run", "notebooks", f"VENV={tmp_path}/venv"]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    line = next(line for line in ran.stdout.splitlines() if "jupyter lab" in line)
    assert ("--allow-root" in line) is allowed
