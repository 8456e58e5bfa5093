"""What Python objects hold at one moment, kept so that a later look is quick: the state a traced program depends on.

A snapshot is one flat tuple of values. To look again, the same values are read anew by C code and compared by identity,
30 nanoseconds each; only where one is another object are types and values compared.
"""

from __future__ import annotations

import contextvars
import functools
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from itertools import chain
from operator import attrgetter
from types import FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from .items import GENERATORS, MISSING, PLAIN, Found, Item, Quick, random_state_of, table_item, ties_item
from .memory import MEMORY, bytes_of, is_readable
from .names import Names
from .parts import CACHE, cells_of, content_of, is_stream, read_through, slots_of, state_of, values_of, words_of
from .users_code import is_plain_object, is_pythons_class, is_users_class, owner_of

__all__ = ["Snapshot"]

_LARGEST = 10_000  # values inside attributes and globals that are watched, all together
_DEEPEST = 8  # containers and objects inside one another
_TABLES = ("_modules", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_FUNCTION = attrgetter("__code__", "__defaults__", "__kwdefaults__")


class Snapshot:
    """What the modules of a model hold besides parameters and buffers, and whatever else is added.

    Args:
        model: the model. What its parameters and buffers hold is not looked at, only which of them are one tensor.
        hooks: watch the hooks of the model itself, too.

    Attributes:
        modules: the model's modules and their names.
        own: the identities of its parameters and buffers.
        found: what else was met.
    """

    def __init__(self, model: nn.Module, hooks: bool = True) -> None:
        self._without_hooks = None if hooks else model
        self.modules: dict[nn.Module, str] = {}
        self.own: set[int] = set()
        self.found: list[Found] = []
        self.items: list[Item] = []
        self._followed: dict[tuple[int, str | None], Any] = {}
        self._looked_up: set[tuple[int, str]] = set()
        self._lookups: list[tuple[Callable[..., Any], str]] = []
        self._lookup_names: list[str] = []
        self._quick: Quick | None = None
        self._root: str | None = None
        self._inside = 0
        self.words: list[str] = []  # names by which something that was met reads attributes
        self._classes: list[tuple[type, dict[str, Any], str | None]] = []  # of objects met; what they held
        self._lookup_item = self._add(self._look_up, lambda place: self._lookup_names[place])
        self.add_modules(model, "")
        if (ties := ties_item(self.modules)) is not None:
            self.items.append(ties)

    def _add(self, read: Callable[[], Iterable[Any]], name: Callable[[Any], str], made: bool = False) -> Item:
        item = Item(read, tuple(read()), name, root=self._root, made=made)
        self.items.append(item)
        return item

    def _add_table(self, table: dict[Any, Any], name: Callable[[Any], str]) -> None:
        self.items.append(table_item(table, name, self._root))

    def _add_attributes(self, value: Any, held: dict[Any, Any], dot: str) -> None:
        self._add_table(held, lambda name: f"{dot}{name}")
        self.items[-1].attributes = type(value)

    def _look_up(self) -> list[Any]:
        return [get(name, MISSING) for get, name in self._lookups]

    def add_modules(self, model: nn.Module, path: str) -> None:
        """Watch a module and those inside it."""
        found = {m: f"{path}.{name}".strip(".") for name, m in model.named_modules() if m not in self.modules}
        self.modules.update(found)
        for module, dot in found.items():
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    self.own.add(id(tensor))
                    self._add_attributes(tensor, vars(tensor), f"{dot}.{name}.".lstrip("."))
        listed = list(found)
        paths = [path or type(module).__name__ for module, path in found.items()]
        self._add(lambda: map(type, listed), lambda i: f"the class of {paths[i]}")
        for module, path in found.items():
            self._add_module(module, f"{path}." if path else "")

    def _add_module(self, module: nn.Module, dot: str) -> None:
        held = vars(module)
        self._add_attributes(module, held, dot)
        for table in _TABLES[:1] if module is self._without_hooks else _TABLES:
            if isinstance(held.get(table), dict):
                prefix = dot if table == "_modules" else f"{dot}{table}."
                self._add_table(held[table], lambda name, prefix=prefix: f"{prefix}{name}")  # type: ignore[misc]
        for cls in type(module).__mro__:
            for name in ("forward", "__call__"):
                self.look_up(cls, name, f"{cls.__name__}.{name}")
        for name, value in held.items():
            if name not in ("_parameters", "_buffers", "_non_persistent_buffers_set", *_TABLES):
                self._root, self._inside = name, 0
                self.follow(value, f"{dot}{name}", 1)
        self._root = None

    def look_up(self, holder: Any, name: str, path: str) -> None:
        """Watch a name in a dictionary, or in the dictionary of a class or Python module, whether it is there or not."""
        if (id(holder), name) in self._looked_up:
            return
        value = (holder if isinstance(holder, dict) else vars(holder)).get(name, MISSING)
        self._compare(holder, name, path, value)
        self.follow(value, path)

    def _compare(self, holder: Any, name: str, path: str, value: Any) -> None:
        self._looked_up.add((id(holder), name))
        self._followed[id(holder), None] = holder
        self._lookups.append(((holder if isinstance(holder, dict) else vars(holder)).get, name))
        self._lookup_names.append(path)
        self._lookup_item.held += (value,)

    def add_functions(self, functions: list[FunctionType], names: list[str]) -> None:
        """Watch the code, defaults and closures of functions."""
        cells = [(cell, f"{free} in {name}") for f, name in zip(functions, names) for cell, free in cells_of(f)]
        self._add(
            lambda: chain.from_iterable(map(_FUNCTION, functions)),
            lambda i: f"{names[i // 3]}.{('__code__', '__defaults__', '__kwdefaults__')[i % 3]}",
        )
        self._add(lambda: [content_of(cell) for cell, _ in cells], lambda i: f"the closure variable {cells[i][1]}")
        for function, name in zip(functions, names):
            for default in (function.__defaults__, function.__kwdefaults__):
                self.follow(default, f"{name}.__defaults__")
        for cell, name in cells:
            self.follow(content_of(cell), f"the closure variable {name}")

    def add_reading(self, read: Callable[[], Iterable[Any]], name: Callable[[Any], str]) -> None:
        """Watch the values that a function makes, each with a name by its place."""
        self._add(read, name, made=True)

    def follow(self, value: Any, path: str, depth: int = 0) -> None:
        """Watch what is inside a value that can change while the value stays the same object."""
        if type(value) in weakref.ProxyTypes:  # looks like what it stands for, and has no hash
            return self._find("unwatched", path, value)
        if isinstance(value, weakref.ref):
            target = value()
            if target is not None and not isinstance(target, Tensor | nn.Module):  # to follow it would keep it alive
                return self._find("unwatched", path, value)
            value = target
        key = (id(value), self._root)
        if isinstance(value, (*PLAIN, type, ModuleType)):
            return
        if key in self._followed or (isinstance(value, nn.Module) and value in self.modules):
            return
        self._followed[key] = value
        if depth > _DEEPEST and (isinstance(value, (*_CONTAINERS, Tensor)) or is_plain_object(value)):
            return self._find("unwatched", path, value)
        if isinstance(value, Tensor):
            self._follow_tensor(value, path)
        elif (state := state_of(value)) is not None:
            self._add(state, lambda _: path, made=not isinstance(value, CACHE | contextvars.ContextVar))
            if isinstance(value, CACHE):
                self._find("cache", path, value)
        elif isinstance(value, GENERATORS):
            self._find("generator", path, value)
        elif isinstance(value, MethodType):
            self.follow(value.__self__, f"{path}.__self__", depth)
        elif isinstance(value, FunctionType):
            if owner_of(value.__code__.co_filename) == "user":
                self._follow_object(value, path, depth)
            elif isinstance(registry := vars(value).get("registry"), MappingProxyType):  # of functools.singledispatch
                self.follow(registry, f"{path}.registry", depth)
        elif isinstance(value, functools.partial):
            self.follow((value.args, value.keywords), path, depth)
            self.follow(value.func, path, depth)
        elif isinstance(value, MEMORY):
            if not is_readable(value):
                return self._find("unwatched", path, value)
            self._add(lambda: bytes_of(value), lambda _: path, made=True)
        elif isinstance(value, _CONTAINERS):
            self._follow_container(value, path, depth)
        elif is_stream(value):
            self._find("unwatched", path, value)
        self.words += words_of(value)
        for under in read_through(value):
            self.follow(under, path, depth)
        if is_plain_object(value):
            self._follow_object(value, path, depth)

    def _find(self, kind: str, path: str, value: Any) -> None:
        state = random_state_of(value) if kind == "generator" else None
        self.found.append(Found(kind, path, value, self._root, state))

    def _follow_tensor(self, tensor: Tensor, path: str) -> None:
        if id(tensor) not in self.own:
            self._add_attributes(tensor, vars(tensor), f"{path}.")
            self._find("tensor", path, tensor)
            if not tensor.is_inference():  # those have no version
                self._add(lambda: (tensor._version,), lambda _: path, made=True)
        elif tensor.requires_grad and tensor.is_leaf:
            self._find("own", path, tensor)

    def _follow_container(self, value: Any, path: str, depth: int) -> None:
        # A subclass may have methods of its own.
        plain: Any = next(kind for kind in _CONTAINERS if isinstance(value, kind))
        if not self._has_room(plain.__len__(value)):
            return self._find("unwatched", path, value)
        if plain is dict:
            self._add_table(value, lambda key: f"{path}[{key!r}]")
            if isinstance(value, OrderedDict) and value:
                self._add(value.__iter__, lambda i: f"key {i} of {path}")
            inside = [(f"{path}[{key!r}]", item) for key, item in dict.items(value)]
        else:
            if not isinstance(value, tuple | frozenset):
                self._add(plain.__iter__.__get__(value), lambda i: f"{path}[{i}]")
            inside = [(f"{path}[{i}]", item) for i, item in enumerate(plain.__iter__(value))]
        for name, item in inside:
            self.follow(item, name, depth + 1)

    def _has_room(self, number: int) -> bool:
        self._inside += number
        return self._inside <= _LARGEST

    def _follow_object(self, value: Any, path: str, depth: int) -> None:
        held = getattr(value, "__dict__", None)
        held = held if isinstance(held, dict) else {}
        slots = slots_of(type(value))
        if not self._has_room(len(held) + len(slots)):
            return self._find("unwatched", path, value)
        self._add_attributes(value, held, f"{path}.")
        if is_pythons_class(type(value)):  # whose code names them
            self.items[-1].attributes = None
        if slots:
            self._add(lambda: values_of(value, slots), lambda i: f"{path}.{slots[i]}")
        for name, item in (*held.items(), *zip(slots, values_of(value, slots))):
            self.follow(item, f"{path}.{name}", depth + 1)
        for cls in filter(is_users_class, type(value).__mro__):
            self._follow_class(cls, depth)

    def _follow_class(self, cls: type, depth: int) -> None:
        """Watch what the class of an object holds: as a default for the object's own attribute, perhaps."""
        if any(known is cls and root == self._root for known, _, root in self._classes):
            return
        held = {name: item for name, item in vars(cls).items() if not name.startswith("__")}
        self._classes.append((cls, held, self._root))
        for name, item in held.items():
            if not isinstance(item, FunctionType):
                self.follow(item, f"{cls.__name__}.{name}", depth + 1)

    def keep_named(self, names: Names) -> None:
        """Forget attributes that no code named, and what is inside those of modules: a trainer that a model knows, say."""
        names.add_held(self.words)
        for item in self.items if names.held_count else ():
            names.add_held(item.strings())
        for item in self.items:
            if item.attributes is not None and item.attributes not in names.any_of:
                item.named = names
        for cls, held, root in self._classes:
            for name in held if root is None or root in names else ():
                if name in names and (id(cls), name) not in self._looked_up:
                    self._compare(cls, name, f"{cls.__name__}.{name}", held[name])
        self.items = [item for item in self.items if item.root is None or item.root in names]
        # torch's own modules may hold their parameters twice (recurrent layers), which its tracer knows
        named = {found.name for found in self.found if found.root in (names.of_user if found.kind == "own" else names)}
        self.found = [found for found in self.found if found.root is None or found.name in named]
        self._quick = None

    def let_go(self) -> None:
        """Watch nothing any more, and hold none of it: what the model has only weak references to, say."""
        self.items, self.found, self._quick = [], [], None
        self._followed.clear()
        self._lookups.clear()
        self._classes.clear()

    def differences(self) -> list[tuple[str, str]]:
        """What has changed, as (name, how)."""
        self._quick = None
        return [difference for item in self.items for difference in item.differences()]

    def take_again(self) -> None:
        """From now on compare with what everything holds now."""
        for item in self.items:
            item.held = tuple(item.read())
        self._quick = None

    def unchanged(self) -> bool:
        """A quick look: True if nothing has changed; False if something may have."""
        if self._quick is None:
            self._quick = Quick(self.items)
        return self._quick.unchanged()
