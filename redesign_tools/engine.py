"""Moves, splits and merges modules by table: source slices, so that every line of logic and every comment stays.

Reads the old tree whole, computes the new files, and only then writes. Stops, with a list, on whatever it does not know.
"""

import ast
import fnmatch
import re
import subprocess
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

REST = {"*", "(the rest)"}
COPIED = {"logger"}
"""Definitions that every piece which uses them gets its own copy of, besides TypeVars."""


class Stop(SystemExit):
    """What the tables do not say."""


def dotted_of(path: str) -> str:
    dotted = path.removesuffix(".py").replace("/", ".")
    return dotted.removesuffix(".__init__")


def path_of(dotted: str) -> str:
    return dotted.replace(".", "/") + ".py"


def line_starts(text: str) -> list[int]:
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts


@dataclass
class Segment:
    """A top-level statement with the comments above it."""

    start: int
    end: int
    nodes: list[ast.stmt]
    names: set[str]
    kind: str
    blank: int = 1


@dataclass
class Old:
    """A module as it is."""

    path: str
    dotted: str
    text: str
    rows: list[tuple[set[str], str]]
    """(definitions or REST, new dotted)."""
    tree: ast.Module = field(init=False)
    segments: list[Segment] = field(init=False)
    imports: dict[str, tuple[str, str | None]] = field(init=False)
    """Local name -> (module, name) of top-level and nested imports."""
    where: dict[str, list[str]] = field(init=False)
    """Definition -> new dotted modules."""

    def __post_init__(self) -> None:
        self._expand()
        self.tree = ast.parse(self.text)
        self._starts = line_starts(self.text)
        self._lines = self.text.splitlines(keepends=True)
        self.parents = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}
        self.segments = self._split()
        self.imports = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom):
                end = self.span(node)[1]
                tail = self.text[end : self.text.find("\n", end)]
                for alias in node.names:
                    self.imports[alias.asname or alias.name] = (node.module, alias.name)
                    if "type: ignore" in tail and node.module.split(".")[0] not in ("vits_trainer", "tests"):
                        COMMENTS[node.module, alias.name] = tail
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    self.imports[alias.asname or alias.name.split(".")[0]] = (alias.name, None)
        self._place()

    def _expand(self) -> None:
        """Patterns of names as the names that they are of."""
        bound = set().union(*(names_bound(node) for node in ast.parse(self.text).body))
        expanded = []
        for names, new in self.rows:
            found = set()
            for name in names:
                matching = fnmatch.filter(bound, name) if "*" in name and name not in REST else [name]
                if not matching:
                    raise Stop(f"{self.path}: nothing is called {name}, which the tables name")
                found |= set(matching)
            expanded.append((found, new))
        self.rows = expanded

    def at(self, lineno: int, col: int) -> int:
        line = self._lines[lineno - 1]
        return self._starts[lineno - 1] + len(line.encode()[:col].decode())

    def span(self, node: ast.AST) -> tuple[int, int]:
        return self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset)

    def line_span(self, first: int, last: int) -> tuple[int, int]:
        return self._starts[first - 1], self._starts[last]

    def _split(self) -> list[Segment]:
        segments: list[Segment] = []
        previous = 0  # last line of what came before
        for index, node in enumerate(self.tree.body):
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            is_string = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
            if is_string and index == 0:
                kind = "docstring"
            elif is_string and segments and segments[-1].kind == "constant":
                segments[-1].end = self.line_span(first, node.end_lineno)[1]
                segments[-1].nodes.append(node)
                previous = node.end_lineno
                continue
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                kind = "import"
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                kind = "definition"
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                kind = "constant"
            else:
                kind = "other"
            while first - 1 > previous and self._lines[first - 2].lstrip().startswith("#"):
                first -= 1
            blank = 0
            while first - 1 - blank > previous and not self._lines[first - 2 - blank].strip():
                blank += 1
            if first - 1 - blank > previous:  # comments with a blank line below them
                first = previous + 1
                while not self._lines[first - 1].strip():
                    first += 1
            start, end = self.line_span(first, node.end_lineno)
            segments.append(Segment(start, end, [node], names_bound(node), kind, blank))
            previous = node.end_lineno
        return segments

    def _followers(self) -> dict[int, list[str]]:
        """Helpers of tests go where their users go; what several use, and is no line of its own, the tables must place."""
        homes: dict[int, list[str]] = {}
        helpers = []
        for segment in self.segments:
            if segment.kind in ("docstring", "import"):
                continue
            listed = [new for names, new in self.rows if segment.names & names]
            node = segment.nodes[0]
            is_test = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name.lower().startswith("test")
            if listed or is_test or segment.kind == "other":
                homes[segment.start] = listed or [self.main]
            else:
                helpers.append(segment)
        for _ in range(len(helpers)):  # until nothing changes
            for helper in helpers:
                users = []
                for segment in self.segments:
                    if segment is not helper and (names_used(segment.nodes) | asked_for(segment)) & helper.names:
                        users += homes.get(segment.start, [])
                homes[helper.start] = list(dict.fromkeys(users))
        for helper in helpers:
            users = homes[helper.start]
            is_line = helper.kind == "constant" and self.text.count("\n", helper.start, helper.end) <= 2
            if len(users) > 1 and not is_line:
                raise Stop(f"{self.path}: {sorted(helper.names)} is used in {users}: place it in tests.tsv")
            if not users:
                homes[helper.start] = [new for new in self.pieces if new.rpartition(".")[2].startswith("test_")] if helper.names == {"pytestmark"} else [self.main]
        return homes

    def _place(self) -> None:
        listed = set().union(*(names for names, _ in self.rows if not names & REST)) if self.rows else set()
        rest = [new for names, new in self.rows if names & REST]
        if len(rest) != 1:
            raise Stop(f"{self.path}: the tables have {len(rest)} rows for the rest")
        self.main = rest[0]
        bound = set().union(*(segment.names for segment in self.segments if segment.kind in ("definition", "constant")))
        lacking = listed - bound - {"entry"}
        if lacking:
            raise Stop(f"{self.path}: the tables name {sorted(lacking)}, which it does not define")
        self.where = {}
        self.pieces: dict[str, list[Segment]] = {new: [] for _, new in self.rows}
        followed = self._followers() if self.path.startswith("tests/") and len(self.pieces) > 1 else {}
        for segment in self.segments:
            if segment.kind in ("docstring", "import"):
                continue
            homes = [new for names, new in self.rows if segment.names & names]
            segment_homes = homes or followed.get(segment.start) or [self.main]
            for new in segment_homes:
                self.pieces[new].append(segment)
            for name in segment.names:
                self.where[name] = segment_homes
        for segment in self.segments:
            if segment.kind == "constant" and (segment.names & COPIED or _is_typevar(segment)):
                name = next(iter(segment.names))
                homes = [new for new, own in self.pieces.items() if any(uses(s, name) for s in own if s is not segment)]
                if not homes:
                    continue
                for new, own in self.pieces.items():
                    if new in homes and segment not in own:
                        own.append(segment)
                        own.sort(key=lambda s: s.start)
                    elif new not in homes and segment in own:
                        own.remove(segment)
                self.where[name] = homes
        for name in self.imports.keys() & self.where.keys():
            self.imports.pop(name) if not _is_nested(self, name) else None


