"""A tokenizer from a GGUF's metadata: byte-level BPE ("gpt2") and SentencePiece BPE by scores ("llama")."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from compiler.errors import Problem, WeightsError, nearest

NORMAL, UNKNOWN, CONTROL, USER = 1, 2, 3, 4  # tokenizer.ggml.token_type

# Patterns as llama.cpp and the models' own tokenizer.json have them; letters that follow an apostrophe ignore case.
_LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")  # fmt: skip
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _bytes() -> list[Any]:
    """GPT-2's own split into words, numbers and signs."""
    return [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]


def _digits() -> list[Any]:
    return [pre_tokenizers.Digits(individual_digits=True), *_bytes()]


def _pattern(text: str) -> Callable[[], list[Any]]:
    def steps() -> list[Any]:
        return [pre_tokenizers.Split(Regex(text), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]

    return steps


# tokenizer.ggml.pre -> the steps that cut a text before merging. "default" is what an old converter wrote for a
# tokenizer it did not know: GPT-2's is the most likely.
_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
PRE: dict[str, Callable[[], list[Any]]] = {
    "default": _bytes, "gpt-2": _bytes, "olmo": _bytes, "smollm": _digits, "starcoder": _digits, "refact": _digits,
    "command-r": _digits, "llama-bpe": _pattern(_LLAMA3), "llama3": _pattern(_LLAMA3), "llama-v3": _pattern(_LLAMA3),
    "qwen2": _pattern(_QWEN2),
}  # fmt: skip


def build(metadata: Mapping[str, Any]) -> Tokenizer:
    """Raises WeightsError where a part is unknown: a wrong split gives wrong tokens in silence."""
    kind = metadata.get("tokenizer.ggml.model")
    models: dict[str, Callable[[Mapping[str, Any], list[str]], Tokenizer]] = {"gpt2": _byte_bpe, "llama": _scored_bpe}
    tokens = metadata.get("tokenizer.ggml.tokens")
    if kind is None or not isinstance(tokens, list):
        _refuse("the GGUF holds no tokenizer", ())
    if kind not in models:
        _refuse(f"tokenizer.ggml.model '{kind}' is not known here", tuple(models))
    made = models[kind](metadata, tokens)
    kinds = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    control = (CONTROL, UNKNOWN) if kind == "llama" else (CONTROL,)
    named = [t for t, k in zip(tokens, kinds, strict=True) if k in control]
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in named])
    made.add_tokens([AddedToken(t, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == USER])
    begin = kind == "llama" or metadata.get("tokenizer.ggml.pre") in _LLAMA3_NAMES  # unless the file says otherwise
    _ends(made, metadata, tokens, begin)
    return made


def _byte_bpe(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in PRE:
        _refuse(f"tokenizer.ggml.pre '{pre}' is not known here", tuple(PRE), nearest(str(pre), PRE))
    merges = [tuple(m.split(" ", 1)) for m in metadata.get("tokenizer.ggml.merges", [])]
    # Llama 3 takes a whole word that is a token before it merges anything
    whole = pre in _LLAMA3_NAMES
    made = Tokenizer(BPE({t: i for i, t in enumerate(tokens)}, merges, ignore_merges=whole))
    if pre == "qwen2":
        made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(PRE[pre]())
    made.decoder = decoders.ByteLevel()
    return made


def _scored_bpe(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    """SentencePiece BPE: of all neighbours the pair whose joint piece has the best score is merged first. The scores
    give every merge its rank: each way to cut a piece in two pieces, best piece first."""
    vocab = {t: i for i, t in enumerate(tokens)}
    scores, kinds = metadata.get("tokenizer.ggml.scores"), metadata.get("tokenizer.ggml.token_type")
    if not scores or not kinds:
        _refuse("a tokenizer 'llama' needs scores and token types", ())
    found = []
    for piece, score, kind in zip(tokens, scores, kinds, strict=True):
        if kind == NORMAL:
            cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
            pairs = [(vocab[a], vocab[b], a, b) for a, b in cuts if a in vocab and b in vocab]
            found += [(-score, vocab[piece], a, b) for _, _, a, b in sorted(pairs)]
    found.sort(key=lambda m: m[:2])  # stable: cuts of one piece stay in order
    merges = [(a, b) for _, _, a, b in found]
    unknown = tokens[metadata.get("tokenizer.ggml.unknown_token_id", 0)]
    made = Tokenizer(BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    steps: list[Any] = [normalizers.Replace(" ", "▁")]
    decode: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, normalizers.Prepend("▁"))
        decode.append(decoders.Strip(" ", 1, 0))
    made.normalizer = normalizers.Sequence(steps)
    made.decoder = decoders.Sequence(decode)
    return made


def _ends(made: Tokenizer, metadata: Mapping[str, Any], tokens: list[str], begin: bool) -> None:
    """The tokens that every text begins and ends with."""
    ends: dict[str, str] = {}
    for name, add in (("bos", begin), ("eos", False)):
        token = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if token is not None and metadata.get(f"tokenizer.ggml.add_{name}_token", add):
            ends[name] = tokens[token]
    if not ends:
        return
    single = [*([ends["bos"]] if "bos" in ends else []), "$A", *([ends["eos"]] if "eos" in ends else [])]
    listed = [(t, made.token_to_id(t)) for t in dict.fromkeys(ends.values())]
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=listed)


def _refuse(message: str, allowed: tuple[str, ...], suggestion: str | None = None) -> NoReturn:
    raise WeightsError(Problem("unknown-tokenizer", message, None, allowed, suggestion))
