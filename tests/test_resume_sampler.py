"""Skipping batches that were seen before a checkpoint."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from longspan.training.errors import CheckpointError
from longspan.training.resume import skip


@given(size=st.integers(1, 40), batch_size=st.integers(1, 7), data=st.data())
def test_the_next_pass_starts_where_it_stopped_and_later_ones_are_whole(size, batch_size, data):
    loader = DataLoader(TensorDataset(torch.arange(size)), batch_size=batch_size)
    whole = [batch[0].tolist() for batch in loader]
    seen = data.draw(st.integers(0, len(whole)))
    skip(loader, seen)
    assert [batch[0].tolist() for batch in loader] == whole[seen:]
    assert [batch[0].tolist() for batch in loader] == whole
    assert len(loader) == len(whole)


def test_workers_skip_too():
    loader = DataLoader(TensorDataset(torch.arange(10)), batch_size=2, num_workers=1)
    skip(loader, 3)
    assert [batch[0].tolist() for batch in loader] == [[6, 7], [8, 9]]


def test_a_stream_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(3))

    with pytest.raises(CheckpointError, match="middle of an epoch"):
        skip(DataLoader(Stream(), batch_size=1), 1)