def is_fixture(node: ast.stmt) -> bool:
    return any("fixture" in ast.unparse(d) for d in getattr(node, "decorator_list", []) if "usefixtures" not in ast.unparse(d))


def asked_for(segment: Segment) -> set[str]:
    """Fixtures that a test or a fixture asks for."""
    asked = set()
    for node in segment.nodes:
        if isinstance(node, ast.FunctionDef) and (node.name.startswith("test_") or is_fixture(node)):
            asked |= {argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]}
    return asked


def _is_nested(old: Old, name: str) -> bool:
    return False


def _is_typevar(segment: Segment) -> bool:
    value = getattr(segment.nodes[0], "value", None)
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in ("TypeVar", "ParamSpec")


def names_bound(node: ast.stmt) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, ast.AnnAssign):
        return {node.target.id} if isinstance(node.target, ast.Name) else set()
    if isinstance(node, ast.Assign):
        return {
            n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
    return set()


_QUOTED = re.compile(r"[A-Za-z_][\w\[\], .|']*")


_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def bindings(scope: ast.AST) -> set[str]:
    """Names that a function, or a comprehension, has for itself."""
    bound = set()
    arguments = getattr(scope, "args", None)
    if isinstance(arguments, ast.arguments):
        every = [*arguments.args, *arguments.posonlyargs, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        bound |= {argument.arg for argument in every if argument is not None}
    todo = list(ast.iter_child_nodes(scope))
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {(a.asname or a.name).split(".")[0] for a in node.names}
        elif isinstance(node, ast.Global):
            bound -= set(node.names)
        if not isinstance(node, _SCOPES):
            todo += ast.iter_child_nodes(node)
    return bound


def names_used(nodes: list[ast.AST]) -> set[str]:
    """Names that nodes read from their module, in quoted annotations too."""
    used: set[str] = set()

    def visit(node: ast.AST, own: frozenset[str], quoted: bool = False) -> None:
        if isinstance(node, ast.Name):
            if node.id not in own:
                used.add(node.id)
        elif isinstance(node, ast.Constant) and quoted and isinstance(node.value, str):
            used.update(re.findall(r"(?<![.\w])[A-Za-z_]\w*", node.value))
        if isinstance(node, _SCOPES):
            outside: list[tuple[ast.AST | None, bool]] = [(part, False) for part in getattr(node, "decorator_list", [])]
            arguments = getattr(node, "args", None)
            if isinstance(arguments, ast.arguments):
                every = [*arguments.args, *arguments.posonlyargs, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
                outside += [(part, False) for part in [*arguments.defaults, *arguments.kw_defaults]]
                outside += [(argument.annotation, True) for argument in every if argument is not None]
                outside.append((getattr(node, "returns", None), True))
            for part, is_annotation in outside:
                if part is not None:
                    visit(part, own, is_annotation)
            inner = own | bindings(node)
            done = {id(part) for part, _ in outside if part is not None}
            for child in ast.iter_child_nodes(node):
                if id(child) not in done and not isinstance(child, ast.arguments):
                    visit(child, inner)
            return
        is_cast = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("cast", "TypeVar")
        for child in ast.iter_child_nodes(node):
            annotates = isinstance(node, ast.AnnAssign) and child is node.annotation
            bases = isinstance(node, ast.Subscript) and quoted
            visit(child, own, quoted and not isinstance(node, ast.Call) or annotates or is_cast or bases)

    for root in nodes:
        visit(root, frozenset())
    return used


def uses(segment: Segment, name: str) -> bool:
    return name in names_used(segment.nodes)


def load_time_names(segment: Segment) -> set[str]:
    """Names that are looked up when the module is loaded."""
    used: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            if not isinstance(node, ast.Lambda):
                for part in [*node.decorator_list, node.returns]:
                    if part is not None:
                        visit(part)
            arguments = node.args
            for part in [*arguments.defaults, *arguments.kw_defaults]:
                if part is not None:
                    visit(part)
            for argument in [*arguments.args, *arguments.posonlyargs, *arguments.kwonlyargs]:
                if argument.annotation is not None:
                    visit(argument.annotation)
            return
        if isinstance(node, ast.Name):
            used.add(node.id)
        for child in ast.iter_child_nodes(node):
            visit(child)

    for node in segment.nodes:
        visit(node)
    return used


def local_scopes(old: Old, node: ast.AST) -> list[ast.AST]:
    scopes = []
    while node in old.parents:
        node = old.parents[node]
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            scopes.append(node)
    return scopes


def bound_in(scope: ast.AST, name: str) -> bool:
    arguments = getattr(scope, "args", None)
    if isinstance(arguments, ast.arguments):
        every = [*arguments.args, *arguments.posonlyargs, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        if any(argument is not None and argument.arg == name for argument in every):
            return True
    return any(isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Store) for n in ast.walk(scope))


Spec = tuple[str, str | None, str]
"""(module, name or None for the module itself, local name)."""


def statement(spec_module: str, names: list[tuple[str, str]]) -> str:
    parts = [name if name == local else f"{name} as {local}" for name, local in sorted(names)]
    return f"from {spec_module} import {', '.join(parts)}"


COMMENTS: dict[tuple[str, str], str] = {}
"""What stands behind an import of another package, as a type: ignore; by module and name."""


def statements(specs: set[Spec]) -> list[str]:
    commented = {spec for spec in specs if spec[1] is not None and (spec[0], spec[1]) in COMMENTS}
    if commented and commented != specs:
        return [*statements(specs - commented), *(line for spec in sorted(commented) for line in statements({spec}))]
    if commented:
        return [statement(m, [(n, local)]) + COMMENTS[m, n] for m, n, local in sorted(commented)]
    grouped: dict[str, list[tuple[str, str]]] = defaultdict(list)
    plain = []
    for module, name, local in specs:
        if name is None:
            if module.split(".")[0] == local:
                plain.append(f"import {module}")
            else:
                plain.append(f"import {module} as {local}")
        else:
            grouped[module].append((name, local))
    return [*sorted(plain), *(statement(module, names) for module, names in sorted(grouped.items()))]


class Move:
    """The whole move of one tree."""

    def __init__(self, root: Path, rows: list[tuple[str, str, str]], docstrings: dict[str, str], aliases: dict, patched: dict, local_names: dict) -> None:
        """Rows: (old path, definitions, new path)."""
        self.root, self.docstrings, self.aliases, self.patched, self.locals = root, docstrings, aliases, patched, local_names
        self.errors: list[str] = []
        by_path: dict[str, list[tuple[set[str], str]]] = defaultdict(list)
        for old_path, definitions, new_path in rows:
            by_path[old_path].append(({d.strip() for d in definitions.split(",")}, dotted_of(new_path)))
        self.new_paths = {dotted_of(new): new for _, _, new in rows}
        self.old: dict[str, Old] = {}
        for old_path, own in by_path.items():
            text = (root / old_path).read_text("utf-8")
            self.old[dotted_of(old_path)] = Old(old_path, dotted_of(old_path), text, own)
        self.packages = {parent for dotted in self.new_paths for parent in _parents(dotted)}

    # --- what is where

    def resolve(self, module: str, name: str, importer: str) -> Spec:
        """``from module import name``, in the new tree."""
        whole = f"{module}.{name}"
        if whole in self.old:
            return self.module_spec(self.old[whole].main, importer)
        old = self.old.get(module)
        if old is None:
            return (module, name, name)
        if name in old.where:
            homes = old.where[name]
            home = importer if importer in homes else homes[0]
            return (home, name, name)
        if name in old.imports:
            inner, inner_name = old.imports[name]
            if inner_name is None:
                return (inner, None, name)
            return self.resolve(inner, inner_name, importer)
        if name == "__version__":
            return (module, name, name)
        self.errors.append(f"{importer}: from {module} import {name}: there is no such name")
        return (module, name, name)

    def module_spec(self, dotted: str, importer: str) -> Spec:
        package, _, base = dotted.rpartition(".")
        return (package, base, self.aliases.get((importer, dotted)) or self.aliases.get(dotted) or base)

    def patch_home(self, importer: str, module: str, name: str) -> str:
        """Where a test that replaces ``module.name`` must now replace it: where those look it up that did."""
        key = (importer, module, name)
        if key in self.patched:
            return self.patched[key]
        old = self.old[module]
        readers = [new for new, own in old.pieces.items() if any(name in names_used(s.nodes) and name not in s.names for s in own)]
        homes = old.where.get(name, [])
        if len(readers) > 1 or (not readers and not homes):
            self.errors.append(f"{importer}: replaces {module}.{name}, which {readers or 'nobody'} read: say which in PATCHED")
            return old.main
        return (readers or homes)[0]

    # --- the text of a piece

    def edits(self, old: Old, new: str) -> tuple[list[tuple[int, int, str]], dict[int, set[Spec]]]:
        """Replacements in the old text but for top-level imports; by segment (its start), the imports that it needs."""
        edits: list[tuple[int, int, str]] = []
        needs: dict[int, set[Spec]] = defaultdict(set)
        is_test = not new.startswith("vits_trainer")
        modules = {}
        """Local name of an old module -> its dotted name."""
        for local, (module, name) in old.imports.items():
            if name is not None and f"{module}.{name}" in self.old:
                modules[local] = f"{module}.{name}"
        import_spans = []
        own_bound = old.where.keys() | {a.arg for a in ast.walk(old.tree) if isinstance(a, ast.arg)}
        own_bound |= {n.id for n in ast.walk(old.tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        for node in ast.walk(old.tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                import_spans.append(old.span(node))
        for segment in old.pieces[new]:
            used = names_used(segment.nodes)
            for name in asked_for(segment) if old.dotted.startswith("tests.") else ():
                if name in old.where and new not in old.where[name]:
                    needs[segment.start].add((old.where[name][0], name, name))
                    COMMENTS[old.where[name][0], name] = "  # noqa: F401 - a fixture"
            for name in used:
                if name in old.where and new not in old.where[name]:
                    local = self.locals.get((new, name), name)
                    needs[segment.start].add((old.where[name][0], name, local))
                    if local != name:
                        for root in segment.nodes:
                            edits += [(*old.span(n), local) for n in ast.walk(root) if isinstance(n, ast.Name) and n.id == name]
            done = set()
            for root in segment.nodes:
                for node in ast.walk(root):
                    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("vits_trainer", "tests"):
                        specs = set()
                        for a in node.names:
                            if f"{node.module}.{a.name}" in self.old and not a.asname:
                                # Every module that the function now needs for it.
                                scope = local_scopes(old, node)[0]
                                for use in ast.walk(scope):
                                    if isinstance(use, ast.Name) and use.id == a.name:
                                        specs.add(self.module_spec(self.alias_target(old, new, use, f"{node.module}.{a.name}"), old.dotted))
                            else:
                                specs.add(self._with_alias(self.resolve(node.module, a.name, new), a))
                        specs = {spec for spec in specs if spec[0] != new}
                        start, end = old.span(node)
                        tail = old.text[end : old.text.index("\n", end)] if "\n" in old.text[end:] else ""
                        indent = " " * node.col_offset
                        edits.append((start, end, f"{tail}\n{indent}".join(statements(specs))))
                    if not (isinstance(node, ast.Name) and node.id in modules) or node in done:
                        continue
                    done.add(node)
                    if any(bound_in(scope, node.id) for scope in local_scopes(old, node)):
                        continue
                    parent = old.parents[node]
                    module = modules[node.id]
                    target = self.alias_target(old, new, node, module)
                    direct = self.aliases.get((old.dotted, target)) == ""
                    if isinstance(parent, ast.Attribute) and (target == new or direct):
                        edits.append((old.span(node)[0], old.span(parent)[1], parent.attr))
                        if target != new:
                            needs[segment.start].add((target, parent.attr, parent.attr))
                        continue
                    spec = self.module_spec(target, old.dotted)
                    nested = [n for n in ast.walk(old.tree) if isinstance(n, ast.ImportFrom) and n.col_offset and any((a.asname or a.name) == node.id for a in n.names)]
                    local = spec[2]
                    renamed = old.imports[node.id][1] != node.id
                    if local != node.id and not renamed and (local in own_bound or local in names_used([old.tree]) - modules.keys()):
                        self.errors.append(f"{old.path}: the name of {target} is taken there: an alias, please")
                    if renamed:  # import m as x: x stays
                        local = node.id
                    if not nested:
                        needs[segment.start].add((spec[0], spec[1], local))
                    if local != node.id:
                        edits.append((*old.span(node), local))
            for name in used & old.imports.keys():
                module, inner = old.imports[name]
                if name in modules:
                    continue
                if inner is None:
                    needs[segment.start].add((module, None, name))
                else:
                    spec = self.resolve(module, inner, new)
                    if spec[0] != new:
                        local = self.locals.get((new, name), name)
                        needs[segment.start].add((spec[0], spec[1], local))
                        if local != name:
                            for root in segment.nodes:
                                edits += [(*old.span(n), local) for n in ast.walk(root) if isinstance(n, ast.Name) and n.id == name]
            start, end = segment.start, segment.end
            edits += self.text_edits(old.text, start, end, old.dotted, new, import_spans)
            edits += self.depth_edits(old, new, start, end)
        return sorted(set(edits)), needs

    def alias_target(self, old: Old, new: str, node: ast.Name, module: str) -> str:
        """The new module that ``node``, an old module's name, must mean where it stands."""
        parent = old.parents[node]
        target = self.old[module].main
        if isinstance(parent, ast.Attribute):
            if parent.attr in self.old[module].where:
                homes = self.old[module].where[parent.attr]
                return new if new in homes else homes[0]
            if parent.attr in self.old[module].imports:
                return self.patch_home(old.dotted, module, parent.attr)
            if parent.attr not in ("__file__", "__name__"):
                self.errors.append(f"{old.path}:{node.lineno}: {module} has no {parent.attr}")
        elif isinstance(parent, ast.Call) and node in parent.args:
            index = parent.args.index(node)
            following = parent.args[index + 1] if index + 1 < len(parent.args) else None
            if isinstance(following, ast.Constant) and isinstance(following.value, str):
                return self.patch_home(old.dotted, module, following.value)
        return target

    @staticmethod
    def _with_alias(spec: Spec, alias: ast.alias) -> Spec:
        return (spec[0], spec[1], alias.asname) if alias.asname else spec

    def depth_edits(self, old: Old, new: str, start: int, end: int) -> list[tuple[int, int, str]]:
        """``Path(__file__).parents[n]`` of a file that lies deeper or higher now."""
        change = self.new_paths[new].count("/") - old.path.count("/")
        if not change or old.path.startswith("vits_trainer"):
            return []
        found = []
        for match in re.finditer(r"Path\(__file__\)\.parents\[(\d+)\]", old.text[start:end]):
            found.append((start + match.start(1), start + match.end(1), str(int(match[1]) + change)))
        return found

    _FROM = re.compile(r"from (?P<module>(?:vits_trainer|tests)(?:\.\w+)*) import (?P<names>\w+(?:, \w+)*)")
    _DOTTED = re.compile(r"(?<![\w./])(?:vits_trainer|tests)(?:\.\w+)+")

    def text_edits(self, text: str, start: int, end: int, importer: str, new: str, skip: list[tuple[int, int]]) -> list[tuple[int, int, str]]:
        """Dotted names in strings, docstrings and comments."""
        found = []
        taken: list[tuple[int, int]] = list(skip)

        def free(a: int, b: int) -> bool:
            return not any(a < y and x < b for x, y in taken)

        for match in self._FROM.finditer(text, start, end):
            if free(*match.span()):
                specs = {self.resolve(match["module"], name, new) for name in match["names"].split(", ")}
                made = "; ".join(statements(specs))
                taken.append(match.span())
                if made != match[0]:
                    found.append((*match.span(), made))
        for match in self._DOTTED.finditer(text, start, end):
            if free(*match.span()):
                made = self.dotted(match[0], importer)
                if made != match[0]:
                    found.append((*match.span(), made))
        return found

    def dotted(self, words: str, importer: str) -> str:
        """``vits_trainer.module.name.attribute`` in the new tree; as it is if it is none of ours."""
        parts = words.split(".")
        for size in range(len(parts), 1, -1):
            module = ".".join(parts[:size])
            if module in self.old:
                rest = parts[size:]
                home = self.old[module].main
                if rest:
                    is_test = importer.split(".")[0] != "vits_trainer"
                    if is_test and (rest[0] in self.old[module].imports or rest[0] in self.old[module].where) and importer != "docs":
                        home = self.patch_home(importer, module, rest[0])
                    elif rest[0] in self.old[module].where:
                        home = self.old[module].where[rest[0]][0]
                return ".".join([home, *rest])
        return words

    # --- the new files

    def compose(self) -> dict[str, str]:
        """New path -> text."""
        made: dict[str, str] = {}
        contributors: dict[str, list[Old]] = defaultdict(list)
        for old in self.old.values():
            for new in old.pieces:
                contributors[new].append(old)
        self.bases = {}
        for new, olds in contributors.items():
            mains = [old for old in olds if old.main == new]
            same = [old for old in mains if dotted_of(old.path).rpartition(".")[2] == new.rpartition(".")[2]]
            base = (same or mains or [None])[0]
            self.bases[new] = base
            made[self.new_paths[new]] = self.compose_one(new, base, [old for old in olds if old is not base])
        return made

    def compose_one(self, new: str, base: Old | None, others: list[Old]) -> str:
        own_names = {name for old in [base, *others] if old for s in old.pieces[new] for name in s.names}
        wanted: set[Spec] = set()
        blocks: list[tuple[Segment, str]] = []
        for old in others:
            edits, needs = self.edits(old, new)
            for segment in old.pieces[new]:
                blocks.append((segment, apply(old.text, edits, segment.start, segment.end)))
                wanted |= needs[segment.start]
        if base is None:
            docstring = self.docstrings.get(new)
            if docstring is None:
                self.errors.append(f"{new}: a new file without a row in docstrings.tsv")
            wanted = {spec for spec in wanted if not (spec[0] == new)}
            for spec in wanted:
                if spec[2] in own_names:
                    self.errors.append(f"{new}: needs {spec[1]} of {spec[0]}, and has one itself: a name in LOCALS, please")
            return f'"""{docstring}"""\n\n' + "\n".join(statements(wanted)) + "\n\n" + joined(blocks)
        edits, needs = self.edits(base, new)
        whole = len(base.pieces) == 1
        first_wanted = set().union(*needs.values()) if needs else set()
        covered: set[Spec] = set()
        removed: list[tuple[int, int]] = []
        last_import_end = None
        for segment in base.segments:
            if segment.kind == "docstring":
                last_import_end = last_import_end or segment.end
                if new in self.docstrings:
                    edits.append((*base.span(segment.nodes[0]), f'"""{self.docstrings[new]}"""'))
                else:
                    edits += self.text_edits(base.text, segment.start, segment.end, base.dotted, new, [])
                continue
            if segment.kind != "import":
                if segment not in base.pieces[new]:
                    removed.append((segment.start, segment.end))
                continue
            last_import_end = segment.end
            node = segment.nodes[0]
            specs = self.import_specs(base, node, new)
            kept = specs if whole else specs & (first_wanted | wanted)
            kept = {spec for spec in kept if spec[0] != new}
            # Names of modules come from what is used of them.
            if isinstance(node, ast.ImportFrom):
                modules = {a.asname or a.name for a in node.names if f"{node.module}.{a.name}" in self.old}
                if modules:
                    kept = {spec for spec in kept if not self._is_module(spec)} | {s for s in first_wanted if self._is_module(s)}
            covered |= kept
            start, end = base.span(node)
            if not kept:
                removed.append((segment.start, segment.end))
            elif kept != specs or any(self.changed(node, a) for a in node.names):
                tail = base.text[end : base.text.find("\n", end)]
                tail = "" if any((s[0], s[1]) in COMMENTS for s in kept) else tail
                end += len(base.text[end : base.text.find("\n", end)]) - len(tail)
                edits.append((start, end, f"{tail}\n".join(statements(kept))))
        extra = {spec for spec in (first_wanted | wanted) - covered if spec[0] != new}
        for spec in extra:
            if spec[2] in own_names:
                self.errors.append(f"{new}: needs {spec[1]} of {spec[0]}, and has one itself: a name in LOCALS, please")
        placed: dict[int, list[str]] = defaultdict(list)
        if extra:
            placed[last_import_end or 0] += ["\n".join(statements(extra)) + "\n"]
        # What is read at load time must stand above its reader.
        own = base.pieces[new]
        early = []
        names = set().union(*(s.names for s, _ in blocks)) if blocks else set()
        readers = [s for s in own if load_time_names(s) & names]
        if blocks and own:
            if readers or all(s.kind == "constant" for s, _ in blocks):
                first = readers[0] if readers else own[0]
                above = set().union(*(s.names for s in own if s.start >= first.start))
                if any(load_time_names(s) & above for s, _ in blocks):
                    self.errors.append(f"{new}: the order of what is merged cannot be kept")
                lead = "\n\n" if not readers or first is own[0] else ""
                placed[first.start] += [joined(blocks).rstrip("\n") + ("\n\n\n" if any(s.kind != "constant" for s, _ in blocks) or first.kind != "constant" else "\n\n")]
            else:
                placed[len(base.text)] += ["\n\n" + joined(blocks)]
        elif blocks:
            placed[len(base.text)] += ["\n\n" + joined(blocks)]
        edits = [edit for edit in edits if not any(a <= edit[0] < b for a, b in removed)]
        edits += [(a, b, "") for a, b in removed]
        for position, texts in placed.items():
            edits.append((position, position, "".join(texts)))
        return tidy(apply(base.text, sorted(edits), 0, len(base.text)))

    def _is_module(self, spec: Spec) -> bool:
        return spec[1] is not None and f"{spec[0]}.{spec[1]}" in self.new_paths

    def import_specs(self, old: Old, node: ast.stmt, new: str) -> set[Spec]:
        if isinstance(node, ast.Import):
            return {(a.name, None, a.asname or a.name.split(".")[0]) for a in node.names}
        specs = set()
        for a in node.names:
            if node.module.split(".")[0] in ("vits_trainer", "tests", "experiments"):
                module, name, local = self.resolve(node.module, a.name, new)
                specs.add((module, name, a.asname or (local if f"{node.module}.{a.name}" in self.old else a.name)))
            else:
                specs.add((node.module, a.name, a.asname or a.name))
        return specs

    def changed(self, node: ast.stmt, alias: ast.alias) -> bool:
        return isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("vits_trainer", "tests", "experiments")

    # --- writing

    def write(self, made: dict[str, str]) -> None:
        def git(*words: str) -> None:
            subprocess.run(["git", "-C", str(self.root), *words], check=True, capture_output=True, text=True)

        moved = set()
        holding = {}
        for new, base in self.bases.items():
            if base is None:
                continue
            target = self.root / self.new_paths[new]
            moved.add(base.path)
            if base.path != self.new_paths[new]:
                # Through names that nobody has: a module may take the path of a package, and the other way round.
                between = f"{base.path}.moving"
                git("mv", base.path, between)
                holding[between] = target
        for between, target in holding.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            git("mv", between, str(target.relative_to(self.root)))
        for old in self.old.values():
            if old.path not in moved:
                git("rm", "-q", "-f", old.path)
        for path, text in made.items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text(text, "utf-8")


def _parents(dotted: str) -> list[str]:
    parts = dotted.split(".")
    return [".".join(parts[:size]) for size in range(1, len(parts))]


def apply(text: str, edits: list[tuple[int, int, str]], start: int, end: int) -> str:
    parts, position = [], start
    for a, b, words in sorted(edits):
        if a < start or b > end:
            continue
        if a < position:
            raise Stop(f"two edits at one place: {text[a:b]!r}")
        parts += [text[position:a], words]
        position = b
    return "".join([*parts, text[position:end]])


def joined(blocks: list[tuple[Segment, str]]) -> str:
    text = ""
    previous = None
    for segment, words in blocks:
        if previous is not None:
            both = previous.kind == segment.kind == "constant"
            text += "\n" * (min(segment.blank, 1) if both else 2)
        else:
            text += "\n" if segment.kind != "constant" else ""
        text += words
        previous = segment
    return text


def tidy(text: str) -> str:
    """No more than two blank lines, none at the end."""
    return re.sub(r"\n{4,}", "\n\n\n", text).rstrip("\n") + "\n"
