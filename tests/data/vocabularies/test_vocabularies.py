"""Vocabularies: ids and back, raw bytes of each token, names, and texts that look like special tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from longspan.config.errors import ConfigError
from longspan.data.vocabularies import BYTES, PROTEINS, KmerVocabulary, OutsideVocabularyError, restored, subwords, vocabulary
from longspan.data.vocabularies.subwords import SubwordVocabulary, UntrainedBpe, train_bpe

TEXTS = [b"the dog and the cat and the bird, " * 20, "wörld of größe\n".encode() * 10]
BPE = train_bpe(TEXTS, 300)


def word_pieces() -> Tokenizer:
    """One that drops blanks, lowers case and knows few words, with BERT's special tokens."""
    words = ["[UNK]", "he", "##llo", "world", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece({word: id for id, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("the dog <bos>\n\r ö€😀<|endoftext|>"), max_size=60))
def test_subwords_give_back_every_byte_and_count_it_once(text):
    data = text.encode()
    ids, spans = BPE.encode_spans(data)
    assert BPE.decode_bytes(ids) == data and spans.sum() == len(data) and ids.dtype == BPE.dtype
    assert not set(ids.tolist()) & set(BPE.special_ids)  # what looks like a special token is text
    assert BPE.decode([BPE.bos_id, *ids, BPE.pad_id]) == text


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("heloHELO wrd\t ü€zz"), max_size=40))
def test_a_tokenizer_that_changes_texts_still_counts_raw_bytes(text):
    words = SubwordVocabulary("words", word_pieces())
    ids, spans = words.encode_spans(text.encode())
    assert words.byte_lengths is None and len(ids) == len(spans)
    assert spans.sum() == (len(text.encode()) if len(ids) else 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.text(st.sampled_from("ACGTNacgtRU"), max_size=40))
def test_kmers_give_back_every_base(k, text):
    kmers = KmerVocabulary(k)
    ids, spans = kmers.encode_spans(text.encode())
    assert kmers.decode(ids) == text.upper().replace("U", "T") and spans.sum() == len(text)
    whole = len(text) // k
    words = [text.upper().replace("U", "T")[i * k : (i + 1) * k] for i in range(whole)]
    plain = sum(set(word) <= set("ACGT") for word in words)
    assert len(ids) == plain + (len(text) - plain * k)


def test_kmers_are_numbered_in_the_order_of_their_bases():
    kmers = KmerVocabulary(2)
    assert kmers.encode("AAACTTNA") == [0, 1, 15, 16 + 14, 16] and kmers.size == 16 + 15 + 4


def test_proteins():
    assert PROTEINS.decode(PROTEINS.encode("MKv*")) == "MKV*" and PROTEINS.bytewise
    with pytest.raises(OutsideVocabularyError, match="'1' at position 2"):
        PROTEINS.encode("MK1")
    for text, what in (("ACé", "'é' at position 2"), ("A🙂C", "'🙂' at position 1"), (b"A\xffC", "'ÿ' at position 1")):
        with pytest.raises(OutsideVocabularyError, match=what):
            vocabulary("nucleotides").encode(text)


def test_training_is_the_same_every_time_and_is_cached(tmp_path):
    first, again = UntrainedBpe(300).trained(TEXTS, tmp_path), UntrainedBpe(300).trained(TEXTS, tmp_path)
    assert first.tokenizer.to_str() == again.tokenizer.to_str() == train_bpe(TEXTS, 300).tokenizer.to_str()
    assert len(list(tmp_path.iterdir())) == 1
    UntrainedBpe(300).trained(TEXTS[:1], tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # other texts, another tokenizer
    assert first.size <= 300 and train_bpe(TEXTS, 270).size == 270


def test_what_a_checkpoint_keeps_brings_the_vocabulary_back():
    for known in (BPE, SubwordVocabulary("words", word_pieces(), {"bos": "[CLS]"})):
        again = restored(json.loads(json.dumps(known.state())), "x")
        text = b"hello world"
        assert (again.encode_bytes(text) == known.encode_bytes(text)).all() and again.size == known.size
        assert (again.pad_id, again.bos_id, again.mask_id, again.eos_id) == (
            known.pad_id,
            known.bos_id,
            known.mask_id,
            known.eos_id,
        )
    for wrong in (None, {}, {"kind": "tokenizer"}, {"kind": "tokenizer", "json": "{}", "specials": {}}):
        with pytest.raises(ValueError, match="checkpoint=x holds a vocabulary"):
            restored(wrong, "checkpoint=x")


def test_files_and_folders_of_tokenizers(tmp_path):
    tokenizer = word_pieces()
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    by_file = vocabulary(str(tmp_path / "tokenizer.json"))
    assert by_file.decode(by_file.encode("hello world")) and len(by_file.encode("hello world")) == 3  # not cut
    assert by_file.bos_id == 4 and by_file.size == 8
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "[SEP]"}, "pad_token": None}))
    assert vocabulary(str(tmp_path)).bos_id == 5
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"data\.vocabulary='.*broken\.json'.*cannot be read as a tokenizer\.json"):
        vocabulary(str(tmp_path / "broken.json"))


def test_a_folder_of_gpt2_files_is_read_by_transformers(tmp_path):
    pytest.importorskip("transformers")
    told = json.loads(BPE.tokenizer.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps({**told["vocab"], "<|endoftext|>": len(told["vocab"])}))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in told["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    read = vocabulary(str(tmp_path))
    assert read.encode("the dog") == BPE.encode("the dog") and read.decode(read.encode("the dög")) == "the dög"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("byte", "Did you mean bytes"),
        ("bpe:3", "give a number of tokens after bpe:, 260 to"),
        ("kmers:9", "give a number of bases after kmers:, 1 to 8"),
        ("kmers:", "kmers"),
        ("nowhere/tokenizer.json", "there is no such vocabulary or file"),
    ],
)
def test_wrong_names(name, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if name == "kmers:":
        assert vocabulary(name).k == 6
        return
    with pytest.raises(ConfigError, match=message):
        vocabulary(name)


def test_long_texts_go_in_pieces_and_bytes_that_are_no_utf8_are_told(monkeypatch):
    monkeypatch.setattr(subwords, "PIECE", 64)
    text = b"the dog and\n" * 90 + b"x" * 200
    ids, spans = BPE.encode_spans(text)
    assert BPE.decode_bytes(ids) == text and spans.sum() == len(text)
    with pytest.raises(OutsideVocabularyError, match="byte 0xff, which is not UTF-8, at position 3"):
        BPE.encode(b"the\xff")
    assert BYTES.encode(b"\xff") == [255]


def test_ids_outside_are_told():
    for known in (BPE, KmerVocabulary(2), BYTES):
        with pytest.raises(ValueError, match=f"outside 0..{known.size - 1}"):
            known.decode([known.size])
    assert BPE.decode(np.array([], dtype=np.int64)) == ""


@pytest.mark.parametrize(
    ("name", "meant"), [("DNA", "nucleotides"), ("protein", "proteins"), ("6mer", "kmers:6"), ("text", "bytes")]
)
def test_a_name_that_is_no_vocabulary_is_told_the_one_it_means(name, meant):
    with pytest.raises(ConfigError, match=rf"data\.vocabulary='{name}': .*Did you mean {meant}\?"):
        vocabulary(name)
