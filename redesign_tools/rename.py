"""Renames in a moved checkout, by tables/renames.tsv: qualified, with mypy saying of what type each expression is.

    .venv/bin/python rename.py CHECKOUT [--dry] [--packages vits_trainer tests experiments]

Names of modules are resolved by imports, attributes by mypy's types; where a type is not known, an attribute is renamed
only if every one of known type is, and else listed. Stops on names that are not there, and on those that are taken.
"""

import ast
import csv
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import rename_patches as patches  # noqa: E402
from engine import _SCOPES, bindings, dotted_of, line_starts  # noqa: E402

ROOTS = ("vits_trainer", "tests", "experiments")


class Stop(SystemExit):
    """What cannot be done."""


def oracle(root: Path, files: list[str]) -> tuple[dict, dict]:
    """Of each file, the classes (in method resolution order) of the expression at each span; the orders of all classes."""
    from mypy import build
    from mypy.main import process_options
    from mypy.nodes import ClassDef, Expression, MemberExpr, NameExpr, TypeInfo
    from mypy.traverser import ExtendedTraverserVisitor
    from mypy.types import AnyType, CallableType, Instance, Overloaded, TupleType, TypeType, TypeVarType, UnionType, get_proper_type

    os.chdir(root)
    sources, options = process_options(["--check-untyped-defs", "--no-incremental", "--cache-dir", os.devnull, *files])
    options.export_types = True
    options.preserve_asts = True
    options.show_traceback = True
    result = build.build(sources, options)

    def owners(kind: object) -> tuple[frozenset[str], bool]:
        kind = get_proper_type(kind)
        if isinstance(kind, Instance):
            return frozenset(info.fullname for info in kind.type.mro), False
        if isinstance(kind, TupleType):
            return owners(kind.partial_fallback)
        if isinstance(kind, TypeType):
            return owners(kind.item)
        if isinstance(kind, TypeVarType):
            return owners(kind.upper_bound)
        if isinstance(kind, UnionType):
            found = [owners(item) for item in kind.items]
            return frozenset().union(*(names for names, _ in found)), any(unknown for _, unknown in found)
        if isinstance(kind, (CallableType, Overloaded)) and kind.is_type_obj():
            return frozenset(info.fullname for info in kind.type_object().mro), False
        return frozenset(), isinstance(kind, AnyType) or kind is None

    orders: dict[str, list[str]] = {}
    spans: dict[str, dict] = {}

    class Visitor(ExtendedTraverserVisitor):
        def __init__(self, table: dict) -> None:
            super().__init__()
            self.table = table

        def visit(self, node: object) -> bool:
            if isinstance(node, ClassDef) and isinstance(node.info, TypeInfo) and node.info.mro:
                orders[node.info.fullname] = [info.fullname for info in node.info.mro]
            if isinstance(node, Expression):
                kind = result.types.get(node)
                if kind is None and isinstance(node, NameExpr) and isinstance(node.node, TypeInfo):
                    found = (frozenset(info.fullname for info in node.node.mro), False)
                elif kind is not None:
                    found = owners(kind)
                else:
                    found = (frozenset(), True)
                key = (node.line, node.column, node.end_line, node.end_column)
                old = self.table.get(key)
                self.table[key] = found if old is None else (old[0] | found[0], old[1] and found[1])
            return True

    for name, tree in result.files.items():
        path = os.path.relpath(tree.path, root) if tree.path else ""
        if path.split("/")[0] in ROOTS:
            spans[path] = {}
            tree.accept(Visitor(spans[path]))
    return spans, orders


