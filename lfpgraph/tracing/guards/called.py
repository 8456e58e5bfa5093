"""The functions that a run calls, and what they can read: globals, builtins, closures, defaults, attributes of classes."""

from __future__ import annotations

import _abc
import abc
import dis
import gc
import importlib
import inspect
import os
import sys
import types
import weakref
from typing import Any, NamedTuple

from torch import Tensor, nn

from .bytecode import globals_of, imported_by, names_in, reads_of_gradients
from .functions import FRAMES_HOLD_FUNCTIONS, function_of, functions_with, has_more, holds, is_of_another_module
from .names import Names
from .snapshots import Snapshot
from .suspects import Suspects
from .users_code import asker, is_users_class, owner_of, place_of

__all__ = ["Called"]

_CALL = {nn.Module.__call__.__code__, nn.Module._call_impl.__code__}
_IMPORT = importlib.import_module.__code__
_INIT = nn.Module.__init__.__code__
_ENVIRONMENT = {vars(type(os.environ))[name].__code__ for name in ("__getitem__", "__iter__", "__len__")}
_IS_INSTANCE = abc.ABCMeta.__instancecheck__.__code__
_GENERATORS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
# Of tensors, while another thread traces (`tracing.flat`), and while a run is observed (`suspects.values_seen`).
_REPLACED = ("register_hook", "detach_", "view", "requires_grad")


class _Call(NamedTuple):
    """What is kept of a call: its closure variables, and the class of its first argument."""

    free: dict[str, Any]
    of: type


