"""Syntax trees as text that is equal on all Python versions, and the imports in a tree.

`ast.dump` differs between versions. Parts without effect on results are left out: docstrings, comments,
messages of exceptions and warnings, printing, and code for type checkers.
"""

import ast
from collections.abc import Iterator
from typing import Any

_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_IGNORED_FIELDS = {"ctx", "kind", "type_comment"}  # redundant
_REPORTING = {"print", "warnings.warn"}  # calls that only report


def normalized_syntax(node: Any) -> str:
    """Return a tree as text: every node with its non-empty fields."""
    if isinstance(node, ast.Constant):
        return f"{type(node.value).__name__} {node.value!r}"
    if isinstance(node, list):
        kept = (item for item in node if not (_is_for_types(item) or _only_reports(item)))
        return f"[{' '.join(map(normalized_syntax, kept))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.Raise):  # without its message
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return f"Raise {raised and ast.unparse(raised)}"
    fields = {name: value for name, value in ast.iter_fields(node) if name not in _IGNORED_FIELDS}
    if isinstance(node, ast.JoinedStr):  # Python 3.12 appends an empty text to some
        fields["values"] = [part for part in node.values if getattr(part, "value", None) != ""]
    if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = node.body[1:]
    parts = (
        f"{name}={normalized_syntax(value)}" for name, value in fields.items() if value not in (None, [])
    )
    return f"{type(node).__name__}({' '.join(parts)})"


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Yield each module, and each name imported from one, in a tree; without those for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if _is_for_types(node):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute here"
            assert node.module, "an absolute import names its module"
            yield from [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            yield from imported_modules(node)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _only_reports(node: ast.AST) -> bool:
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and ast.unparse(call.func) in _REPORTING
