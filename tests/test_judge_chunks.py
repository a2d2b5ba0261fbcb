import random
from pathlib import Path

import numpy as np
import pytest

from lr_ray.judge import chunks
from lr_ray.judge.chunks import built_in, measure, split

ALPHABETS = {
    "english": "abc de. fgh! ij\n",
    "chinese": "天地玄黄。宇宙洪荒，",
    "emoji": "a 😀👩‍👩‍👧é́\u200b",
    "one word": "x",
    "surrogate": "a\ud800b ",
}


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("tokens", [8, 16, 100])
def test_nothing_is_lost_and_no_chunk_is_too_long(alphabet: str, tokens: int) -> None:
    rng = random.Random(alphabet)
    text = "".join(rng.choices(ALPHABETS[alphabet], k=3000))
    parts = split(text, tokens, measure(None))
    assert "".join(part["text"] for part in parts) == text
    assert all(len(part["text"].encode("utf-8", "surrogatepass")) <= 4 * tokens for part in parts)
    # At least half full, so that the number of chunks is bounded.
    assert all(len(part["text"].encode("utf-8", "surrogatepass")) >= 2 * tokens - 4 for part in parts[:-1])


def test_positions_are_where_chunks_start() -> None:
    text = "One sentence here. " * 100
    offset = 0
    for part in split(text, 16, measure(None)):
        assert part["position"] == offset / len(text)
        offset += len(part["text"])


def test_chunks_end_with_a_sentence_else_a_word() -> None:
    sentences = split("Mira keeps copper. Toben keeps salt. " * 9, 12, measure(None))
    assert all(part["text"].endswith(". ") for part in sentences)
    words = split("copper salt tin amber " * 20, 12, measure(None))
    assert all(part["text"].endswith(" ") for part in words)


def test_a_short_text_is_one_chunk() -> None:
    assert split("Short.", 128, measure(None)) == [{"position": 0.0, "text": "Short."}]


def test_the_built_in_rule_counts_bytes() -> None:
    assert built_in("aé天😀").tolist() == [0, 1, 3, 6, 10]
    assert built_in("").tolist() == [0]


@pytest.mark.parametrize("text", ["Hello there. General words! " * 40, "你好世界。再见。" * 60, "😀" * 200])
def test_a_hugging_face_tokenizer_counts_and_loses_nothing(tmp_path: Path, text: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["Hello there words"], trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(str(tmp_path))
    measured = measure(str(tmp_path))
    assert measured.unit == 1
    assert measured.upto(text)[-1] == len(tokenizer.encode(text).ids)
    parts = split(text, 24, measured)
    assert "".join(part["text"] for part in parts) == text
    assert len(parts) > 1
    counts = [len(tokenizer.encode(part["text"]).ids) for part in parts]
    # Cut apart, a text may need a token more at its ends than within the whole.
    assert max(counts) <= 24 + 2


def test_measures_grow(tmp_path: Path) -> None:
    for text in ALPHABETS.values():
        assert (np.diff(built_in(text)) > 0).all()
    assert chunks.BYTES_A_TOKEN == 4
