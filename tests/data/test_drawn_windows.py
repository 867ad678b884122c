"""Windows that are drawn anew: inside the training regions, every start alike likely, the same after a resume."""

import numpy as np
import pytest

from longspan.config.errors import ConfigError
from longspan.data import GenomeDataModule, TokenLabellingDataModule
from longspan.data.corpus import Corpus
from longspan.data.drawn_windows import JitteredWindows, RandomWindows
from longspan.data.vocabularies import NUCLEOTIDES

REGIONS = [(0, 3, 40), (1, 0, 5), (2, 10, 29)]


def corpus():
    return Corpus.build([np.arange(50) % 15, np.arange(5), np.arange(30) % 15], ["a", "b", "c"], NUCLEOTIDES)


def test_random_windows_lie_in_the_regions_and_start_anywhere_alike():
    data = RandomWindows(corpus(), REGIONS, 8, seed=3, size=100)
    places = [data.placed(index) for index in range(6000)]
    starts = {(d, s) for d, b, e in REGIONS for s in range(b, max(e - 8, b) + 1)}
    seen = {}
    for document, start, length in places:
        begin, end = next((b, e) for d, b, e in REGIONS if d == document)
        assert begin <= start and start + length <= end and length == min(8, end - begin)
        seen[(document, start)] = seen.get((document, start), 0) + 1
    assert set(seen) == starts
    expected = 6000 / len(starts)
    assert max(abs(count - expected) for count in seen.values()) < 5 * expected**0.5  # five deviations of a fair draw
    assert len(data) == 100 and data.token_count == 37 + 5 + 19
    assert [data.placed(n) for n in range(6000)] == places
    item = data[7]
    assert (item["tokens"] == corpus().tokens[[0, 50, 55][places[7][0]] + places[7][1] :][: places[7][2]]).all()


def test_a_limit_makes_the_same_few_windows_each_epoch():
    data = RandomWindows(corpus(), REGIONS, 8, seed=3, size=5, endless=False)
    assert [data.placed(n) for n in range(5)] == [data.placed(n) for n in range(5, 10)]


def test_jitter_moves_windows_within_their_region():
    data = JitteredWindows(corpus(), REGIONS, 8, 8, seed=0, jitter=3)
    still = JitteredWindows(corpus(), REGIONS, 8, 8, seed=0, jitter=0)
    moves = set()
    for index in range(len(data) * 200):
        document, start, length = data.placed(index)
        begin, end = next((b, e) for d, b, e in REGIONS if d == document)
        other = still.placed(index)
        assert begin <= start and start + length <= end and (document, length) == (other[0], other[2])
        moves.add(start - other[1])
    assert moves == set(range(-3, 4))


@pytest.mark.parametrize("settings", [{"windows": "random", "epoch_windows": 12}, {"jitter": 100, "max_train_windows": 12}])
@pytest.mark.parametrize("kind", [GenomeDataModule, TokenLabellingDataModule])
def test_a_resumed_epoch_goes_on_with_the_windows_that_follow(kind, settings):
    def loader():
        return kind(max_length=4096, batch_size=3, **settings).train_dataloader()

    whole = loader()
    epochs = [[batch["tokens"] for batch in whole] for _ in range(2)]
    assert len(epochs[0]) == 4 and not any((a == b).all() for a in epochs[0] for b in epochs[1])
    part = loader()
    for number, _ in enumerate(part):
        if number == 1:
            state = part.state_dict()
            break
    again = loader()
    again.load_state_dict(state)
    rest = [batch["tokens"] for batch in again]
    assert len(rest) == 2 and all((a == b).all() for a, b in zip(rest, epochs[0][2:], strict=True))


def test_random_windows_are_neither_packed_nor_jittered():
    with pytest.raises(ConfigError, match=r"data\.jitter=5: data\.windows=random"):
        GenomeDataModule(windows="random", jitter=5)
    with pytest.raises(ConfigError, match=r"data\.pack=True"):
        GenomeDataModule(windows="random", pack=True)
