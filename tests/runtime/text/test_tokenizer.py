"""Tokenizers from tokenizer.json and from GGUF metadata, on vocabularies small enough to follow by hand."""

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest
from gguf.constants import GGMLQuantizationType as Type
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, pre_tokenizers, trainers

from compiler.errors import WeightsError
from runtime.text import chat
from runtime.text.gguf_tokenizer import build
from runtime.text.tokenizer import tokenizer
from tests.runtime.weights.test_gguf import drawn, write

REAL = Path(os.environ.get("SMOLLM2_GGUF", "none"))  # SmolLM2-135M-Instruct as published, any quantisation
TEXTS = ["Hello, world!", "In 2024 there", "  two\n\n\ttabs", "日本語 é 😀👩‍👩‍👧", "²³½ Ⅷ", "don't", "", " "]
CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
Be kind<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""


@pytest.fixture(scope="module")
def inner():
    """A byte-level BPE trained on a few words; ids 0 to 2 are special."""
    made = Inner(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>", "<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(["hello world, the world is there"] * 3 + ["2024 2024", "user system assistant"], trainer)
    return made


@pytest.fixture(scope="module")
def metadata(inner):
    table = json.loads(inner.to_str())["model"]
    tokens = sorted(table["vocab"], key=table["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3), "tokenizer.chat_template": CHATML,
        "tokenizer.ggml.merges": [" ".join(m) for m in table["merges"]], "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip


@pytest.fixture(scope="module", params=["json", "gguf"])
def made(request, inner, metadata, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    if request.param == "json":
        inner.save(str(path / "tokenizer.json"))
        config = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": CHATML}
        (path / "tokenizer_config.json").write_text(json.dumps(config))
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
        return tokenizer(path)
    adders = {str: "add_string", bool: "add_bool", int: "add_uint32", list: "add_array"}
    lines = [(adders[type(v)], k, v) for k, v in metadata.items()]
    return tokenizer(write(path / "x.gguf", {"a": (drawn(2, 32), Type.F32)}, lines))


@pytest.mark.parametrize("text", TEXTS)
def test_round_trips_whole_and_in_pieces(made, inner, text):
    ids = made.encode(text)
    assert ids == inner.encode(text).ids and made.decode(ids) == text
    stream = made.stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.flush() == text and not any("\ufffd" in p for p in pieces)


def test_special_tokens(made):
    assert (made.bos, made.eos, made.token("<|im_start|>")) == (1, 2, 1) and made.stops >= {2}
    ids = made.encode("<|im_start|>hello<|im_end|>")
    assert ids[0] == 1 and ids[-1] == 2
    assert made.decode(ids) == "hello" and made.decode(ids, special=True) == "<|im_start|>hello<|im_end|>"
    plain = made.encode("<|im_start|>", special=False)
    assert 1 not in plain and made.decode(plain) == "<|im_start|>"
    assert made.encode("<|im_start|>") == [1]


def test_a_broken_end_is_told_by_flush(made):
    ids = made.encode("é")
    stream = made.stream()
    assert stream.push(ids[0]) == "" and stream.flush() == "\ufffd"


def test_chat(made):
    messages = [{"role": "user", "content": "hello"}]
    expected = "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert made.chat_text(messages) == expected == chat.chatml(CHATML, messages, True)
    assert made.decode(made.chat(messages), special=True) == expected
    named = [{"role": "system", "content": "x"}, *messages]
    assert made.chat_text(named, reply=False) == chat.chatml(CHATML, named, False)
    with pytest.raises(WeightsError, match="no roles"):
        chat.render("{{ raise_exception('no roles') }}", messages, True, {})
    with pytest.raises(WeightsError, match="refuses"):  # the sandbox: a template is a stranger's program
        chat.render("{{ ''.__class__.__mro__[1].__subclasses__() }}", messages, True, {})


def greedy(text, scores):
    """SentencePiece's BPE, written out: merge the neighbours whose piece has the best score, the leftmost first."""
    parts = list(text)
    while True:
        best = max(
            ((scores[a + b], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in scores),
            default=None,
        )
        if best is None:
            return parts
        i = -best[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def test_sentencepiece_by_scores():
    pieces = ["▁a", "an", "▁an", "na", "ana", "ban", "▁ban", "anan", "nana", "▁b", "▁banana", "bana"]
    letters = ["▁", "a", "b", "n"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces, *letters]
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(pieces) + len(letters))]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces) + len(letters))]
    made = build({"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.scores": scores,
                  "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.bos_token_id": 1,
                  "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0})  # fmt: skip
    table = dict(zip(tokens[259:], scores[259:], strict=True))
    for text in ("banana", "an ana nab", "bb  nanan", "ananabanana"):
        ids = made.encode(text)
        assert ids.tokens == ["<s>", *greedy("▁" + text.replace(" ", "▁"), table)], text
        assert made.decode(ids.ids) == text
    assert made.encode("é").tokens == ["<s>", "▁", "<0xC3>", "<0xA9>"] and made.decode(made.encode("é").ids) == "é"


@pytest.mark.parametrize(("key", "value", "hint"), [
    ("tokenizer.ggml.model", "bert", None), ("tokenizer.ggml.pre", "smolm", "smollm"),
])  # fmt: skip
def test_unknown_tokenizers_are_refused_by_name(metadata, key, value, hint):
    with pytest.raises(WeightsError, match=f"'{value}' is not known") as e:
        build({**metadata, key: value})
    assert e.value.problems[0].suggestion == hint


def test_no_tokenizer(tmp_path):
    with pytest.raises(WeightsError, match=r"no tokenizer\.json"):
        tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"is no tokenizer\.json"):
        tokenizer(tmp_path)
    path = write(tmp_path / "x.gguf", {"a": (drawn(2, 32), Type.F32)})
    with pytest.raises(WeightsError, match="holds no tokenizer"):
        tokenizer(path)


@pytest.mark.skipif(not REAL.is_file(), reason="SMOLLM2_GGUF names no file")
def test_the_real_smollm2():
    made = tokenizer(REAL)
    assert (made.size, made.bos, made.eos) == (49152, 1, 2)
    assert made.encode("In 2024") == [788, 216, 34, 32, 34, 36]  # digits one by one
    # ids that several public programs print for the published tokenizer.json
    assert made.encode("Hello, 世界!") == [19556, 28, 216, 7906, 240, 178, 239, 230, 17]
    assert made.encode("What is the capital of France?") == [1780, 314, 260, 3575, 282, 4649, 47]
    ids = made.chat([{"role": "user", "content": "Hi"}])
    assert ids[:21] == [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407,
                        19712, 8182, 2, 198]  # fmt: skip
    for text in TEXTS:
        assert made.decode(made.encode(text)) == text
