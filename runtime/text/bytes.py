"""The tokenizer of models that read bytes: id = byte, as training on a text without a tokenizer has it."""

from __future__ import annotations

from tokenizers import Tokenizer as Inner
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import BPE

from runtime.text.tokenizer import Tokenizer


def byte_tokenizer() -> Tokenizer:
    inner = Inner(BPE({sign: byte for byte, sign in enumerate(_signs())}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return Tokenizer(inner)


def _signs() -> list[str]:
    """The character that stands for each byte in the library: itself where it prints, else one from 256 on (GPT-2)."""
    printing = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printing else next(others)) for byte in range(256)]
