"""Errors that a user meets often end with what to do; their beginnings are tested where they are raised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longspan.attention import full
from longspan.config.errors import CallError, ConfigError, RecordError
from longspan.config.reachable import check_data_files
from longspan.data import (
    DataFileError,
    ImageClassificationDataModule,
    SequenceClassificationDataModule,
    SequenceRegressionDataModule,
)
from longspan.functional import sparse_attention
from longspan.models import Decoder
from longspan.patterns import Full, PerHead
from longspan.report.collect import collect
from longspan_kernels.block_sparse import DeviceLayout


def table(tmp_path, text="ACGT", label="a"):
    rows = "".join(f"{text}{'ACGT'[n % 4] * n},{label if n % 2 else 'b'}\n" for n in range(12))
    (tmp_path / "x.csv").write_text("text,label\n" + rows)
    return str(tmp_path / "x.csv")


def small(**settings):
    return Decoder(vocab_size=10, max_length=8, attention=full, layers=1, width=16, heads=1, **settings)


def test_labels_outside_the_classes(tmp_path):
    data = SequenceClassificationDataModule(table(tmp_path), class_names=["b", "c"], max_length=8)
    with pytest.raises(
        DataFileError, match=r"label 'a' is not in data\.class_names; correct it, or list it .* b, c \(a trained"
    ):
        data.setup()


def test_symbols_outside_the_vocabulary(tmp_path):
    with pytest.raises(
        DataFileError, match=r"nucleotides vocabulary; correct it, or choose another by data\.vocabulary: bytes"
    ):
        SequenceClassificationDataModule(table(tmp_path, "AC!T"), vocabulary="nucleotides", max_length=8).setup()


def test_bases_that_are_amino_acids(tmp_path):
    (tmp_path / "x.fasta").write_text(">a\nMKLE\n")
    with pytest.raises(DataFileError, match=r"is no base; .*of proteins: data\.vocabulary=proteins"):
        SequenceClassificationDataModule(str(tmp_path), vocabulary="nucleotides", label_from="file", max_length=8).setup()


def test_numbers_that_have_no_classes_to_weigh(tmp_path):
    data = SequenceRegressionDataModule(table(tmp_path, label="1"), vocabulary="nucleotides", max_length=8)
    with pytest.raises(ConfigError, match=r"no classes to weigh; take task\.class_weights=null"):
        data.class_counts()


def test_images_of_two_kinds(tmp_path):
    labels = np.arange(8) % 2
    images = {"train_images": np.zeros((8, 8, 8, 3), np.uint8), "test_images": np.zeros((8, 8, 8), np.uint8)}
    np.savez(tmp_path / "x.npz", **images, train_labels=labels, test_labels=labels)
    with pytest.raises(DataFileError, match=r"those of training \(8, 8, 3\); scale all to one size, in colour or all in grey"):
        ImageClassificationDataModule(str(tmp_path / "x.npz"), patch=4).setup()


def test_folders_that_are_not_there():
    with pytest.raises(ConfigError, match=r"does not exist \(looked in .*\); check the spelling"):
        check_data_files({"_target_": "longspan.data.ImageClassificationDataModule", "path": "nowhere"})
    with pytest.raises(RecordError, match="under nothing; give record files, or folders that runs wrote to"):
        collect([])


def test_tokens_of_another_vocabulary():
    with pytest.raises(CallError, match=r"token id 12 is outside vocab_size=10; give 0 to 9, or build the model for"):
        small()(torch.full((1, 4), 12))


def test_more_tokens_than_a_model_was_built_for():
    model = small().eval()
    cache = model.new_cache(1)
    model(torch.zeros(1, 6, dtype=torch.int64), cache=cache)
    with pytest.raises(CallError, match=r"built for max_length=8; give fewer, or build it for longer"):
        model(torch.zeros(1, 4, dtype=torch.int64), cache=cache)


def test_patterns_and_layouts_for_other_calls():
    q = torch.randn(1, 2, 32, 16)
    with pytest.raises(CallError, match=r"for 3 heads but q has 2: .*; give q 3 heads, or the pattern a part for each of 2"):
        sparse_attention(q, q, q, PerHead([Full()] * 3))
    index = torch.zeros(1, 1, 1, 1, dtype=torch.int32)
    layout = DeviceLayout(index, torch.ones(1, 1, 1, dtype=torch.int32), 16, 16, 16, 16, False)
    with pytest.raises(CallError, match=r"not 32 and 32; make one for these"):
        sparse_attention(q, q, q, layout)
