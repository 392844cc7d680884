"""Names code by a hash that changes with a line of code, and not with a comment, a docstring or the layout."""

import ast
import hashlib
from functools import lru_cache
from pathlib import Path


@lru_cache
def source_hash(*parts: str, leave_out: str | None = None) -> str:
    """A hash of these folders of the package ("." is all of it), but for the folder `leave_out`, 16 hex digits."""
    package = Path(__file__).resolve().parent
    left_out = [package / leave_out] if leave_out else []
    files = sorted(f for part in parts for f in (package / part).rglob("*.py") if not {*left_out} & {*f.parents})
    return files_hash(package, files)


def files_hash(top: Path, files: list[Path]) -> str:
    """A hash of the syntax trees of these files, and of their names below `top`, 16 hex digits."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(top)}\n{syntax_without_docstrings(file.read_text())}\n".encode())
    return digest.hexdigest()[:16]


def syntax_without_docstrings(source: str) -> str:
    """The syntax tree of Python source as text: equal for two sources that differ in comments, layout or docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)
