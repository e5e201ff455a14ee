"""Optimised HLO text as computations of instructions; what a compiler wrote, not what we asked for.

A whole training step is megabytes, most of it ``backend_config`` and shapes that nobody asks about: the text is cut
into lines at once, and the rest of a line is parsed when it is asked for.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

# The result's shape ends where " opcode(" begins: inside a tuple, ")" is followed by one of , } ) ( or a letter.
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([^\s=]+) = (\(.*?\)|[^\s(]\S*) ([a-z][\w\-]*)\(")
_COMPUTATION = re.compile(r"(ENTRY )?%?([^\s({]+).*\{$")
_SHAPE = re.compile(r"/\*.*?\*/|([a-z][a-z0-9]*)\[([^\]]*)\](?:\{([^{}]*)\})?|([()])")
_NAME = re.compile(r"%([^\s,()]+)")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]()]|, ')
_PAREN = re.compile(r'"(?:[^"\\]|\\.)*"|[()]')
_COMMENT = re.compile(r"/\*.*?\*/")
_OP_NAME = re.compile(r'\bop_name="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")
_BITS = re.compile(r"[a-z]+(\d+)")


class HloError(ValueError):
    """The text is not optimised HLO as this parser knows it."""


@dataclass(frozen=True)
class Shape:
    """An array, or a tuple when ``parts`` is not None."""

    dtype: str
    dims: tuple[int, ...] = ()
    layout: str = ""  # minor to major and what the target adds: tiles, memory space
    parts: tuple[Shape, ...] | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Without the padding of tiles; a tuple's parts together."""
        if self.parts is not None:
            return sum(part.bytes for part in self.parts)
        return -(-self.elements * bits(self.dtype) // 8)

    def leaves(self) -> Iterator[Shape]:
        if self.parts is None:
            yield self
        else:
            for part in self.parts:
                yield from part.leaves()


def bits(dtype: str) -> int:
    """Of one element; 0 for what carries no data (tokens)."""
    if dtype == "pred":
        return 8
    found = _BITS.match(dtype)
    return int(found[1]) if found else 0


@lru_cache(maxsize=1 << 15)
def parse_shape(text: str) -> Shape:
    """``bf16[8,128]{1,0:T(8,128)(2,1)}`` or a tuple of such."""
    stack: list[list[Shape]] = [[]]
    for found in _SHAPE.finditer(text):
        if found[4] == "(":
            stack.append([])
        elif found[4] == ")":
            if len(stack) < 2:
                raise HloError(f"not a shape: {text[:80]!r}")
            parts = tuple(stack.pop())
            stack[-1].append(Shape("tuple", parts=parts))
        elif found[1]:
            # A bound (<=8) is the size that memory is laid out for.
            dims = tuple(int(d.lstrip("<=")) for d in found[2].split(",") if d.strip() not in ("", "?"))
            stack[-1].append(Shape(found[1], dims, found[3] or ""))
    if len(stack) != 1 or len(stack[0]) != 1:
        raise HloError(f"not a shape: {text[:80]!r}")
    return stack[0][0]


class Instruction:
    """One line. ``rest`` is all after the operands; what it holds is parsed when asked for."""

    def __init__(self, name: str, opcode: str, shape_text: str, operand_text: str, rest: str, root: bool) -> None:
        self.name = name
        self.opcode = opcode
        self.shape_text = shape_text
        self.operand_text = operand_text
        self.rest = rest
        self.root = root

    def __repr__(self) -> str:
        return f"%{self.name} = {self.shape_text} {self.opcode}({self.operand_text})"

    @cached_property
    def shape(self) -> Shape:
        return parse_shape(self.shape_text)

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the operands, with or without their shapes and % in the text."""
        if "%" in self.operand_text:
            return tuple(_NAME.findall(self.operand_text))
        if self.opcode in ("parameter", "constant", "iota"):
            return ()
        words = _COMMENT.sub("", self.operand_text)
        return tuple(part.split()[-1] for part in _split(words) if part.strip())

    @cached_property
    def attributes(self) -> dict[str, str]:
        """Every ``key=value`` after the operands, values as text. ``device_ids`` stays in the value it belongs to."""
        found: dict[str, str] = {}
        last = ""
        for part in _split(self.rest):
            key, equals, value = part.strip().partition("=")
            if equals and key != "device_ids" and key.replace("_", "").isalnum():
                last = key
                found[key] = value
            elif last:
                found[last] += f", {part}"
        return found

    def called(self, *keys: str) -> tuple[str, ...]:
        """Names of the computations under these attributes, in order."""
        names: list[str] = []
        for key in keys:
            value = self.attributes.get(key, "")
            names += (part.strip().lstrip("%") for part in value.strip("{}").split(",") if part.strip())
        return tuple(names)

    @cached_property
    def op_name(self) -> str:
        found = _OP_NAME.search(self.rest)
        return _ESCAPED.sub(r"\1", found[1]) if found else ""

    @cached_property
    def backend_config(self) -> Mapping[str, Any]:
        """Its JSON, which older versions print as a string; empty where there is none or it is no JSON object."""
        text = self.attributes.get("backend_config", "")
        try:
            value = json.loads(text) if text else {}
            if isinstance(value, str):
                value = json.loads(value)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def ints(self, key: str) -> tuple[int, ...]:
        """A list of numbers such as ``dimensions={0,1}``."""
        return tuple(int(n) for n in re.findall(r"-?\d+", self.attributes.get(key, "")))


class Computation:
    """Instructions by name, in the order of the text."""

    def __init__(self, name: str, entry: bool) -> None:
        self.name = name
        self.entry = entry
        self.instructions: dict[str, Instruction] = {}
        self.root: Instruction | None = None

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def __getitem__(self, name: str) -> Instruction:
        return self.instructions[name]

    def get(self, name: str) -> Instruction | None:
        return self.instructions.get(name)

    def operand_shapes(self, instruction: Instruction) -> tuple[Shape, ...]:
        try:
            return tuple(self.instructions[name].shape for name in instruction.operands)
        except KeyError as error:
            raise HloError(f"%{instruction.name} has the unknown operand {error}") from None

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        """By number."""
        return {int(i.operand_text): i for i in self if i.opcode == "parameter"}


@dataclass
class Module:
    name: str
    header: str  # the rest of the first line
    computations: dict[str, Computation]
    entry: Computation

    def __getitem__(self, name: str) -> Computation:
        try:
            return self.computations[name]
        except KeyError:
            raise HloError(f"the module has no computation %{name}") from None

    @property
    def devices(self) -> int:
        """How many run it: partitions times replicas."""
        return self._number("num_partitions") * self._number("replica_count")

    def _number(self, key: str) -> int:
        found = re.search(rf"\b{key}=(\d+)", self.header)
        return int(found[1]) if found else 1


def parse(text: str) -> Module:
    """The module of one optimised HLO text."""
    name, header = "", ""
    computations: dict[str, Computation] = {}
    entry: Computation | None = None
    current: Computation | None = None
    lines = iter(text.splitlines())
    for line in lines:
        if current is None:
            if line.startswith("HloModule "):
                name, _, header = line[len("HloModule ") :].partition(",")
            elif line.endswith("{") and not line.startswith((" ", "\t")):
                found = _COMPUTATION.match(line)
                if found is None:
                    raise HloError(f"not a computation: {line[:120]!r}")
                current = computations[found[2]] = Computation(found[2], bool(found[1]))
                entry = current if found[1] else entry
        elif line.startswith("}"):
            current = None
        elif line and not line.isspace():
            instruction = _instruction(line, lines)
            current.instructions[instruction.name] = instruction
            if instruction.root:
                current.root = instruction
    if entry is None:
        raise HloError("the text has no ENTRY computation")
    return Module(name.strip(), header, computations, entry)


def _instruction(line: str, lines: Iterator[str]) -> Instruction:
    found = _INSTRUCTION.match(line)
    if found is None:
        raise HloError(f"not an instruction: {line[:120]!r}")
    start = found.end()
    end = _closing(line, start)
    while end < 0:  # the rows of a constant stand on lines of their own
        following = next(lines, None)
        if following is None:
            raise HloError(f"an instruction without end: {line[:120]!r}")
        line += "\n" + following
        end = _closing(line, start)
    return Instruction(found[2], found[4], found[3], line[start:end], line[end + 1 :], bool(found[1]))


def _closing(line: str, start: int) -> int:
    """The place of the parenthesis that closes the one before ``start``; -1 when it is not in the line."""
    end = line.find(")", start)
    if end >= 0 and line.find("(", start, end) < 0 and line.find('"', start, end) < 0:
        return end
    depth = 1
    for found in _PAREN.finditer(line, start):
        if found[0] == "(":
            depth += 1
        elif found[0] == ")":
            depth -= 1
            if not depth:
                return found.start()
    return -1


def _split(text: str) -> list[str]:
    """At the commas outside of strings and brackets."""
    parts: list[str] = []
    depth, start = 0, 0
    for found in _TOKEN.finditer(text):
        token = found[0]
        if token in "{[(":
            depth += 1
        elif token in "}])":
            depth -= 1
        elif token == ", " and depth == 0:
            parts.append(text[start : found.start()])
            start = found.end()
    parts.append(text[start:])
    return [part for part in parts if part.strip(" ,")]
