"""A JSON file as mappings and lists that know where everything stands. Bounded: its size, its depth and its parts."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from compiler.errors import BlockgraphError, Position, Problem
from compiler.source.yaml import YList, YMap

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_PARTS = 100_000
MAX_DIGITS = 40
_SPACE = re.compile(r"[ \t\r\n]*")
_TOKEN = re.compile(
    r"(?P<mark>[{}\[\],:])"
    r'|(?P<text>"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")'
    r"|(?P<number>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)(?![0-9A-Za-z_.])"
    r"|(?P<word>true|false|null|NaN|-?Infinity)(?![0-9A-Za-z_])"
)
_WORDS = {"true": True, "false": False, "null": None, "NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_MISSING = object()


def load_json(path: Path) -> YMap:
    """The mapping in a file. Raises BlockgraphError with the place of the first fault."""
    shown, where = str(path), Position(str(path), 1, 1)
    try:
        if path.exists() and not path.is_file():  # a pipe would block, a device would never end
            raise problem("not-a-file", f"{shown} is {'a directory' if path.is_dir() else 'no regular file'}", where)
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise problem("too-large", f"the file is larger than {MAX_BYTES:,} bytes", where)
        text = data.decode("utf-8")
    except FileNotFoundError:
        raise problem("file-missing", f"there is no file {shown}", where) from None
    except UnicodeDecodeError as error:
        message = f"byte 0x{error.object[error.start]:02x} at offset {error.start:,} is not UTF-8"
        raise problem("not-utf8", message, where) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise problem("file-unreadable", f"{shown} cannot be read: {error}", where) from None
    return loads_json(text, shown)


def loads_json(text: str, file: str) -> YMap:
    """The mapping written in ``text``. Raises BlockgraphError with the place of the first fault."""
    found = _Reader(text.removeprefix("\ufeff"), file).read()
    if not isinstance(found, YMap):
        raise problem("not-a-mapping", f"{file} holds no mapping of fields", Position(file, 1, 1))
    return found


def problem(code: str, message: str, where: Position, mend: str | None = None) -> BlockgraphError:
    return BlockgraphError(Problem(code, message, where, (), mend))


class _Reader:
    def __init__(self, text: str, file: str) -> None:
        self.text, self.file, self.at = text, file, 0
        self.line, self.line_start, self.counted, self.parts = 1, 0, 0, 0

    def where(self) -> Position:
        """The place of ``at``; lines are counted on the way there, once."""
        seen = self.text.count("\n", self.counted, self.at)
        if seen:
            self.line += seen
            self.line_start = self.text.rindex("\n", self.counted, self.at) + 1
        self.counted = self.at
        return Position(self.file, self.line, self.at - self.line_start + 1)

    def token(self) -> tuple[str, str, Position]:
        space = _SPACE.match(self.text, self.at)
        self.at = space.end() if space else self.at
        where = self.where()
        if self.at >= len(self.text):
            return "end", "", where
        self.parts += 1
        if self.parts > MAX_PARTS:
            raise problem("too-large", f"the file has more than {MAX_PARTS:,} parts", where)
        found = _TOKEN.match(self.text, self.at)
        if found is None:
            rest = self.text[self.at : self.at + 12].splitlines()[0]
            if rest.startswith('"'):
                raise problem("json-syntax", "a text is never closed, or holds what JSON does not allow in one", where)
            raise problem("json-syntax", f"JSON has nothing that begins with {rest!r}", where)
        self.at = found.end()
        return str(found.lastgroup), found[0], where

    def read(self) -> object:
        stack: list[YMap | YList] = []
        root: object = _MISSING
        key: str | None = None
        kind, text, where = self.token()
        while True:
            value = self.value(kind, text, where)
            if not stack:
                root = value
            elif isinstance(top := stack[-1], YMap):
                assert key is not None
                top[key] = value
                top.value_position[key] = where
            else:
                top.append(value)
                top.item_position.append(where)
            if isinstance(value, YMap | YList):
                if len(stack) >= MAX_DEPTH:
                    raise problem("too-deep", f"nested deeper than {MAX_DEPTH} levels", where)
                stack.append(value)
                kind, text, where = self.token()
                if text == ("}" if isinstance(value, YMap) else "]"):
                    stack.pop()
                    kind, text, where = self.token()
                elif isinstance(value, YMap):
                    key, (kind, text, where) = self.key(value, kind, text, where), self.token()
                    continue
                else:
                    continue
            else:
                kind, text, where = self.token()
            while stack and text == ("}" if isinstance(stack[-1], YMap) else "]"):
                stack.pop()
                kind, text, where = self.token()
            if not stack:
                if kind != "end":
                    raise problem("json-syntax", f"nothing may follow the value of the file, found {text!r}", where)
                return root
            if text != ",":
                close = "}" if isinstance(stack[-1], YMap) else "]"
                found = f"{text!r}" if text else "the end of the file"
                raise problem("json-syntax", f"found {found} where ',' or '{close}' was expected", where)
            kind, text, where = self.token()
            if isinstance(top := stack[-1], YMap):
                key, (kind, text, where) = self.key(top, kind, text, where), self.token()

    def key(self, owner: YMap, kind: str, text: str, where: Position) -> str:
        """A key, with the colon behind it."""
        if kind != "text":
            found = f"{text!r}" if text else "the end of the file"
            raise problem("json-syntax", f"found {found} where a key in double quotes was expected", where)
        key = _text(text)
        if first := owner.key_position.get(key):
            raise problem("duplicate-key", f"lines {first.line} and {where.line} both write {key!r}", where)
        owner.key_position[key] = where
        _, colon, there = self.token()
        if colon != ":":
            raise problem("json-syntax", f"a ':' is missing behind {key!r}", there)
        return key

    def value(self, kind: str, text: str, where: Position) -> object:
        if text in ("{", "["):
            return YMap(where) if text == "{" else YList(where)
        if kind == "text":
            return _text(text)
        if kind == "word":
            return _WORDS[text]
        if kind == "number":
            if len(text) > MAX_DIGITS:
                raise problem("number-out-of-range", f"a number of more than {MAX_DIGITS} characters", where)
            number = int(text) if re.fullmatch("-?[0-9]+", text) else float(text)
            if not math.isfinite(number):
                raise problem("number-out-of-range", f"no finite number: {text}", where)
            return number
        found = f"{text!r}" if text else "the end of the file"
        raise problem("json-syntax", f"found {found} where a value was expected", where)


def _text(token: str) -> str:
    """A text in quotes; half a surrogate pair, which no encoding can write, becomes a question mark."""
    return str(json.loads(token)).encode("utf-8", "replace").decode("utf-8")
