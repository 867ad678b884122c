"""A vocabulary as `tokenizer.json`, which `tokenizers` and transformers read without this project."""

from __future__ import annotations

import json
from pathlib import Path

from longspan.data.vocabulary import SPECIALS, Vocabulary

FILES = ("tokenizer.json", "tokenizer_config.json")


def write_tokenizer(vocabulary: Vocabulary, folder: Path, *, max_length: int, begins: bool) -> bool:
    """Writes both files, where the `tokenizers` package is installed; returns whether it did.

    Args:
        begins: whether each text begins with <bos>, as in language modelling.
    """
    try:
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
        from tokenizers.models import BPE
    except ImportError:
        return False
    symbols = vocabulary.symbols
    if vocabulary.name == "bytes":
        shown = _shown_bytes()
        tokenizer = Tokenizer(BPE({shown[byte]: index for index, byte in enumerate(symbols)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        # what the vocabulary would refuse becomes N, any base: this format has no errors
        unknown = "N" if b"N" in symbols else None
        tokenizer = Tokenizer(BPE({chr(byte): index for index, byte in enumerate(symbols)}, [], unk_token=unknown))
        other = {chr(b): chr(symbols[vocabulary.table[b]]) for b in range(256) if vocabulary.table[b] >= 0 and b not in symbols}
        tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(a, b) for a, b in other.items()])
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
        tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(special, special=True, normalized=False) for special in SPECIALS])
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", vocabulary.bos_id)]
        )
    tokenizer.save(str(folder / FILES[0]))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **{f"{special.strip('<>')}_token": special for special in SPECIALS},
    }
    (folder / FILES[1]).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return True


def _shown_bytes() -> dict[int, str]:
    """The printable character that stands for each byte in byte-level tokenizers: itself where it has one, else from 256 up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shown = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in shown)
    return shown | {byte: chr(256 + number) for number, byte in enumerate(others)}
