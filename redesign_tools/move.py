"""Moves a clean checkout of vits_trainer into packages, by the tables beside this file. Commits nothing.

    python move.py CHECKOUT [--package-only] [--no-ruff]
"""

import ast
import csv
import fnmatch
import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import patches  # noqa: E402
from engine import Move, Stop, dotted_of  # noqa: E402

FILES = {
    "vits_trainer/report.html.j2": "vits_trainer/tracking/report.html.j2",
    "vits_trainer/recipes": "vits_trainer/config/recipes",
}


ANY = -1
"""Times of an exact replacement: as often as it is there, but at least once."""


def table(name: str) -> list[dict[str, str]]:
    with (HERE / "tables" / name).open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if not row[next(iter(row))].startswith("#")]


def run(root: Path, *words: str, check: bool = True) -> str:
    ended = subprocess.run(words, cwd=root, capture_output=True, text=True)
    if check and ended.returncode:
        raise Stop(f"{' '.join(words)} failed:\n{ended.stdout[-6000:]}{ended.stderr[-3000:]}")
    return ended.stdout


def tracked(root: Path, *folders: str) -> list[str]:
    return run(root, "git", "ls-files", *folders).splitlines()


def exact(root: Path, entries: list[tuple], what: str) -> None:
    """Exact-match replacements: (path, old, new[, times])."""
    wrong = []
    for path, before, after, *times in entries:
        target = root / path
        text = target.read_text("utf-8") if target.is_file() else ""
        if text.count(before) != (times[0] if times else 1) and not (times == [ANY] and before in text):
            wrong.append(f"{path}: {text.count(before)} times, expected {times[0] if times else 1}:\n    {before[:200]!r}")
            continue
        target.write_text(text.replace(before, after), "utf-8")
    if wrong:
        raise Stop(f"{what}: these texts are not there (any more):\n" + "\n".join(wrong))


def regions(root: Path) -> None:
    """Sections of documents: (path, first line, the line behind, text)."""
    for path, first, behind, words in patches.REGIONS:
        target = root / path
        text = target.read_text("utf-8")
        if text.count(first) != 1 or text.count(behind) != 1:
            raise Stop(f"patches.REGIONS: {path} has not one {first!r} and one {behind!r}")
        start, end = text.index(first), text.index(behind)
        target.write_text(text[:start] + words + text[end:], "utf-8")


def main() -> None:
    root = Path(sys.argv[1]).resolve()
    package_only = "--package-only" in sys.argv
    if run(root, "git", "status", "--porcelain").strip():
        raise Stop(f"{root} is not clean")
    rows = [(r["old_path"], r["definitions"], r["new_path"]) for r in table("modules.tsv")]
    rows += [(r["old_path"], r["definitions"], r["new_path"]) for r in table("tests.tsv")]
    known = {old for old, _, _ in rows}
    present = {path for path in tracked(root, "vits_trainer", "tests", "experiments") if path.endswith(".py")}
    # Empty package files of tests are made anew.
    present -= {p for p in present if p.startswith(("tests/", "experiments/")) and p.endswith("__init__.py")}
    ours = {p for p in present if not any(fnmatch.fnmatch(p, pattern) for pattern in patches.LEFT_OUT)}
    if ours - known:
        raise Stop("no row in modules.tsv or tests.tsv for:\n  " + "\n  ".join(sorted(ours - known)))
    if known - present:
        raise Stop("rows of modules.tsv or tests.tsv for what is not there:\n  " + "\n  ".join(sorted(known - present)))
    layers = ast.parse((root / patches.LEFT_OUT[0]).read_text("utf-8"))
    found = {node.name for node in layers.body if isinstance(node, ast.FunctionDef)}
    if found != patches.LAYER_TESTS:
        raise Stop(f"{patches.LEFT_OUT[0]} has other tests than files/tests/test_package.py replaces: {found ^ patches.LAYER_TESTS}")
    for path, digest in patches.REPLACED.items():
        if hashlib.sha256((root / path).read_bytes()).hexdigest()[:16] != digest:
            raise Stop(f"{path} has changed: bring files/ up to date, and its digest in patches.REPLACED")
    exact(root, patches.BEFORE, "patches.BEFORE")
    docstrings = {dotted_of(r["new_path"]): r["docstring"].replace("\\n", "\n").replace('\\"', '"') for r in table("docstrings.tsv")}
    # A docstring of several lines ends on a line of its own.
    docstrings = {k: v + "\n" if "\n" in v else v for k, v in docstrings.items()}
    move = Move(root, rows, docstrings, patches.ALIASES, patches.PATCHED, patches.LOCALS)
    made = move.compose()
    for path, text in made.items():
        for match in re.finditer(r"^from (tests(?:\.\w+)*\.test_\w+) import (.*)", text, re.MULTILINE):
            move.errors.append(f"{path} imports {match[2]} from {match[1]}: place it in tests/support by tests.tsv")
    if move.errors:
        run(root, "git", "checkout", "-q", ".")
        raise Stop("not known:\n  " + "\n  ".join(sorted(set(move.errors))))
    move.write(made)
    for old, new in FILES.items():
        (root / new).parent.mkdir(parents=True, exist_ok=True)
        run(root, "git", "mv", old, new)
    for package, docstring in patches.PACKAGES.items():
        target = root / package / "__init__.py"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f'"""{docstring}"""\n' if docstring else "", "utf-8")
    for path in sorted((HERE / "files").rglob("*")):
        if path.is_file():
            target = root / path.relative_to(HERE / "files")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for path in patches.REMOVED:
        run(root, "git", "rm", "-q", "-f", path)
    for folder in patches.GONE:
        for path in tracked(root, folder):
            run(root, "git", "rm", "-q", "-f", path)
        shutil.rmtree(root / folder, ignore_errors=True)
    for folder in sorted({path.parent for path in (root / "tests").rglob("*.py")}):
        if folder != root / "tests/golden":
            (folder / "__init__.py").touch()
    run(root, "git", "add", "-A", "-N", ".")
    rewrite_texts(root, move)
    regions(root)
    exact(root, patches.AFTER, "patches.AFTER")
    run(root, "git", "add", "-A", "-N", ".")
    if "--no-ruff" not in sys.argv:
        ruff = str(root / ".venv/bin/ruff")
        run(root, ruff, "check", "--fix", "--quiet", check=False)
        run(root, ruff, "format", "--quiet", "vits_trainer")
    print(f"moved: {len(made)} files")


def rewrite_texts(root: Path, move: Move) -> None:
    """Mentions of modules and tests in everything that is not Python."""
    renamed = {old.path: move.new_paths[old.main] for old in move.old.values()} | FILES
    for path in tracked(root):
        target = root / path
        if not target.is_file() or target.suffix in (".png", ".json", ".svg") or path.startswith(".git"):
            continue
        text = before = target.read_text("utf-8")
        if not path.endswith(".py"):
            text = move._FROM.sub(lambda m: _statement(move, m), text)
            text = move._DOTTED.sub(lambda m: move.dotted(m[0], "docs"), text)
        text = re.sub(r"(?<![\w/])(?:vits_trainer|tests)(?:/\w+)*\.(?:py|html\.j2)\b", lambda m: renamed.get(m[0], m[0]), text)
        if text != before:
            target.write_text(text, "utf-8")


def _statement(move: Move, match: re.Match[str]) -> str:
    from engine import statements

    if match["module"] == "vits_trainer.text":  # printed into model cards: promised
        return match[0]
    return "; ".join(statements({move.resolve(match["module"], name, "docs") for name in match["names"].split(", ")}))


if __name__ == "__main__":
    main()
