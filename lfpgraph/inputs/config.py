"""Sizes from a transformers configuration, whichever of its parts and whichever spelling holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

__all__ = ["ConfigView"]


class ConfigView:
    """All parts of a configuration at once. A lookup takes the first spelling that any part has."""

    def __init__(self, config: Any) -> None:
        self.parts = list(_walk(config, "", set()))

    def find(self, *names: str, near: Sequence[str] = (), fits: Callable[[Any], bool] = lambda v: True) -> Any:
        """The first value of one of these names that fits, parts named like `near` first; None without one."""
        parts = sorted(self.parts, key=lambda part: not any(hint in part[0] for hint in near))
        for name in names:
            for _, config in parts:
                value = vars(config).get(getattr(type(config), "attribute_map", {}).get(name, name))
                if value is not None and fits(value):
                    return value
        return None

    def number(self, *names: str, default: int = 0, near: Sequence[str] = (), least: int = 1) -> int:
        """A whole number of at least `least`, or the default."""

        def fits(value: Any) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and value >= least

        found = self.find(*names, near=near, fits=fits)
        return default if found is None else int(found)

    def sides(self, *names: str, default: int, near: Sequence[str] = (), least: int = 1) -> tuple[int, int]:
        """Height and width, written as a number, a pair or a dict."""

        def fits(value: Any) -> bool:
            pair = _pair(value)
            return pair is not None and min(pair) >= least

        found = _pair(self.find(*names, near=near, fits=fits))
        return (default, default) if found is None else found

    def special_ids(self) -> set[int]:
        """Token ids with a meaning of their own, which ordinary text does not hold."""
        found: set[int] = set()
        for _, config in self.parts:
            for name, value in vars(config).items():
                if name.endswith(("_token_id", "_token_index", "_token_ids", "_id")):
                    values = value if isinstance(value, list | tuple) else [value]
                    found.update(v for v in values if isinstance(v, int) and not isinstance(v, bool))
        return found


def _walk(config: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if id(config) in seen:
        return
    seen.add(id(config))
    yield f"{path} {type(config).__name__}".lower(), config
    for name, value in list(vars(config).items()):
        if hasattr(value, "model_type") and hasattr(value, "__dict__"):
            yield from _walk(value, f"{path} {name}", seen)


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, dict):
        value = [value.get("height"), value.get("width")]
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    if isinstance(value, list | tuple) and value and all(isinstance(v, int) for v in value):
        return (value[0], value[-1]) if len(value) <= 2 else (value[-2], value[-1])
    return None
