"""Text to token ids and back, from a tokenizer.json or from a GGUF's metadata."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Inner

from compiler.errors import Problem, WeightsError
from runtime.text import chat as chats
from runtime.text.chat import Message
from runtime.weights.source import open_source


class Tokenizer:
    """``bos`` and ``eos`` are ids or None; ``stops`` are all ids that end a reply."""

    def __init__(
        self,
        inner: Inner,
        bos: int | None = None,
        eos: int | None = None,
        stops: Iterable[int] = (),
        template: str | None = None,
    ) -> None:
        self._inner, self.bos, self.eos, self.template = inner, bos, eos, template
        self.stops = frozenset({*stops, *([eos] if eos is not None else [])})
        self._lock = threading.Lock()  # the library keeps how special tokens are read as a property of the tokenizer

    @property
    def size(self) -> int:
        """Ids run from 0 to size - 1."""
        return self._inner.get_vocab_size()

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text. ``special``: names such as <|im_start|> in the text are special tokens, and begin and end
        tokens are added where the model wants them; without, all of it is plain text."""
        with self._lock:
            self._inner.encode_special_tokens = not special
            return list(self._inner.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of ids; special tokens are left out unless ``special``."""
        return self._inner.decode(list(ids), skip_special_tokens=not special)

    def stream(self, special: bool = False) -> Stream:
        """A decoder for ids that come one by one."""
        return Stream(self, special)

    def token(self, name: str) -> int | None:
        """The id of a token by its name, as in "<|im_start|>"."""
        return self._inner.token_to_id(name)

    def save(self, folder: Path) -> None:
        """Writes the files that ``tokenizer`` reads from a folder."""
        names = {k: self._inner.id_to_token(i) for k, i in (("bos", self.bos), ("eos", self.eos)) if i is not None}
        config = {**{f"{k}_token": text for k, text in names.items()}, "chat_template": self.template}
        (folder / "tokenizer.json").write_text(self._inner.to_str(), "utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
        generation = {"bos_token_id": self.bos, "eos_token_id": sorted(self.stops)}
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n", "utf-8")

    def chat_text(self, messages: Sequence[Message], reply: bool = True) -> str:
        """A conversation as the model's template writes it; ``reply``: up to where the assistant begins."""
        if self.template is None:
            raise WeightsError(Problem("no-chat-template", "this checkpoint has no chat template: use encode"))
        names = {}
        for name, token in (("bos_token", self.bos), ("eos_token", self.eos)):
            names[name] = (self._inner.id_to_token(token) or "") if token is not None else ""
        return chats.render(self.template, messages, reply, names)

    def chat(self, messages: Sequence[Message], reply: bool = True) -> list[int]:
        """Ids of a conversation. Contents are read like the template: special tokens in them count."""
        text = self.chat_text(messages, reply)
        with self._lock:
            self._inner.encode_special_tokens = False
            return list(self._inner.encode(text, add_special_tokens=False).ids)  # the template writes bos itself


class Stream:
    """Gives text as soon as it is certain: a character whose bytes come in several tokens waits for all of them.
    The pieces joined are the text that decoding everything at once gives."""

    def __init__(self, tokenizer: Tokenizer, special: bool) -> None:
        self.tokenizer, self.special = tokenizer, special
        self.ids: list[int] = []  # from a token on before which all text was given
        self.read = 0  # of these, how many are given; they stay as context: some tokens lose a leading space alone

    def push(self, token: int) -> str:
        """The text that became certain with this token, perhaps none."""
        self.ids.append(token)
        before, after = self._texts()
        if after.endswith("\ufffd") or len(after) <= len(before):
            return ""
        self.ids, self.read = self.ids[self.read :], len(self.ids) - self.read
        return after[len(before) :]

    def flush(self) -> str:
        """What is left at the end, broken characters as U+FFFD."""
        before, after = self._texts()
        self.ids, self.read = [], 0
        return after[len(before) :]

    def _texts(self) -> tuple[str, str]:
        decode = self.tokenizer.decode
        return decode(self.ids[: self.read], self.special), decode(self.ids, self.special)


def tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint: a directory with tokenizer.json, that file, or a GGUF."""
    path = Path(path)
    if path.is_file() and path.suffix == ".json":
        return _from_json(path)
    directory = path if path.is_dir() else path.parent
    if path.suffix != ".gguf" and (directory / "tokenizer.json").is_file():
        return _from_json(directory / "tokenizer.json")
    files = [path] if path.suffix == ".gguf" else sorted(path.glob("*.gguf")) if path.is_dir() else []
    if len(files) != 1:
        message = f"{path} holds no tokenizer.json and {'several GGUF files' if files else 'no GGUF file'}"
        raise WeightsError(Problem("no-tokenizer", message, None, ("tokenizer.json", "a file *.gguf")))
    return _from_gguf(files[0])


def _from_gguf(path: Path) -> Tokenizer:
    from runtime.text.gguf_tokenizer import build

    with open_source(path) as source:
        metadata: dict[str, Any] = getattr(source, "metadata", {})
    bos, eos = (metadata.get(f"tokenizer.ggml.{n}_token_id") for n in ("bos", "eos"))
    stops = [metadata[k] for k in ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id") if k in metadata]
    return Tokenizer(build(metadata), bos, eos, stops, metadata.get("tokenizer.chat_template"))


def _from_json(path: Path) -> Tokenizer:
    try:
        inner = Inner.from_str(path.read_text("utf-8"))
    except Exception as e:  # the library raises bare Exceptions
        raise WeightsError(Problem("bad-tokenizer", f"{path} is no tokenizer.json: {e}")) from None
    config = _config(path.parent / "tokenizer_config.json")
    generation = {**_config(path.parent / "config.json"), **_config(path.parent / "generation_config.json")}

    def token(name: str) -> int | None:
        """An id by the token's text, else by the model's configuration."""
        text = config.get(f"{name}_token")
        text = text.get("content") if isinstance(text, dict) else text
        if isinstance(text, str) and (found := inner.token_to_id(text)) is not None:
            return found
        value = generation.get(f"{name}_token_id")
        value = value[0] if isinstance(value, list) and value else value
        return value if isinstance(value, int) else None

    ends = generation.get("eos_token_id")
    stops = [i for i in (ends if isinstance(ends, list) else [ends]) if isinstance(i, int)]
    return Tokenizer(inner, token("bos"), token("eos"), stops, _template(path.parent, config))


def _template(directory: Path, config: dict[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):  # several by name
        found = next((t.get("template") for t in found if isinstance(t, dict) and t.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError as e:
        raise WeightsError(Problem("bad-tokenizer", f"{path} is no JSON: {e}")) from None
    return found if isinstance(found, dict) else {}
