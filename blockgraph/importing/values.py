"""What a template can name: a config's fields and what is computed of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from blockgraph.importing.kinds import Misfit
from compiler.source.expr import ExprError, evaluate, parse


class Values(dict[str, Any]):
    """Values by name, and the sums and conditions over them."""

    def number(self, expression: Any, **more: Any) -> Any:
        """The number of an expression; true counts as 1, false as 0. Raises ExprError."""
        if not isinstance(expression, str):
            return expression

        def lookup(name: str) -> Any:
            value = more[name] if name in more else self[name]
            if isinstance(value, bool):
                return int(value)
            if value is None:
                raise ExprError(f"{name} is null", code="missing-field", name=name)
            return value

        found = evaluate(parse(expression), lookup)
        return int(found) if isinstance(found, float) and found.is_integer() and abs(found) < 1e15 else found

    def holds(self, condition: str) -> bool:
        """`a`, `not a`, `a = word`, `a has word`, joined by `and` or by `or`: null, false, 0 and nothing do not
        hold."""
        words = condition.split()
        for joint, whole in ((" or ", any), (" and ", all)):
            if joint.strip() in words:
                return whole(self.holds(part) for part in condition.split(joint))
        if words[0] == "not":
            return not self.holds(" ".join(words[1:]))
        if len(words) == 3 and words[1] == "=":
            return str(self[words[0]]) == words[2]
        if len(words) == 3 and words[1] == "has":
            return words[2] in (self[words[0]] or ())
        (name,) = words
        return bool(self[name])

    def compute(self, name: str, rule: Any) -> None:
        """Adds a value by its line in a type's file."""
        if not isinstance(rule, Mapping):
            self[name] = self.number(rule)
        elif "text" in rule:
            self[name] = rule["text"]
        elif "number" in rule:
            self[name] = self.number(rule["number"]) if self.holds(rule["if"]) else None
        elif "if" in rule:
            self[name] = rule["then"] if self.holds(rule["if"]) else rule.get("else", "")
        elif "first" in rule:
            self[name] = next((self[n] for n in rule["first"] if self[n] is not None), rule.get("else"))
        elif "by" in rule:
            self[name] = rule["of"][str(self[rule["by"]])]
        elif "zip" in rule:
            self[name] = [" ".join(words) for words in zip(*(self[n] for n in rule["zip"]), strict=True)]
        else:
            self[name] = self.each_layer(rule)

    def each_layer(self, rule: Mapping[str, Any]) -> list[str]:
        """A word for each layer: those of the list ``given``, or of ``cycle`` over and over, else of the first of
        ``rules`` whose number is not 0."""
        count, given = int(self.number(rule["layers"])), self.get(rule.get("given", ""))
        if turn := self.get(rule.get("cycle", "")):
            return [str(turn[i % len(turn)]) for i in range(count)]
        if given:
            if len(given) != count:
                raise Misfit(f"{len(given)} entries, and one for each of {count} layers is needed")
            return [str(g) for g in given]
        return [self._of_layer(rule["rules"], i) for i in range(count)]

    def _of_layer(self, rules: Sequence[Mapping[str, Any]], layer: int) -> str:
        for rule in rules:
            ((word, test),) = rule.items()
            if layer in (self[test["in"]] or ()) if isinstance(test, Mapping) else self.number(test, layer=layer):
                return word
        raise AssertionError("the last rule holds for every layer")
