"What the codebook (chapter 15) refuses."
import pytest
import torch

from wsss_nb.codebook import cluster_words, word_use


def test_nothing_counted_is_no_use_of_words():
    with pytest.raises(ValueError, match='^no location is counted, so no word is used$'):
        word_use(torch.zeros(2, 4))


def test_words_need_as_many_features():
    with pytest.raises(ValueError, match='^5 words need as many features, not 4$'):
        cluster_words(torch.randn(4, 3), 5)
    assert cluster_words(torch.randn(4, 3), 4).shape == (4, 3)
