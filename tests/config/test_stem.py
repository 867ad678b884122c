"""`model.stem=auto`: 7 for nucleotides, none for other symbols, and what is asked for where something is."""

import pytest

from longspan.config.compose import config_for
from longspan.config.folder import conf_folder


@pytest.mark.parametrize(
    ("words", "stem"),
    [
        (["data=hiv1"], 7),
        (["data=hiv1", "model=small"], 7),
        (["data=labelling", "data.path=x.fa", "data.vocabulary=nucleotides_soft_masked"], 7),
        (["data=hiv1", "model.stem=null"], None),
        (["data=hiv1", "model.stem=3"], 3),
        (["data=addresses"], None),
        (["data=addresses", "data.vocabulary=bpe:300"], None),
        (["data=mqar"], None),
        (["experiment=demo"], None),
    ],
)
def test_auto_follows_from_the_vocabulary(words, stem, tmp_path):
    assert config_for(words, tmp_path, conf_folder())["model"]["stem"] == stem