class File:
    """A file and its edits."""

    def __init__(self, root: Path, path: str) -> None:
        self.path, self.dotted = path, dotted_of(path)
        self.text = (root / path).read_text("utf-8")
        self.tree = ast.parse(self.text)
        self.starts = line_starts(self.text)
        self.lines = self.text.splitlines(keepends=True)
        self.parents = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}
        self.edits: dict[tuple[int, int], str] = {}
        self.defined = set()
        self.names: dict[str, str] = {}
        """Name of the module -> what it is, in full."""
        for node in self.tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                self.defined.add(node.name)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                self.defined |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        self.names |= {name: f"{self.dotted}.{name}" for name in self.defined}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for a in node.names:
                    self.names.setdefault(a.asname or a.name, f"{node.module}.{a.name}")
            elif isinstance(node, ast.Import):
                for a in node.names:
                    self.names.setdefault((a.asname or a.name).split(".")[0], a.name if a.asname else a.name.split(".")[0])

    def at(self, line: int, col: int) -> int:
        return self.starts[line - 1] + len(self.lines[line - 1].encode()[:col].decode())

    def edit(self, line: int, col: int, before: str, after: str) -> None:
        start = self.at(line, col)
        if self.text[start : start + len(before)] != before:
            raise Stop(f"{self.path}:{line}: {before} expected, {self.text[start:start + 30]!r} found")
        self.edits[start, start + len(before)] = after

    def scopes(self, node: ast.AST) -> list[ast.AST]:
        found = []
        while node in self.parents:
            child, node = node, self.parents[node]
            if isinstance(node, _SCOPES):
                arguments = getattr(node, "args", None)
                outside = child in getattr(node, "decorator_list", []) or child is getattr(node, "returns", None) or child is arguments
                if not outside:
                    found.append(node)
        return found

    def full(self, node: ast.AST) -> str | None:
        """What a name, or a module's attribute, is in full; None for locals and attributes of objects."""
        if isinstance(node, ast.Name):
            for scope in self.scopes(node):
                if node.id in bindings(scope):
                    imported = any(isinstance(n, (ast.Import, ast.ImportFrom)) and any((a.asname or a.name) == node.id for a in n.names) for n in ast.walk(scope))
                    if not imported:
                        return None
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            base = self.full(node.value)
            return f"{base}.{node.attr}" if base else None
        return None

    def result(self) -> str:
        parts, position = [], 0
        for (start, end), words in sorted(self.edits.items()):
            if start < position:
                raise Stop(f"{self.path}: two edits at one place: {self.text[start:end]!r}")
            parts += [self.text[position:start], words]
            position = end
        return "".join([*parts, self.text[position:]])


