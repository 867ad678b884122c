"""Reading from the other strand: an involution on tokens and labels, drawn anew each epoch, the same after a resume."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.config.errors import ConfigError
from longspan.data import NUCLEOTIDES, TextDataModule, TokenLabellingDataModule
from longspan.data.augment import reverse_complement
from longspan.data.vocabularies import SOFT_MASKED, vocabulary

PAIRS = dict(zip("ACGTRYSWKMBDHVN", "TGCAYRSWMKVHDBN", strict=True))


@settings(max_examples=60, deadline=None)
@given(st.text("ACGTRYSWKMBDHVN", max_size=40), st.booleans(), st.sampled_from([NUCLEOTIDES, SOFT_MASKED]))
def test_twice_is_once_and_once_is_the_other_strand(bases, begins, symbols):
    tokens = np.array([symbols.bos_id] * begins + symbols.encode(bases), dtype=np.uint8)
    item = {"tokens": tokens, "labels": np.arange(len(tokens)) % 3}
    swap = np.array([0, 2, 1])
    once = reverse_complement(item, symbols.complement, swap)
    assert symbols.decode(once["tokens"]) == "".join(PAIRS[base] for base in reversed(bases))
    assert (once["tokens"][0] == symbols.bos_id) if begins else True
    twice = reverse_complement(once, symbols.complement, swap)
    assert (twice["tokens"] == tokens).all() and (twice["labels"] == item["labels"]).all()


def test_soft_masked_bases_keep_their_case():
    assert SOFT_MASKED.decode(SOFT_MASKED.encode("ACgtUuNn")) == "ACgtTtNn" and SOFT_MASKED.size == 34
    assert vocabulary("proteins").decode(vocabulary("proteins").encode("MKwX*")) == "MKWX*"


def test_training_reads_both_strands_and_each_epoch_anew():
    data = TokenLabellingDataModule(
        max_length=65536, batch_size=1, max_train_windows=8, max_validation_windows=1, reverse_complement=True
    )
    plain = TokenLabellingDataModule(max_length=65536, batch_size=1, max_train_windows=8, max_validation_windows=1)
    loader, usual = data.train_dataloader(), plain.train_dataloader()
    flipped = []
    for _ in range(2):
        for mine, theirs in zip(loader, usual, strict=True):
            n = int(mine["lengths"][0])
            turned = not torch.equal(mine["tokens"], theirs["tokens"])
            flipped.append(turned)
            if turned:
                right = torch.from_numpy(NUCLEOTIDES.complement)[theirs["tokens"][0, :n].flip(0)]
                assert torch.equal(mine["tokens"][0, :n], right)
                labels = theirs["labels"][0, :n].flip(0)
                swapped = torch.where(labels == 1, 2, torch.where(labels == 2, 1, labels))
                assert torch.equal(mine["labels"][0, :n], swapped)
    assert 0 < sum(flipped) < 16 and flipped[:8] != flipped[8:]


def test_texts_have_no_other_strand():
    with pytest.raises(ConfigError, match=r"data\.reverse_complement=True: bytes have no other strand"):
        TextDataModule(reverse_complement=True)
