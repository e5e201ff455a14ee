"""Chat templates: the checkpoint's own by jinja2 in its sandbox, or ChatML when jinja2 is not installed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from compiler.errors import Problem, WeightsError

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
CHATML = "<|im_start|>"


def render(template: str, messages: Sequence[Message], reply: bool, names: Mapping[str, str]) -> str:
    """The text of a conversation. ``reply``: end where the assistant begins. ``names``: bos_token and the like."""
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        if CHATML not in template:
            message = "this chat template needs jinja2: pip install jinja2"
            raise WeightsError(Problem("missing-package", message)) from None
        return chatml(template, messages, reply)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = refuse
    options: dict[str, Any] = {"messages": messages, "add_generation_prompt": reply, **names}
    try:
        return environment.from_string(template).render(**options)
    except TemplateError as e:
        raise WeightsError(Problem("bad-chat", f"the chat template refuses these messages: {e}")) from None


def chatml(template: str, messages: Sequence[Message], reply: bool) -> str:
    """<|im_start|>role, the content, <|im_end|>; with the system message that the template has for a chat without."""
    turns = list(messages)
    start, end = f"'{CHATML}system\n", "<|im_end|>"
    if (not turns or turns[0]["role"] != "system") and start in template:
        default = template.split(start, 1)[1].split(end, 1)[0]
        turns.insert(0, {"role": "system", "content": default})
    text = "".join(f"{CHATML}{m['role']}\n{m['content']}{end}\n" for m in turns)
    return text + (f"{CHATML}assistant\n" if reply else "")