class Rename:
    """All renames of a tree."""

    def __init__(self, root: Path, rows: list[tuple[str, str, str]], dry: bool) -> None:
        self.root, self.dry = root, dry
        tracked = subprocess.run(["git", "ls-files", *ROOTS], cwd=root, capture_output=True, text=True, check=True).stdout.split()
        self.paths = [path for path in tracked if path.endswith(".py") and (root / path).is_file()]
        self.files = {path: File(root, path) for path in self.paths}
        self.by_dotted = {file.dotted: file for file in self.files.values()}
        self.problems: list[str] = []
        self.top: dict[str, str] = {}
        self.attributes: dict[tuple[str, str], str] = {}
        self.parameters: dict[tuple[str, str], str] = {}
        """(function in full, parameter) -> new."""
        for module, name, new in rows:
            self._row(f"vits_trainer.{module}", name, new)
        self.spans, self.orders = oracle(root, self.paths)
        self.unknown: list[tuple[File, ast.Attribute]] = []
        self.known: dict[str, set[str]] = defaultdict(set)

    def _row(self, module: str, name: str, new: str) -> None:
        file = self.by_dotted.get(module)
        if file is None:
            self.problems.append(f"no module {module}")
            return
        match = re.fullmatch(r"([\w.*]+)\((\w+)\)", name)
        if match:
            functions = self._functions(file)
            chosen = functions if match[1] == "*" else {match[1]: functions.get(match[1])}
            found = False
            for qualified, node in chosen.items():
                arguments = node.args if node is not None else None
                if arguments and match[2] in {a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]}:
                    self.parameters[f"{module}.{qualified}", match[2]] = new
                    found = True
            if not found:
                self.problems.append(f"{module} has no {name}")
            return
        owner, _, attribute = name.rpartition(".")
        if not owner:
            if name not in file.defined:
                self.problems.append(f"{module} has no {name}")
            elif new in file.names and new not in {n for _, n in []}:
                self.problems.append(f"{module}: {new} is taken (for {name})")
            self.top[f"{module}.{name}"] = new
            return
        (classes,) = [[n for n in file.tree.body if isinstance(n, ast.ClassDef) and n.name == owner]]
        if not classes or attribute not in members(classes[0]):
            self.problems.append(f"{module} has no {name}")
        elif new in members(classes[0]) and not new.startswith("__"):
            self.problems.append(f"{module}: {owner}.{new} is taken (for {attribute})")
        self.attributes[f"{module}.{owner}", attribute] = new

    @staticmethod
    def _functions(file: File) -> dict[str, ast.FunctionDef]:
        found = {n.name: n for n in file.tree.body if isinstance(n, ast.FunctionDef)}
        for cls in file.tree.body:
            if isinstance(cls, ast.ClassDef):
                found |= {f"{cls.name}.{n.name}": n for n in cls.body if isinstance(n, ast.FunctionDef)}
        return found

    def attribute_of(self, owners: frozenset[str] | list[str], attribute: str) -> set[str]:
        return {self.attributes[owner, attribute] for owner in owners if (owner, attribute) in self.attributes}

    def run(self) -> None:
        self.renamed_attributes = {attribute for _, attribute in self.attributes}
        self.renamed_parameters = {parameter for _, parameter in self.parameters}
        for file in self.files.values():
            self._file(file)
        self._unknown()
        for file in self.files.values():
            self._taken(file)
        if self.problems:
            raise Stop("\n".join(sorted(set(self.problems))))
        if not self.dry:
            for file in self.files.values():
                if file.edits:
                    (self.root / file.path).write_text(file.result(), "utf-8")

    def _file(self, file: File) -> None:
        spans = self.spans.get(file.path, {})

        def owners(node: ast.AST) -> tuple[frozenset[str], bool]:
            full = file.full(node)
            if full in self.orders:
                return frozenset(self.orders[full]), False
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super":
                cls = next((n for n in ancestors(file, node) if isinstance(n, ast.ClassDef)), None)
                return frozenset(self.orders.get(f"{file.dotted}.{cls.name}", [])) if cls else frozenset(), False
            return spans.get((node.lineno, node.col_offset, node.end_lineno, node.end_col_offset), (frozenset(), True))

        for node in ast.walk(file.tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for a in node.names:
                    new = self.top.get(f"{node.module}.{a.name}")
                    if new:
                        file.edit(a.lineno, a.col_offset, a.name, new)
            elif isinstance(node, ast.Name):
                full = file.full(node)
                if full in self.top and file.names.get(node.id) == full and node.id == full.rpartition(".")[2]:
                    file.edit(node.lineno, node.col_offset, node.id, self.top[full])
            elif isinstance(node, ast.Attribute):
                self._attribute(file, node, owners)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self._function(file, node)
            elif isinstance(node, ast.ClassDef):
                self._class(file, node)
            elif isinstance(node, ast.Call):
                self._call(file, node, owners)
        for token in re.finditer(r'"vits_trainer(?:\.\w+)+"', file.text):
            self._dotted(file, token.start() + 1, token[0][1:-1])
        self._quoted(file)
        self._roles(file)

    def _attribute(self, file: File, node: ast.Attribute, owners: object) -> None:
        full = file.full(node)
        if full in self.top:
            file.edit(node.end_lineno, node.end_col_offset - len(node.attr.encode()), node.attr, self.top[full])
            return
        if node.attr not in self.renamed_attributes:
            return
        classes, unknown = owners(node.value)
        new = self.attribute_of(classes, node.attr)
        if len(new) > 1:
            self.problems.append(f"{file.path}:{node.lineno}: {ast.unparse(node)} is of several classes: {new}")
        elif new:
            self._set_attribute(file, node, *new)
            self.known[node.attr] |= new
        elif unknown or not classes:
            self.unknown.append((file, node))
        else:
            self.known[node.attr].add("")

    def _set_attribute(self, file: File, node: ast.Attribute, new: str) -> None:
        if new == "__call__":  # step.take(...) -> step(...)
            start = file.at(node.value.end_lineno, node.value.end_col_offset)
            end = file.at(node.end_lineno, node.end_col_offset)
            parent = file.parents.get(node)
            if isinstance(parent, ast.Call) and parent.func is node:
                file.edits[start, end] = ""
                return
        file.edit(node.end_lineno, node.end_col_offset - len(node.attr.encode()), node.attr, new)

    def _unknown(self) -> None:
        """Attributes of what mypy does not know."""
        for file, node in self.unknown:
            said = patches.UNKNOWN.get((file.path, ast.unparse(node)), patches.UNKNOWN.get(("*", node.attr)))
            news = self.known[node.attr]
            if said is not None:
                if said:
                    self._set_attribute(file, node, said)
            elif len(news) == 1 and "" not in news:
                self._set_attribute(file, node, next(iter(news)))
            else:
                self.problems.append(f"{file.path}:{node.lineno}: {ast.unparse(node)} has no known type: say in UNKNOWN")

    def _function(self, file: File, node: ast.FunctionDef) -> None:
        parent = file.parents[node]
        qualified = f"{file.dotted}.{parent.name}.{node.name}" if isinstance(parent, ast.ClassDef) else f"{file.dotted}.{node.name}"
        new = None
        if isinstance(parent, ast.ClassDef):
            found = self.attribute_of(self.orders.get(f"{file.dotted}.{parent.name}", [f"{file.dotted}.{parent.name}"]), node.name)
            new = next(iter(found), None)
        elif isinstance(parent, ast.Module):
            new = self.top.get(qualified)
        if new:
            match = re.compile(rf"def\s+({node.name})\b").search(file.text, file.at(node.lineno, node.col_offset))
            file.edits[match.start(1), match.end(1)] = new
        for (function, parameter), renamed in self.parameters.items():
            if function == qualified or (isinstance(parent, ast.ClassDef) and self._overrides(file, parent, node, function)):
                self._parameter(file, node, parameter, renamed)

    def _overrides(self, file: File, cls: ast.ClassDef, node: ast.FunctionDef, function: str) -> bool:
        owner, _, name = function.rpartition(".")
        return name == node.name and name != "__init__" and owner in self.orders.get(f"{file.dotted}.{cls.name}", [])

    def _parameter(self, file: File, function: ast.FunctionDef, old: str, new: str) -> None:
        if new in bindings(function):
            self.problems.append(f"{file.path}:{function.lineno}: {function.name}: {new} is taken (for the parameter {old})")
        arguments = function.args
        for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
            if argument.arg == old:
                file.edit(argument.lineno, argument.col_offset, old, new)
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and node.id == old:
                inner = [scope for scope in file.scopes(node) if scope is not function]
                inner = inner[: inner.index(function)] if function in inner else inner
                between = []
                for scope in file.scopes(node):
                    if scope is function:
                        break
                    between.append(scope)
                if not any(old in bindings(scope) for scope in between):
                    file.edit(node.lineno, node.col_offset, old, new)
        docstring = ast.get_docstring(function, clean=False)
        if docstring:
            constant = function.body[0].value
            start, end = file.at(constant.lineno, constant.col_offset), file.at(constant.end_lineno, constant.end_col_offset)
            for match in re.finditer(rf"(?m)(?:^\s+({old}): )|``({old})``", file.text[start:end]):
                group = 1 if match[1] else 2
                file.edits[start + match.start(group), start + match.end(group)] = new

    def _class(self, file: File, node: ast.ClassDef) -> None:
        full = f"{file.dotted}.{node.name}"
        if isinstance(file.parents[node], ast.Module) and full in self.top:
            match = re.compile(rf"class\s+({node.name})\b").search(file.text, file.at(node.lineno, node.col_offset))
            file.edits[match.start(1), match.end(1)] = self.top[full]
        order = self.orders.get(full, [full])
        for statement in node.body:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target] if isinstance(statement, ast.AnnAssign) else []
            for target in targets:
                if isinstance(target, ast.Name):
                    for new in self.attribute_of(order, target.id):
                        file.edit(target.lineno, target.col_offset, target.id, new)

    def _call(self, file: File, node: ast.Call, owners: object) -> None:
        full = file.full(node.func)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for keyword in node.keywords:
            if keyword.arg is None or keyword.arg not in self.renamed_attributes | self.renamed_parameters:
                continue
            new: set[str] = set()
            if full in self.orders:
                for cls in self.orders[full]:
                    new |= self.attribute_of([cls], keyword.arg) if not self._has_init(cls) else set()
                    if (f"{cls}.__init__", keyword.arg) in self.parameters:
                        new.add(self.parameters[f"{cls}.__init__", keyword.arg])
            elif full in ("dataclasses.replace", "copy.replace") and node.args:
                new = self.attribute_of(owners(node.args[0])[0], keyword.arg)
            elif (full, keyword.arg) in self.parameters:
                new = {self.parameters[full, keyword.arg]}
            elif isinstance(node.func, ast.Attribute):
                classes, unknown = owners(node.func.value)
                new = {self.parameters[f"{cls}.{name}", keyword.arg] for cls in classes if (f"{cls}.{name}", keyword.arg) in self.parameters}
                if name == "_replace":
                    new = self.attribute_of(classes, keyword.arg)
                if unknown and not new and any(function.endswith(f".{name}") and p == keyword.arg for function, p in self.parameters):
                    self.problems.append(f"{file.path}:{node.lineno}: {ast.unparse(node.func)}({keyword.arg}=): not known of what")
            elif name == "cls":
                cls = next((n for n in ancestors(file, node) if isinstance(n, ast.ClassDef)), None)
                if cls is not None:
                    new = self.attribute_of(self.orders.get(f"{file.dotted}.{cls.name}", []), keyword.arg)
            if len(new) == 1:
                file.edit(keyword.lineno, keyword.col_offset, keyword.arg, *new)
        if name in ("setattr", "delattr", "object", "getattr", "hasattr") and len(node.args) >= 2:
            target, constant = node.args[:2]
            if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                full = file.full(target)
                new = self.top.get(f"{full}.{constant.value}")
                if not new and constant.value in self.renamed_attributes:
                    new = next(iter(self.attribute_of(owners(target)[0], constant.value)), None)
                if new:
                    file.edit(constant.lineno, constant.col_offset + 1, constant.value, new)

    def _has_init(self, cls: str) -> bool:
        module, _, name = cls.rpartition(".")
        file = self.by_dotted.get(module)
        node = next((n for n in file.tree.body if isinstance(n, ast.ClassDef) and n.name == name), None) if file else None
        return node is not None and any(isinstance(n, ast.FunctionDef) and n.name == "__init__" for n in node.body)

    def _dotted(self, file: File, start: int, words: str) -> None:
        parts = words.split(".")
        for size in range(len(parts) - 1, 1, -1):
            module = ".".join(parts[:size])
            if module in self.by_dotted:
                name, rest = parts[size], parts[size + 1 :]
                full = self.by_dotted[module].names.get(name, f"{module}.{name}")
                made = [self.top.get(full, name)]
                if rest:
                    made += [next(iter(self.attribute_of(self.orders.get(full, []), rest[0])), rest[0]), *rest[1:]]
                new = ".".join([module, *made])
                if new != words:
                    file.edits[start, start + len(words)] = new
                return

    def _quoted(self, file: File) -> None:
        """Annotations in quotes."""
        for node in ast.walk(file.tree):
            parts = []
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                arguments = node.args
                every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
                parts = [node.returns, *(a.annotation for a in every if a)]
            elif isinstance(node, ast.AnnAssign):
                parts = [node.annotation]
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "cast":
                parts = node.args[:1]
            for part in filter(None, parts):
                for constant in ast.walk(part):
                    if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                        start = file.at(constant.lineno, constant.col_offset)
                        end = file.at(constant.end_lineno, constant.end_col_offset)
                        for match in re.finditer(r"(?<![\w.])\w+", file.text[start:end]):
                            new = self.top.get(file.names.get(match[0], ""))
                            if new:
                                file.edits[start + match.start(), start + match.end()] = new

    def _roles(self, file: File) -> None:
        """``:class:`Name``` and ````name```` in docstrings and comments."""
        for match in re.finditer(r":(?:class|func|meth|attr|data|mod):`~?([\w.]+)`|(?<!`)``([\w.]+)``(?!`)", file.text):
            words, start = (match[1], match.start(1)) if match[1] else (match[2], match.start(2))
            if (start, start + len(words)) in file.edits:
                continue
            first, *rest = words.split(".")
            if words.startswith("vits_trainer."):
                self._dotted(file, start, words)
                continue
            full = file.names.get(first, "")
            made = [self.top.get(full, first)]
            if rest:
                made += [next(iter(self.attribute_of(self.orders.get(full, []), rest[0])), self.top.get(f"{full}.{rest[0]}", rest[0])), *rest[1:]]
            elif match[1] and made == [first]:
                news = {new for (cls, attribute), new in self.attributes.items() if attribute == first and cls.startswith(f"{file.dotted}.")}
                made = [*news] if len(news) == 1 else made
            new = ".".join(made)
            if new != words and not any(a <= start < b for a, b in file.edits):
                file.edits[start, start + len(words)] = new

    def _taken(self, file: File) -> None:
        """New names that a file has for something else."""
        imported = {new for name, full in file.names.items() if (new := self.top.get(full)) and name == full.rpartition(".")[2]}
        stored = {n.id for n in ast.walk(file.tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        arguments = {n.arg for n in ast.walk(file.tree) if isinstance(n, ast.arg)}
        for new in imported:
            old_meaning = file.names.get(new)
            if old_meaning and old_meaning not in self.top:
                self.problems.append(f"{file.path}: {new} is {old_meaning} there")
            elif new in stored | arguments and old_meaning is None:
                self.problems.append(f"{file.path}: {new} is a local name there")


def members(cls: ast.ClassDef) -> set[str]:
    found = set()
    for node in cls.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.add(node.name)
            for inner in ast.walk(node):
                if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store) and getattr(inner.value, "id", "") == "self":
                    found.add(inner.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Assign):
            found |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    return found


def ancestors(file: File, node: ast.AST) -> list[ast.AST]:
    found = []
    while node in file.parents:
        node = file.parents[node]
        found.append(node)
    return found


def main() -> None:
    root = Path(sys.argv[1]).resolve()
    dry = "--dry" in sys.argv
    with (HERE / "tables/renames.tsv").open(encoding="utf-8") as file:
        rows = [(r["module"], r["name"], r["new"]) for r in csv.DictReader(file, delimiter="\t")]
    rename = Rename(root, rows, dry)
    rename.run()
    from move import exact

    if not dry:
        exact(root, patches.AFTER, "rename_patches.AFTER")
        ruff = str(root / ".venv/bin/ruff")
        subprocess.run([ruff, "check", "--fix", "--quiet"], cwd=root, check=False)
        subprocess.run([ruff, "format", "--quiet", "vits_trainer"], cwd=root, check=True)
    print(f"renamed: {sum(len(f.edits) for f in rename.files.values())} places in {sum(bool(f.edits) for f in rename.files.values())} files")


if __name__ == "__main__":
    main()