class Called:
    """Sees each Python function as it is called, and puts what it can read into a snapshot before it runs.

    Attributes:
        codes: code of the user's that ran.
        names: what code of the user's and of torch named: globals, attributes, and words in quotes.
    """

    def __init__(self, snapshot: Snapshot, suspects: Suspects) -> None:
        self.snapshot, self.suspects = snapshot, suspects
        self.codes: dict[types.CodeType, None] = {}
        self.names = Names()
        self._seen: set[types.CodeType] = set()
        self._classes: set[tuple[types.CodeType, type]] = set()
        self._running: dict[types.FrameType, _Call] = {}  # frames whose functions are to be found
        self._returned: list[types.FrameType] = []
        self._functions: dict[
            types.FunctionType, dict[str, Any]
        ] = {}  # with the closure variables they were called with
        self._perhaps_own: list[weakref.ref[types.FunctionType]] = []  # made by the run, unless they outlive it
        # Code of functions not found yet; the closure variables of each call, those that are the same once.
        self._unfound: dict[types.CodeType, dict[tuple[int, ...], dict[str, Any]]] = {}
        self._made_here: set[types.CodeType] = (
            set()
        )  # code of functions that the run makes; others of the same code may be older
        self._made: dict[int, nn.Module] = {}
        self._abstract: set[type] = set()
        self._imports: list[
            tuple[types.CodeType, str | None, str]
        ] = []  # code, its package, and what it imports by name

    def python(self, frame: types.FrameType) -> None:
        """A Python function is called."""
        self._settle()
        self.suspects.python(frame)
        code = frame.f_code
        if code is _INIT:
            module = frame.f_locals["self"]
            self._made[id(module)] = module
        elif code in _CALL:
            self._module(frame.f_locals["self"], frame)
        elif code is _IS_INSTANCE and is_users_class(cls := frame.f_locals["cls"]):
            self._registry(cls)
        elif code in _ENVIRONMENT and asker(frame.f_back) is not None:
            self.snapshot.follow(os.environ._data, "os.environ")  # type: ignore[attr-defined]
        elif code is _IMPORT and (user := asker(frame.f_back)) is not None:
            self._importing(user, frame.f_locals["name"])
        owner = owner_of(code.co_filename)
        if owner not in ("user", "torch") or not code.co_flags & inspect.CO_OPTIMIZED:  # the body of a file or class
            return
        first = code not in self._seen
        if first:
            self._seen.add(code)
            self.names.add(code, owner == "user")
        if owner == "user":
            self._users(frame, code, first)

    def returned(self, frame: types.FrameType) -> None:
        """A Python function returns, raises or yields."""
        self._settle()
        if frame in self._running:
            self._returned.append(frame)
            if not FRAMES_HOLD_FUNCTIONS:
                self._settle()

    def _settle(self) -> None:
        """Find the functions of frames that have returned, and let go of the frames: they hold tensors of the run."""
        while self._returned:
            frame = self._returned.pop()
            call = self._running.pop(frame)
            if self._keep_function(frame, call):
                continue
            if frame.f_code.co_flags & _GENERATORS:
                self._running[frame] = call  # it may have yielded, and cannot be asked yet
            else:
                self._add_unfound(frame, call)

    def _add_unfound(self, frame: types.FrameType, call: _Call) -> None:
        self._unfound.setdefault(frame.f_code, {})[tuple(map(id, call.free.values()))] = call.free

    def _keep_function(self, frame: types.FrameType, call: _Call) -> bool:
        function = function_of(frame, call.of)
        if function is not None and frame.f_code in self._made_here:
            self._perhaps_own.append(weakref.ref(function))
        elif function is not None:
            self._functions.setdefault(function, call.free)
        return function is not None

    def _users(self, frame: types.FrameType, code: types.CodeType, first: bool) -> None:
        values = frame.f_locals
        first_argument = values.get(code.co_varnames[0]) if code.co_argcount else None
        self_type = first_argument if isinstance(first_argument, type) else type(first_argument)
        if first:
            self.codes[code] = None
            self._made_here.update(c for c in code.co_consts if isinstance(c, types.CodeType))
            self._globals(frame, code)
            if (function := function_of(frame, self_type, returned=False)) is not None:
                self.snapshot.follow(function.__defaults__, f"{_name(code)}.__defaults__")
            if "FakeTensor" in code.co_names and self.suspects.question is None:
                self.suspects.question = place_of(frame)
        self.names.add_call(code, values)
        if self_type is not type(None):
            if (code, self_type) not in self._classes:
                self._classes.add((code, self_type))
                self._class(self_type, names_in(code))
        if first or code.co_flags & inspect.CO_NESTED:
            own = code in self._made_here
            free = {name: values[name] for name in code.co_freevars if name in values and not own}
            for name, value in free.items():
                self.snapshot.follow(value, f"the closure variable {name} in {_name(code)}")
            self._running[frame] = _Call(free, self_type)

    def _globals(self, frame: types.FrameType, code: types.CodeType) -> None:
        file = os.path.basename(code.co_filename)
        for name in globals_of(code):
            if name in frame.f_globals:
                self.snapshot.look_up(frame.f_globals, name, f"{file}: {name}")
                self._inside(frame.f_globals[name], names_in(code), f"{file}: {name}", 0)
            else:  # a builtin, or a global that is not set yet
                self.snapshot.look_up(frame.f_globals, name, f"{file}: {name}")
                self.snapshot.look_up(frame.f_builtins, name, f"{file}: {name}")
        if "sys" in code.co_names and "modules" in code.co_names:
            for named in (frame.f_globals.get("__name__", ""), *names_in(code, quoted=True)):
                self._importing(frame, named)
        if "IMPORT_NAME" in (step.opname for step in dis.get_instructions(code)):
            self._importing(frame, "")
        for name in code.co_names:  # which somebody may have replaced
            if hasattr(Tensor, name) and name not in _REPLACED and not name.startswith("__"):
                self.snapshot.look_up(Tensor, name, f"Tensor.{name}")
        if {"random", "get_state"} <= set(code.co_names):
            self.suspects.add("reads the state of numpy's random generator", frame)
        attribute = reads_of_gradients(code, isinstance(frame.f_locals.get((*code.co_varnames, "")[0]), Tensor))
        if attribute is not None:
            self.suspects.add(f"may read .{attribute} of a tensor, which a program does not have", frame)

    def _registry(self, cls: type) -> None:
        """Watch which classes have been registered as being of an abstract class."""
        if cls not in self._abstract:
            self._abstract.add(cls)
            dump = _abc._get_dump  # type: ignore[attr-defined]
            self.snapshot.add_reading(lambda: (len(dump(cls)[0]),), lambda _: f"what is registered as a {cls.__name__}")

    def _importing(self, frame: types.FrameType, name: str) -> None:
        self._imports.append((frame.f_code, frame.f_globals.get("__package__"), name))
        self._look_into(*self._imports[-1])

    def _look_into(self, code: types.CodeType, package: str | None, name: str) -> None:
        """Watch what code names of the modules that it imports while it runs."""
        for module in imported_by(code, package, name):
            self._inside(module, names_in(code), f"{os.path.basename(code.co_filename)}: {module.__name__}", 0)

    def _inside(self, value: Any, names: tuple[str, ...], path: str, depth: int) -> None:
        """What code names of a Python module or class that it names."""
        if isinstance(value, type):
            self._class(value, names)
        elif isinstance(value, types.ModuleType) and depth < 3:
            for name in names:
                if name in vars(value) and vars(value)[name] is not sys.modules:
                    self.snapshot.look_up(value, name, f"{path}.{name}")
                    self._inside(vars(value)[name], names, f"{path}.{name}", depth + 1)

    def _class(self, cls: type, names: tuple[str, ...]) -> None:
        places: list[type] = [*cls.__mro__, *type(cls).mro(type(cls))]
        users = [c for c in places if str(c.__module__).partition(".")[0] not in ("torch", "builtins", "abc", "enum")]
        for name in names:
            if any(name in vars(c) for c in users):
                for c in users:
                    self.snapshot.look_up(c, name, f"{c.__name__}.{name}")

    def _module(self, module: nn.Module, frame: types.FrameType) -> None:
        if module in self.snapshot.modules or id(module) in self._made and not _has_state(module):
            return
        name = type(module).__name__
        if _has_state(module):
            self.suspects.add(
                f"calls a {name} that is no submodule of the model: its parameters would be constants", frame
            )
        self.snapshot.add_modules(module, f"the {name} called at {place_of(frame)}")

    def close(self) -> None:
        """After the run: watch the functions that ran; say which closures were rebound, and what could not be found."""
        self._settle()
        for found in self._imports:  # what was not there before
            self._look_into(*found)
        for frame, call in self._running.items():  # generators that have not come to their end
            if not self._keep_function(frame, call):
                self._add_unfound(frame, call)
        self._running.clear()
        if any(own() for own in self._perhaps_own):
            gc.collect()  # a function of the run's own that calls itself is garbage now
        self._functions |= {f: {} for own in self._perhaps_own if (f := own()) is not None}
        self._find_rest()
        for function, free in self._functions.items():
            for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
                if name in free and cell.cell_contents is not free[name]:
                    line = function.__code__.co_firstlineno
                    self.suspects.always(f"rebinds {name} ({_file(function.__code__)}:{line})")
        functions = list(self._functions)
        self.snapshot.add_functions(functions, [_name(function.__code__) for function in functions])

    def _find_rest(self) -> None:
        """Look for functions through all that there is: of a code that several functions have, all are watched.

        Those alone are not that are another module's: a function that `__init__` makes of `self` is one for each model.
        """
        rest = {code: calls for code, calls in self._unfound.items() if has_more(code)}
        found = functions_with(rest)
        for code, calls in rest.items():
            functions = [f for f in found if f.__code__ is code and not is_of_another_module(f, calls.values())]
            free = next(iter(calls.values()))
            unchanged = [f for f in functions if holds(f, free)]
            self._functions |= {f: free if f in unchanged or not unchanged else {} for f in functions}
            if not functions and code not in self._made_here:
                self.suspects.always(f"the defaults and closure of {_name(code)} cannot be found, nor watched")


def _has_state(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _file(code: types.CodeType) -> str:
    return os.path.basename(code.co_filename)


def _name(code: types.CodeType) -> str:
    return f"{_file(code)}: {getattr(code, 'co_qualname', code.co_name)}"
