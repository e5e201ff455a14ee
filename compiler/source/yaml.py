"""A strict YAML loader: YAML 1.2 core scalars, a position for everything, a refusal for every known trap.

It walks PyYAML's events with a stack of its own, so no nesting in a file can exhaust Python's. Every fault
goes to ``problems``, and after any fault the result is None: half a mapping is never handed on.

Keys are text. A plain key that YAML reads as something else (``1:``, ``true:``) is refused, not turned into
text, because ``1`` and ``0x1`` would then be two keys.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from compiler.errors import Position, Problems

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_EVENTS = 30_000
MAX_KEYS = 2_000  # of one mapping
MAX_PROBLEMS = 50  # of one file; then the rest is noise, and telling it takes time
MAX_DIGITS = 40
_FATAL = ("too-large", "too-deep", "yaml-documents", "yaml-syntax")  # the rest of the file cannot be trusted
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NOT_PRINTABLE = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_INT, _OCTAL, _HEX = re.compile(r"[-+]?[0-9]+"), re.compile(r"0o[0-7]+"), re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}

# What PyYAML's C and Python scanners say, what a person should read, and a mend; the first that fits counts.
_INDENTATION = "mend the indentation, or quote the text"
_WORDING = (
    ("nesting depth", f"nested deeper than {MAX_DEPTH} levels", None),
    (r"tab character|start any token.*\\t", "a tab cannot indent in YAML", "use spaces"),
    ("scanning an (alias|anchor)", "plain text cannot begin with * or &", "quote the text"),
    ("node content", "a value is missing here", None),
    ("mapping values", "': ' begins a value, and none can stand here", "quote the text, or indent it"),
    ("could not find expected ':'", "a key without ':'", "write 'key: value', or '- item' in a list"),
    ("unexpected end of stream", "a quote is opened and never closed", "close the quote"),
    ("start any token", "plain text cannot begin with this character", "quote the text"),
    ("',' or", "a ',' or a closing bracket is missing", "close the bracket, or quote the text"),
    ("'-' indicator|expected (key|<block end>)", "this does not fit the lines above", _INDENTATION),
)


class YMap(dict[str, object]):
    """A mapping that knows where it, its keys and its values were written."""

    def __init__(self, position: Position) -> None:
        self.position = position
        self.key_position: dict[str, Position] = {}
        self.value_position: dict[str, Position] = {}
        self.text_start: dict[str, Position] = {}  # of values that are text on one line, as it is read

    def within(self, key: str, offset: int = 0) -> Position:
        """The place of character ``offset`` of a text value, or of the value where the file writes it otherwise."""
        start = self.text_start.get(key)
        return Position(start.file, start.line, start.column + offset) if start else self.value_position[key]

    def adopt(self, key: str, other: YMap) -> None:
        """Takes a key over from another mapping, with its places."""
        self[key] = other[key]
        for mine, theirs in zip(self._places(), other._places(), strict=True):
            mine.pop(key, None)
            if key in theirs:
                mine[key] = theirs[key]

    def set(self, key: str, value: object, place: Position) -> None:
        """A key that no file wrote."""
        self[key] = value
        self.key_position[key] = self.value_position[key] = place
        self.text_start.pop(key, None)

    def _places(self) -> tuple[dict[str, Position], ...]:
        return self.key_position, self.value_position, self.text_start


class YList(list[object]):
    """A list that knows where it and its items were written."""

    def __init__(self, position: Position) -> None:
        self.position = position
        self.item_position: list[Position] = []


def load_file(path: Path, problems: Problems, display: str | None = None) -> YMap | None:
    """The mapping in a file, called ``display`` in problems; None after any fault."""
    shown = display or str(path)
    where = Position(shown, 1, 1)
    try:
        if path.exists() and not path.is_file():  # a pipe would block, a device would never end
            kind = "a directory" if path.is_dir() else "no regular file"
            code, message = "not-a-file", f"{shown} is {kind}"
        elif path.stat().st_size > MAX_BYTES:
            code, message = "too-large", f"the file is larger than {MAX_BYTES:,} bytes"
        else:
            with path.open("rb") as stream:
                text = stream.read(MAX_BYTES + 1).decode("utf-8")
            return load_text(text, shown, problems)
    except FileNotFoundError:
        code, message = "file-missing", f"there is no file {shown}"
    except UnicodeDecodeError as error:
        where = _place(error.object[: error.start].decode("utf-8"), shown)
        byte = error.object[error.start]
        code, message = "not-utf8", f"byte 0x{byte:02x} is not UTF-8; save the file as UTF-8"
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        code, message = "file-unreadable", f"{shown} cannot be read: {error}"
    problems.add(code, message, where)
    return None


def load_text(text: str, file: str, problems: Problems) -> YMap | None:
    """The mapping written in ``text``; None after any fault, which is then in ``problems``."""
    with contextlib.suppress(_Stop):
        return _Reader(text.removeprefix("\ufeff"), file, problems).read()
    return None


class _Stop(Exception):
    """The rest of the file is not worth reading."""


_ITEM, _REFUSED = object(), object()  # stand for a key: of a list's items, and of a value to read and drop


@dataclass
class _Open:
    """A collection whose end has not come yet; ``key`` is the key that waits for its value, else None."""

    value: YMap | YList
    flow: bool
    key: object = _ITEM


class _Reader:
    def __init__(self, text: str, file: str, problems: Problems) -> None:
        self.text, self.file, self.problems = text, file, problems
        self.faulty_lines: list[int] = []  # one for each fault
        self.documents = YList(Position(file, 1, 1))
        self.stack = [_Open(self.documents, False)]
        self.torn_until = 0  # up to this offset the text is what YAML tore apart at a comma

    def read(self) -> YMap | None:
        start = self.documents.position
        if len(self.text) > MAX_BYTES:
            self.report("too-large", f"the text is longer than {MAX_BYTES:,} characters", start)
        if bad := _NOT_PRINTABLE.search(self.text):
            where = _place(self.text[: bad.start()], self.file)
            self.report("yaml-syntax", f"character U+{ord(bad[0]):04X} is not allowed in YAML", where)
        for count, event in enumerate(self.events()):
            if count >= MAX_EVENTS:
                self.report("too-large", f"the file has more than {MAX_EVENTS:,} parts", self.at(event))
            self.take(event)
        root = self.documents[0] if self.documents else None
        if not isinstance(root, YMap) and not self.faulty_lines:
            found = {YList: "a list", type(None): "nothing"}.get(type(root), "a single value")
            self.report("not-a-mapping", f"a file must hold keys and values, found {found}", start)
        return root if isinstance(root, YMap) and not self.faulty_lines else None

    def events(self) -> Iterator[Any]:
        try:
            yield from yaml.parse(self.text, Loader=_LOADER)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: \U00110000 in PyYAML's own scanner
            context, mark = getattr(error, "context_mark", None), getattr(error, "problem_mark", None)
            said = f"{getattr(error, 'context', None) or 'YAML'}: {getattr(error, 'problem', None) or error}"
            rest = self.text[mark.index :] if mark else ""
            said += f" {rest[:1]!r}"  # libyaml does not name the character
            _, words, mend = next((row for row in _WORDING if re.search(row[0], said)), ("", said, None))
            if context and (not rest.strip() or re.search("simple key|quoted scalar", said)):
                mark = context  # it was noticed only further down, or at the end
            where = Position(self.file, mark.line + 1, mark.column + 1) if mark else self.documents.position
            # A trap that was told often trips the parser further on in its line: one fault, one problem.
            if where.line in self.faulty_lines:
                raise _Stop from error
            self.report("too-deep" if "nesting depth" in said else "yaml-syntax", words, where, mend)

    def take(self, event: Any) -> None:
        where = self.at(event)
        if isinstance(event, yaml.CollectionEndEvent):
            self.stack.pop()
        elif isinstance(event, yaml.AliasEvent):
            self.alias(event, where)
        elif isinstance(event, yaml.DocumentStartEvent):
            if self.documents:
                self.report("yaml-documents", "a second document begins here; a file holds one", where)
            if event.version or event.tags:
                self.report("yaml-directive", "a % directive is not allowed", where, "leave it out")
        elif isinstance(event, yaml.NodeEvent):
            for kind, written in (("anchor", event.anchor), ("tag", getattr(event, "tag", None))):
                if written is not None:
                    self.report(f"yaml-{kind}", f"{kind}s are not allowed: {written}", where, "use a block")
            if isinstance(event, yaml.ScalarEvent):
                self.scalar(event, where)
            else:
                self.open(event, where)

    def alias(self, event: Any, where: Position) -> None:
        top = self.stack[-1]
        if top.key is not _REFUSED:  # `<<: *base` was told at its key
            mend = f'use a block, or quote it if text is meant: "*{event.anchor}"'
            self.report("yaml-alias", f"aliases are not allowed: {event.anchor}", where, mend)
        if top.key is None:
            top.key = _REFUSED
        else:
            self.put(None, where)

    def open(self, event: Any, where: Position) -> None:
        if len(self.stack) > MAX_DEPTH:
            self.report("too-deep", f"nested deeper than {MAX_DEPTH} levels", where)
        kind = "mapping" if isinstance(event, yaml.MappingStartEvent) else "list"
        value = YMap(where) if kind == "mapping" else YList(where)
        if self.stack[-1].key is None:
            if event.start_mark.index >= self.torn_until:
                self.report("key-not-text", f"a key must be text, found a {kind}", where)
            self.stack[-1].key = _REFUSED
        else:
            self.put(value, where)
        self.stack.append(_Open(value, bool(event.flow_style), None if kind == "mapping" else _ITEM))

    def scalar(self, event: Any, where: Position) -> None:
        text, plain, start, top = event.value, not event.style, event.start_mark.index, self.stack[-1]
        if bad := _NOT_PRINTABLE.search(text):  # by an escape: half a surrogate pair, a NUL
            self.report("yaml-syntax", f"character U+{ord(bad[0]):04X} is not allowed", where)
        if start >= self.torn_until and plain and top.flow and _unbalanced(text):
            self.tell_torn(text, start, top.key, where)
        torn = start < self.torn_until
        if top.key is None and isinstance(top.value, YMap):
            top.key = _REFUSED if torn else self.key(top.value, text, plain, where)
        else:
            if isinstance(top.value, YMap) and isinstance(top.key, str):
                length, quotes = event.end_mark.index - start, 0 if plain else 1
                if length == len(text) + 2 * quotes and "\n" not in text:
                    top.value.text_start[top.key] = Position(self.file, where.line, where.column + quotes)
            self.put(self.resolve(text, where) if plain and not torn else text, where)

    def tell_torn(self, found: str, start: int, key: object, where: Position) -> None:
        """`{a: max(b, c)}` is two keys to YAML: say once what was meant, and nothing of the other pieces."""
        self.torn_until, quoted = _mend(self.text, start)
        before = f"{key}: " if isinstance(key, str) else ""
        mend = f"quote it: {before}{quoted}" if quoted else "close the parenthesis, or quote the text"
        message = f"unbalanced parenthesis in {found!r}: inside {{}} and [] YAML splits at each comma"
        self.report("unbalanced-parenthesis", message, where, mend)

    def key(self, owner: YMap, text: str, plain: bool, where: Position) -> object:
        if plain and text == "<<":
            self.report("yaml-merge", "the merge key << is not allowed", where, "use a block")
        elif plain and (text in _WORDS or _number(text) is not None):
            self.report("key-not-text", f"a key must be text, found '{text}'", where, f'quote it: "{text}"')
        elif first := owner.key_position.get(text):
            same = f"line {where.line} writes {text!r} twice"
            both = f"lines {first.line} and {where.line} both write {text!r}"
            self.report("duplicate-key", same if first.line == where.line else both, where)
        elif len(owner.key_position) >= MAX_KEYS:
            self.report("too-large", f"a mapping has at most {MAX_KEYS:,} keys", where)
        else:
            owner.key_position[text] = where
            return text
        return _REFUSED

    def put(self, value: object, where: Position) -> None:
        top = self.stack[-1]
        if isinstance(top.value, YList):
            top.value.append(value)
            top.value.item_position.append(where)
        else:
            if isinstance(top.key, str):
                top.value[top.key] = value
                top.value.value_position[top.key] = where
            top.key = None

    def resolve(self, text: str, where: Position) -> object:
        """What a plain scalar means in YAML 1.2: the core schema without infinities and NaN."""
        if text in _WORDS:
            return _WORDS[text]
        number = _number(text)
        if number is not None and not abs(number) < math.inf:
            self.report("number-out-of-range", f"no finite number of sensible size: {text}", where)
        return text if number is None else number

    def at(self, event: Any) -> Position:
        return Position(self.file, event.start_mark.line + 1, event.start_mark.column + 1)

    def report(self, code: str, message: str, where: Position, mend: str | None = None) -> None:
        mend = mend and mend[:300]  # a key can be a megabyte
        self.problems.add(code, message[:300], where, suggestion=mend)
        self.faulty_lines.append(where.line)
        if code in _FATAL or len(self.faulty_lines) >= MAX_PROBLEMS:
            raise _Stop


def _place(before: str, file: str) -> Position:
    return Position(file, before.count("\n") + 1, len(before) - before.rfind("\n"))


def _number(text: str) -> int | float | None:
    """The number a plain scalar says, not finite when it is too large, None when it is text."""
    for pattern, base in ((_INT, 10), (_OCTAL, 8), (_HEX, 16)):
        if pattern.fullmatch(text):  # the length is looked at first: int() of a megabyte of digits is slow
            return int(text.removeprefix("0o"), base) if len(text) <= MAX_DIGITS else math.inf
    if _NOT_FINITE.fullmatch(text):
        return math.inf
    return float(text) if _FLOAT.fullmatch(text) else None


def _unbalanced(text: str) -> bool:
    depths = [0, *accumulate((char == "(") - (char == ")") for char in text)]
    return min(depths) < 0 or depths[-1] > 0


def _mend(text: str, start: int) -> tuple[int, str | None]:
    """Where the expression that begins at ``start`` ends, and the expression in quotes if it closes soon."""
    depth = 0
    for end in range(start, min(start + 400, len(text))):
        char = text[end]
        depth += (char == "(") - (char == ")")
        if depth < 0:
            break
        if depth == 0 and char in ",:]}\n":
            meant = " ".join(text[start:end].split())
            return end, f"'{meant}'" if '"' in meant else f'"{meant}"'
    return start + 1, None
