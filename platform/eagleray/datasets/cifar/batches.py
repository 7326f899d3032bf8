"""Reads a pickled batch without unpickling it.

Unpickling calls what the file names, and even numpy's own functions can be made to show foreign memory. Here a pickle's
opcodes are read as a list of values; a call is kept as a note of what was to be called, and the few notes that mean
bytes or an array of numbers are worked out afterwards.
"""

import math
import pickletools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eagleray.contracts.dataset import content
from eagleray.contracts.errors import ConfigError

LARGEST = 256 * 2**20  # bytes of a file; the published ones have up to 155 million
MOST = 1_000_000  # opcodes; the published files have up to 200,000
LONGEST = 1000  # characters of a text, such as a name
NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy._core.numeric", "numpy.core.numeric", "numpy")
NAMES = {  # what a batch may name -> what it is called here
    **{f"{module}.{name}": name for module in NUMPY for name in ("_reconstruct", "_frombuffer", "ndarray", "dtype")},
    "_codecs.encode": "encode",
}
KINDS = {"u1": np.dtype("u1"), "i8": np.dtype("<i8")}
ORDERS = ("|", "<")  # of the bytes of a number

VALUES = {  # opcodes that carry the value that they stand for
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1"),
    *("BINSTRING", "SHORT_BINSTRING", "STRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(eq=False)
class Call:
    """What a pickle wants called, which nothing ever calls."""

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None


class Mark:
    """Stands on the stack where a group of values begins."""


def read_batch(path: Path, *keys: str) -> list[Any]:
    """Read some values of a pickled dictionary.

    They are texts, lists of texts or whole numbers, and arrays of uint8 or int64. Texts of Python 2 are latin-1.

    Raises:
        ConfigError: the file is damaged, too large, lacks a key or contains anything else.
    """
    raw = content(path, LARGEST)
    try:
        batch = _Stack().read(pickletools.genops(raw))
        return [_value(batch[key]) for key in keys]
    except KeyError as error:
        raise ConfigError(f"{path} has no {error}; download it again") from error
    except Exception as error:  # a damaged pickle can raise anything
        why = str(error) or type(error).__name__
        raise ConfigError(f"{path} cannot be read: {why}; download it again") from error


class _Stack:
    """The values that the opcodes read so far have left."""

    def __init__(self):
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self, operations: Iterable[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> dict[str, Any]:
        """Carry out all opcodes and return the dictionary that they build.

        Raises:
            ValueError, TypeError: they build none, or use what a batch does not need.
        """
        for number, (operation, argument, _) in enumerate(operations):
            if number == MOST:
                raise ValueError(f"it has more than {MOST:,} parts")
            self._carry_out(operation.name, argument)
        if len(self.stack) != 1:
            raise ValueError("it contains no batch")
        return _of(dict, self.stack[0])

    def _carry_out(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _ if name in VALUES:
                stack.append(argument)
            case _ if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case _ if name in TUPLES:
                stack.append(self._last(TUPLES[name]))
            case "MARK":
                stack.append(Mark)
            case "TUPLE":
                stack.append(self._group())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "LIST":
                stack.append(list(self._group()))
            case "DICT":
                stack.append(_dictionary(self._group()))
            case "APPEND" | "APPENDS":
                more = self._last(1) if name == "APPEND" else self._group()
                _of(list, self._top()).extend(more)
            case "SETITEM" | "SETITEMS":
                more = self._last(2) if name == "SETITEM" else self._group()
                _of(dict, self._top()).update(_dictionary(more))
            case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self.memo[len(self.memo) if argument is None else argument] = self._top()
            case "GET" | "BINGET" | "LONG_BINGET" if argument in self.memo:
                stack.append(self.memo[argument])
            case "GLOBAL":
                stack.append(_named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(_named(*self._last(2)))
            case "REDUCE":
                called, arguments = self._last(2)
                stack.append(Call(_of(Call, called).name, _of(tuple, arguments)))
            case "BUILD":
                (state,) = self._last(1)
                _of(Call, self._top()).state = state
            case _:
                raise ValueError(f"it has a {name}, which a batch of images does not need")

    def _top(self) -> Any:
        (top,) = self._last(1)
        self.stack.append(top)
        return top

    def _last(self, count: int) -> tuple[Any, ...]:
        """Take the last values from the stack."""
        first = len(self.stack) - count
        if first < 0:
            raise ValueError("it uses more values than it has")
        values = tuple(self.stack[first:])
        del self.stack[first:]
        return values

    def _group(self) -> tuple[Any, ...]:
        """Take all values after the last mark, and the mark."""
        count = 0
        while count < len(self.stack) and self.stack[-1 - count] is not Mark:
            count += 1
        values = self._last(count + 1)
        return values[1:]


def _named(module: Any, name: Any) -> Call:
    whole = f"{module}.{name}"
    if whole not in NAMES:
        raise ValueError(f"it asks for {whole}, which a batch of images does not need")
    return Call(NAMES[whole])


def _dictionary(flat: tuple[Any, ...]) -> dict[str, Any]:
    return {_text(key): value for key, value in zip(flat[::2], flat[1::2], strict=True)}


def _of(kind: type, value: Any) -> Any:
    """Return a value that is of exactly this kind."""
    if type(value) is not kind:
        raise TypeError(f"it uses a {type(value).__name__} as a {kind.__name__}")
    return value


def _value(value: Any) -> Any:
    """Return a value of a batch with the notes in it worked out."""
    if type(value) is list:
        return [each if type(each) is int else _text(each) for each in value]
    return _array(value) if type(value) is Call and value.name != "encode" else _text(value)


def _array(made: Call) -> np.ndarray:
    """Return the array that a note describes, over bytes of the file."""
    if made.name == "_reconstruct":
        _, shape, kind, is_fortran, raw = _of(tuple, made.state)
        order = "F" if is_fortran else "C"
    elif made.name == "_frombuffer":
        raw, kind, shape, order = made.arguments
    else:
        raise ValueError(f"it calls {made.name} for what must be an array")
    number, raw = _number(kind), _bytes(raw)
    sides = [_of(int, side) for side in _of(tuple, shape)]
    if min(sides, default=0) < 0 or math.prod(sides) * number.itemsize != len(raw):
        raise ValueError("an array has another size than its bytes")
    return np.frombuffer(raw, number).reshape(sides, order="F" if order == "F" else "C")


def _number(kind: Any) -> np.dtype:
    """Return the kind of number that a note describes."""
    code, *_ = _of(Call, kind).arguments
    _, order, *_ = _of(tuple, kind.state)
    if kind.name != "dtype" or type(code) is not str or code not in KINDS or order not in ORDERS:
        raise ValueError("an array has numbers that are neither u1 nor i8")
    return KINDS[code]


def _text(value: Any) -> str:
    text = value if type(value) is str else _bytes(value).decode("latin-1")
    if len(text) > LONGEST:
        raise ValueError(f"it has a text of {len(text):,} characters")
    return text


def _bytes(value: Any) -> bytes:
    """Return bytes, which pickles of Python 2 and for Python 2 have as text."""
    if type(value) is Call and value.name == "encode":
        value, encoding = value.arguments
        if encoding != "latin1":
            raise ValueError("it has bytes in another encoding than latin1")
    if type(value) is str:
        return value.encode("latin-1")
    return bytes(value) if type(value) is bytearray else _of(bytes, value)
