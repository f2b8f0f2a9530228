"""The glossary of the series, from the tables at the end of the notebooks:

    python docs/make_glossary.py

Each notebook ends with a cell that begins with `## Glossary` and holds one table: term, definition, the name in
`odutils`, the name in torchvision where it differs. docs/glossary.md has all rows, in alphabetical order.
"""

import json
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
NOTEBOOKS = DOCS.parent / "nbs"
HEADING = "## Glossary"
COLUMNS = ("term", "definition", "in `odutils`", "in torchvision")


def rows_of(notebook: Path) -> list[list[str]]:
    """The rows of a notebook's glossary. Raises ValueError if there is not just one, or a row is incomplete."""
    sources = ("".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"])
    found = [source for source in sources if source.startswith(HEADING)]
    if len(found) != 1:
        raise ValueError(f"{notebook.name}: {len(found)} cells begin with {HEADING!r}, one should")
    lines = [line.strip().strip("|").split(" | ") for line in found[0].splitlines() if line.startswith("|")]
    titles, _, *rows = ([cell.strip() for cell in line] for line in lines)
    if tuple(titles) != COLUMNS:
        raise ValueError(f"{notebook.name}: the glossary's columns are {titles}, not {list(COLUMNS)}")
    for row in rows:
        if len(row) != len(COLUMNS) or not row[0] or not row[1]:
            raise ValueError(f"{notebook.name}: a row of the glossary is incomplete: {row}")
    return rows


def plain(definition: str) -> str:
    """Without a capital at its beginning and a full stop at its end, so that all look alike."""
    first = definition[:1].lower() if definition[1:2].islower() or definition[1:2] == " " else definition[:1]
    return (first + definition[1:]).rstrip(".")


def make_glossary() -> str:
    """The content of glossary.md. Raises ValueError if a term is defined twice."""
    rows, seen = [], {}
    for notebook in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        for term, definition, ours, theirs in rows_of(notebook):
            term = term.replace("*", "")
            name = term.lower()
            if name in seen:
                raise ValueError(f"{notebook.name}: {term} is also defined in {seen[name]}")
            seen[name] = notebook.name
            link = f"[{notebook.name[:2]}](../nbs/{notebook.name})"
            rows.append((name, f"| **{term}** | {plain(definition)} | {link} | {ours} | {theirs} |"))
    lines = [
        "# Glossary",
        "",
        "The terms of the series, each with the notebook that introduces it. Made by `docs/make_glossary.py`.",
    ]
    lines += ["", "| term | definition | notebook | in `odutils` | in torchvision |", "|---|---|---|---|---|"]
    return "\n".join(lines + [row for _, row in sorted(rows)]) + "\n"


if __name__ == "__main__":
    try:
        (DOCS / "glossary.md").write_text(make_glossary())
    except ValueError as error:
        sys.exit(str(error))
