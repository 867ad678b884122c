"""A vocabulary as `tokenizer.json`, which `tokenizers` and transformers read without this project."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longspan.data.vocabularies import SPECIALS, LookupVocabulary, Vocabulary

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
    if not isinstance(vocabulary, LookupVocabulary):
        return _write_own(vocabulary, folder, max_length=max_length, begins=begins)
    symbols = vocabulary.symbols
    if vocabulary.name == "bytes":
        from longspan.data.vocabularies.subwords import SHOWN_BYTES as shown

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
    _write(tokenizer, folder, max_length, {special.strip("<>"): special for special in SPECIALS})
    return True


def _write_own(vocabulary: Vocabulary, folder: Path, *, max_length: int, begins: bool) -> bool:
    """Of a tokenizer as it is; k-mers have none in this format."""
    from tokenizers import Tokenizer, processors

    from longspan.data.vocabularies.subwords import SubwordVocabulary

    if not isinstance(vocabulary, SubwordVocabulary):
        return False
    tokenizer, bos = Tokenizer.from_str(vocabulary.tokenizer.to_str()), vocabulary.specials["bos"]
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, vocabulary.bos_id)])
    _write(tokenizer, folder, max_length, vocabulary.specials)
    return True


def _write(tokenizer: Any, folder: Path, max_length: int, specials: Mapping[str, str]) -> None:
    tokenizer.save(str(folder / FILES[0]))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **{f"{kind}_token": token for kind, token in specials.items()},
    }
    (folder / FILES[1]).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
