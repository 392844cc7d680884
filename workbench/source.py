"""Hash source code. Comments, docstrings and layout do not change the hash."""

import ast
import hashlib
from functools import lru_cache
from pathlib import Path


@lru_cache
def source_hash(*parts: str, leave_out: tuple[str, ...] = ()) -> str:
    """Hash folders and files of this package.

    Args:
        *parts: Paths below the package, such as "models" or "networks.py".
        leave_out: Folders and files below the package to leave out.

    Returns:
        16 hex digits.
    """
    package = Path(__file__).resolve().parent
    out = {package / part for part in leave_out}
    files = {
        f for part in parts for f in ((package / part).rglob("*.py") if not part.endswith(".py") else [package / part])
    }
    return files_hash(package, sorted(f for f in files if not out & {f, *f.parents}))


def files_hash(top: Path, files: list[Path]) -> str:
    """Hash the syntax trees of Python files, and their paths below `top`.

    Args:
        top: Folder that contains the files.
        files: The files. Their order counts.

    Returns:
        16 hex digits.
    """
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(top)}\n{syntax_without_docstrings(file.read_bytes())}\n".encode())
    return digest.hexdigest()[:16]


def syntax_without_docstrings(source: str | bytes) -> str:
    """Return the syntax tree of Python source as text, without docstrings.

    Two sources that differ only in comments, layout or docstrings give the same text.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)
