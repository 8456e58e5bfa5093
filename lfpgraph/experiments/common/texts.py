"""Real text that every machine has: the docstrings of installed libraries, without the libraries' names."""

from __future__ import annotations

import ast
import importlib.util
import random
import re
import warnings
from pathlib import Path

from ...errors import InputError

__all__ = ["LIBRARIES", "docstrings", "package_folder"]

LIBRARIES = ("torch", "numpy", "scipy", "sklearn", "networkx", "transformers")
# Names and common aliases, longest first, as words of their own: a class like NetworkXError stays.
_NAMES = re.compile(
    r"(?<![a-z])(hugging ?face|scikit[- ]learn|transformers?|pytorch|networkx|sklearn|numpy|scipy|torch"
    r"|nx|np|sp|hf)(?![a-z])",
    re.IGNORECASE,
)
# Tests, and other projects' code inside a library.
_SKIPPED = {"tests", "testing", "test", "externals", "_vendor", "array_api_compat", "array_api_extra"}


def package_folder(name: str) -> Path:
    """Where an installed package lies, without importing it.

    Raises:
        InputError: it is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"{name} is not installed, and its files are needed here: pip install {name}")
    return Path(next(iter(spec.submodule_search_locations)))


def docstrings(library: str, count: int, seen: set[str]) -> list[str]:
    """`count` different texts from the docstrings of a library's sources; `seen` collects what was used.

    Raises:
        InputError: the library is not installed, or has fewer.
    """
    folder = package_folder(library)
    files = sorted(f for f in folder.rglob("*.py") if not _SKIPPED & set(f.relative_to(folder).parts))
    random.Random(0).shuffle(files)
    texts: list[str] = []
    for file in files:
        new = [text for text in _texts(file) if text not in seen][:10]  # not whole files of one style
        seen.update(new)
        texts += dict.fromkeys(new)
        if len(texts) >= count:
            return texts[:count]
    raise InputError(f"{library} has only {len(texts)} docstrings, {count} are needed")


def _texts(file: Path) -> list[str]:
    """The longer docstrings of a file, at most 400 characters of each; none of a file that this Python cannot read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the libraries' strings
            tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds))
    texts = (" ".join(_NAMES.sub(" ", text).split())[:400] for text in found)
    return [text for text in texts if len(text) >= 60]
