"The segmenters: settings that can't work are told."
import pytest

from wsss_nb.backbones import BackboneSettings
from wsss_nb.files import InputError
from wsss_nb.segmentation import DeepLab, LargeFOV
from wsss_nb.settings import check_settings
from wsss_nb.training import TrainingSettings
from wsss_nb.visual_words import VisualWords
from wsss_nb.work import Lead

WRONG = {
    'no scale': (DeepLab(scales=()), r'scales must be .*, not \(\)'),
    'a scale of 0': (DeepLab(scales=(1., 0.)), r'scales must be .*, not \(1.0, 0.0\)'),
    'no stride': (DeepLab(loss_stride=0), 'loss_stride must be more than 0, not 0'),
    'a part': (DeepLab(training=TrainingSettings(epochs=0)), 'training.epochs must be more than 0'),
    'another backbone': (LargeFOV(BackboneSettings('resnet18')),
                         'backbone.name must be vgg16 for largefov, not resnet18'),
    'another stride': (LargeFOV(BackboneSettings('vgg16', output_stride=16)),
                       'backbone.output_stride must be 8 for largefov, not 16'),
    'not dilated': (LargeFOV(BackboneSettings('vgg16', dilate=False)),
                    'backbone.dilate must be True for largefov, not False'),
}


@pytest.mark.parametrize('wrong', WRONG)
def test_what_cannot_work_is_told(wrong):
    settings, said = WRONG[wrong]
    with pytest.raises(InputError, match=said):
        check_settings(settings)


def test_all_that_is_wrong_is_told_at_once():
    wrong = LargeFOV(BackboneSettings('resnet18'), scales=(9.,), loss_stride=-1)
    with pytest.raises(InputError) as told:
        check_settings(wrong)
    assert len(told.value.args) == 3


def test_a_network_that_is_cut_otherwise_is_no_beginning():
    first = BackboneSettings('timm/vovnet39a', 'none', 32, False, 0, 'frozen')
    classifier = VisualWords(first).following(Lead(96, 64, first))
    lead = Lead(96, 64, first, classifier)
    assert DeepLab().following(lead).begin == 'weights'
    with pytest.raises(InputError, match='leave out --segmenter.begin'):
        DeepLab(begin='classifier').following(lead)
