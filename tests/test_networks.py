"Every network of the tables, at its published size, takes steps in the training loop, in float32 and bfloat16."
import gc

import pytest
import torch

from wsss_nb.affinity import AffinityNet, affinity_training_loss
from wsss_nb.backbones import create_backbone
from wsss_nb.classifier import WordClassifier
from wsss_nb.deeplab import DeepLabLargeFOV, DeepLabV2
from wsss_nb.irn import IRNet, irn_training_loss
from wsss_nb.loaders import Batch
from wsss_nb.pipeline import tag_loss
from wsss_nb.segmentation import segmentation_loss
from wsss_nb.training import OPTIMISERS, TrainingSettings, train

SMALL_DILATED = dict(output_stride=8, dilate=True)


def masks(size: int) -> torch.Tensor:
    mask = torch.zeros(size, size, dtype=torch.long)
    mask[:, size // 2:], mask[0] = 3, 255
    return mask


def three_scales(model, batch): return segmentation_loss(model, batch, (1, .75, .5), stride=0)


# network, its loss, pixels a side, targets: tags (None) or masks, shape of the answer in evaluation mode
NETWORKS = {
    'classifier of IJCAI, ResNet-50': (lambda: WordClassifier(create_backbone('resnet50', frozen_stages=3), 20), tag_loss, 64, None, (1, 20)),
    'classifier of IJCV, ResNet-101': (lambda: WordClassifier(create_backbone('resnet101', frozen_stages=3), 20), tag_loss, 64, None, (1, 20)),
    'classifier with a memory bank': (lambda: WordClassifier(create_backbone('resnet50', frozen_stages=0), 20, words='memory'), tag_loss, 64, None, (1, 20)),
    'classifier of AffinityNet, WideResNet38': (lambda: WordClassifier(create_backbone('wideresnet38', **SMALL_DILATED, frozen_stages=4), 20, pooling='gap', words=None), tag_loss, 48, None, (1, 20)),
    'classifier, VGG16': (lambda: WordClassifier(create_backbone('vgg16', **SMALL_DILATED, frozen_stages=2), 20, pooling='gap', words=None), tag_loss, 48, None, (1, 20)),
    'AffinityNet, WideResNet38': (lambda: AffinityNet(create_backbone('wideresnet38', **SMALL_DILATED, frozen_stages=4)), affinity_training_loss, 80, masks, (1, 448, 10, 10)),
    'AffinityNet, VGG16': (lambda: AffinityNet(create_backbone('vgg16', **SMALL_DILATED, frozen_stages=2)), affinity_training_loss, 80, masks, (1, 448, 10, 10)),
    'IRNet, ResNet-50': (lambda: IRNet(create_backbone('resnet50')), irn_training_loss, 96, masks, (1, 24, 24)),
    'DeepLabv2, ResNet-101': (lambda: DeepLabV2(create_backbone('resnet101', **SMALL_DILATED), 21), three_scales, 65, masks, (1, 21, 9, 9)),
    "DeepLabv2, Caffe's ResNet-101": (lambda: DeepLabV2(create_backbone('resnet101_caffe', **SMALL_DILATED), 21), three_scales, 65, masks, (1, 21, 9, 9)),
    'DeepLab-LargeFOV, VGG16': (lambda: DeepLabLargeFOV(21), three_scales, 65, masks, (1, 21, 9, 9)),
    'DeepLabv2, WideResNet38': (lambda: DeepLabV2(create_backbone('wideresnet38', **SMALL_DILATED, frozen_stages=4), 21), segmentation_loss, 33, masks, (1, 21, 5, 5)),
    'the small network': (lambda: DeepLabV2(create_backbone('efficientnet_lite0', dilate=True), 21), segmentation_loss, 64, masks, (1, 21, 4, 4)),
}


class Crops(torch.utils.data.Dataset):
    "Two random crops."
    def __init__(self, size, targets): self.size, self.targets = size, targets
    def __len__(self): return 2
    def __getitem__(self, place):
        generator = torch.Generator().manual_seed(place.index)
        return Batch(torch.randn(3, self.size, self.size, generator=generator), self.targets(self.size) if self.targets else torch.eye(20)[place.index])


@pytest.mark.parametrize('precision', ['no', 'bf16'])
@pytest.mark.parametrize('name', NETWORKS)
def test_a_network_trains_and_answers(name, precision, tmp_path, monkeypatch):
    build, loss, size, targets, answer = NETWORKS[name]
    torch.manual_seed(0)
    model = build()
    for layer_name, layer in model.named_modules():
        if layer_name.endswith('bn3'): torch.nn.init.constant_(layer.weight, .1)   # untrained, and with batch norm at rest, a deep network's features would grow without bound
    before = {parameter_name: parameter.detach().clone() for parameter_name, parameter in model.named_parameters() if parameter.numel() < 2e5}
    monkeypatch.setattr('wsss_nb.training.save_model', lambda model, folder: None)   # 0.4 GB for the largest; saving has tests of its own
    settings = TrainingSettings(epochs=1, batch_size=2, optimiser=OPTIMISERS['deeplab'], workers=0, precision=precision, log_steps=1, accumulate=2 if name == 'DeepLabv2, ResNet-101' else 1)
    model = train(model, Crops(size, targets), loss, tmp_path, settings)
    after = dict(model.named_parameters())
    changed = {parameter_name for parameter_name, values in before.items() if not torch.equal(after[parameter_name], values)}
    assert changed and all(after[parameter_name].requires_grad for parameter_name in changed)
    assert all(parameter_name in changed for parameter_name in before if parameter_name.startswith(('classifier.', 'aspp.', 'scores.', 'mix.')))
    assert all(parameter.dtype == torch.float32 and parameter.isfinite().all() for parameter in model.parameters())
    assert 'nan' not in (tmp_path/'log.csv').read_text()
    with torch.inference_mode():
        said = model(torch.randn(1, 3, size, size))
        said = getattr(said, 'image', getattr(said, 'boundary', said))
    assert said.shape == answer and said.isfinite().all()
    del model, before, after; gc.collect()
