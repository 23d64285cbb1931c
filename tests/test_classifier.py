"A pooling of one's own, and what the classifier (chapter 17) and its method refuse."
from dataclasses import replace

import pytest
import torch
from torch import nn

from wsss_nb.backbones import Backbone
from wsss_nb.classifier import WordClassifier, tag_loss
from wsss_nb.visual_words import VisualWords
from wsss_nb.files import InputError
from wsss_nb.loaders import Batch
from wsss_nb.pooling import POOLINGS
from wsss_nb.settings import all_faults, check_settings
from wsss_nb.training import TrainingSettings


def small_backbone() -> Backbone:
    return Backbone([nn.Conv2d(3, 6, 3, 2, 1)], [6], [2], (.5,) * 3, (.5,) * 3)


def test_an_entry_in_the_dictionary_is_a_pooling_to_train_with(monkeypatch):
    def top5(features: torch.Tensor) -> torch.Tensor:
        return features.flatten(-2).topk(5).values.mean(-1)
    monkeypatch.setitem(POOLINGS, 'top5', top5)
    assert VisualWords(pooling='top5').faults() == []

    torch.manual_seed(0)
    model = WordClassifier(small_backbone(), 4, num_words=5, pooling='top5').train()
    batch = Batch(torch.randn(4, 3, 8, 12), {'tags': torch.eye(4)})
    optimiser = torch.optim.SGD(model.parameters(), lr=.1)
    losses = []
    for _ in range(20):
        loss = tag_loss(model, batch)['image']
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < .9 * losses[0]
    by_hand = model.classifier(top5(model.backbone(batch.images)))
    assert torch.equal(model(batch.images).image, by_hand)


def test_a_pooling_of_another_shape_is_told_with_what_it_must_make(monkeypatch):
    monkeypatch.setitem(POOLINGS, 'whole', lambda features: features.mean((-2, -1), keepdim=True))
    model = WordClassifier(small_backbone(), 4, num_words=5, pooling='whole')
    with pytest.raises(InputError, match=r"pooling 'whole' made \(2, \d+, 1, 1\) .* must make"):
        model(torch.randn(2, 3, 8, 12))


def test_a_pooling_that_there_is_not_is_refused():
    said = "no pooling is called 'median' here; there are hspp, gap, gmp"
    with pytest.raises(InputError, match=said):
        WordClassifier(small_backbone(), 2, pooling='median')


def test_words_that_there_are_not_are_refused():
    said = "words can be 'learned', 'memory' or None, not 'spoken'"
    with pytest.raises(InputError, match=said):
        WordClassifier(small_backbone(), 2, words='spoken')


TWO_NUMBERS = ('long_side must be two numbers of pixels, 32 or more, the first not above the '
               'second; not ')


@pytest.mark.parametrize('settings, said', [
    (dict(pooling='median'), 'pooling must be hspp, gap, gmp, attention, attention-0.1, '
                             'attention-1, or that of another package which is installed here, '
                             'not median'),
    (dict(words='none'), 'words must be learned, memory or None, not none'),
    (dict(num_words=0), 'num_words must be more than 0, not 0'),
    (dict(temperature=-1.), 'temperature must be more than 0, not -1.0'),
    (dict(temperature=float('nan')), 'temperature must be more than 0, not nan'),
    (dict(decov=-.5), 'decov must be 0 or more, not -0.5'),
    (dict(dropout=1.), 'dropout must be from 0 to below 1, not 1.0'),
    (dict(decov=1., words=None),
     'decov is for learned words; with words None it must be 0, not 1.0'),
    (dict(decov=1., words='memory'),
     'decov is for learned words; with words memory it must be 0, not 1.0'),
    (dict(words='memory', training=TrainingSettings(accumulate=2)),
     'training.accumulate must be 1 with words memory, not 2: each part would move the memory '
     'bank, which is to move once a step'),
    (dict(long_side=(320,)), TWO_NUMBERS + '(320,)'),
    (dict(long_side=(31, 640)), TWO_NUMBERS + '(31, 640)'),
    (dict(long_side=(640, 320)), TWO_NUMBERS + '(640, 320)'),
    (dict(training=TrainingSettings(epochs=0)), 'training.epochs must be more than 0, not 0'),
])
def test_settings_that_cannot_work_are_refused(settings, said):
    assert all_faults(VisualWords(**settings)) == [said]


def test_all_that_is_wrong_is_said_at_once():
    wrong = VisualWords(num_words=-1, pooling='median', training=TrainingSettings(batch_size=0))
    with pytest.raises(InputError) as refused:
        check_settings(wrong)
    for name in ('num_words', 'pooling', 'training.batch_size'):
        assert f'{name} must be' in str(refused.value)


def test_what_can_work_has_no_faults():
    right = VisualWords()
    for settings in (dict(), dict(decov=1.), dict(words=None, pooling='gap'),
                     dict(words='memory'), dict(long_side=(32, 32))):
        assert all_faults(replace(right, **settings)) == []
