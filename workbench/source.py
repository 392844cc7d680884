"""Names code by a hash that changes with a line of code, and not with a comment, a docstring or the layout."""

import ast
import hashlib
from functools import lru_cache
from pathlib import Path


@lru_cache
def source_hash(*parts: str, leave_out: tuple[str, ...] = ()) -> str:
    """Hash these folders and files of the package, 16 hex digits.

    Args:
        *parts: Paths below the package, such as "models" or "networks.py".
        leave_out: Folders and files of them that do not count.
    """
    package = Path(__file__).resolve().parent
    out = {package / part for part in leave_out}
    files = {
        f for part in parts for f in ((package / part).rglob("*.py") if not part.endswith(".py") else [package / part])
    }
    return files_hash(package, sorted(f for f in files if not out & {f, *f.parents}))


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
