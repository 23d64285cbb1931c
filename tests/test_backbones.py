"Backbones: what is refused, and batch norm that learns over two processes."
import copy
import re

import pytest
import torch
import torchvision
from torch import nn

from wsss_nb.backbones import FIRST, BackboneSettings, SharedBatchNorm, create_backbone
from wsss_nb.files import InputError


@pytest.mark.parametrize('settings, said', [
    (dict(name='timm/cait_xxs24_224'), 'cannot work on images of any size'),
    (dict(name='timm/nonsense'), 'cannot give this network'),
    (dict(name='resnet19'), 'name must be one of efficientnet_lite0, .*timm>, not resnet19'),
    (dict(name='resnet18', output_stride=5), 'output_stride must be 8, 16 or 32, not 5'),
    (dict(name='resnet18', batch_norm='learnt'),
     'batch_norm must be frozen, fixed or learned, not learnt'),
    (dict(name='resnet18', weights='missing.pth'), 'missing.pth: there is no such file'),
    (dict(name='wideresnet38', weights='imagenet'), 'cannot be downloaded: give a local file'),
    (dict(name='resnet101_caffe', weights='imagenet'), 'cannot be downloaded: give a local file'),
    (dict(name='resnet18', frozen_stages=6), 'has 5 stages: freeze 0 to 5 of them, not 6'),
])
def test_what_cannot_be_built_is_refused(settings, said):
    with pytest.raises(InputError, match=said):
        create_backbone(**settings)


def test_weights_of_the_other_resnet_are_refused(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    torch.save({f'Scale.{name}': tensor for name, tensor in state.items()}, tmp_path/'caffe.pth')
    said = "weights of Caffe's ResNet, which .* give resnet101_caffe as backbone"
    with pytest.raises(InputError, match=said):
        create_backbone('resnet18', tmp_path/'caffe.pth')


@pytest.mark.parametrize('settings, said', [
    (dict(name='resnet19'), 'name must be one of efficientnet_lite0, .*timm>, not resnet19'),
    (dict(output_stride=12), 'output_stride must be 8, 16 or 32, not 12'),
    (dict(frozen_stages=-1), 'frozen_stages must be 0 or more, not -1'),
    (dict(batch_norm='learnt'), 'batch_norm must be frozen, fixed or learned, not learnt'),
])
def test_settings_say_what_cannot_work(settings, said):
    found, = BackboneSettings(**settings).faults()
    assert re.fullmatch(said, found)


def test_a_file_of_weights_that_is_absent_is_a_fault(tmp_path):
    fault, = BackboneSettings(weights=str(tmp_path/'no.pth')).absent()
    assert fault.path.name == 'no.pth' and fault.problem == 'there is no such file'
    for weights in (None, 'none', 'imagenet'):
        assert BackboneSettings(weights=weights).absent() == []


def test_another_network_does_not_follow_a_file_of_weights():
    first = BackboneSettings(weights='lite.pth').following(FIRST)
    with pytest.raises(InputError, match='say which resnet50 begins with'):
        BackboneSettings('resnet50').following(first)
    assert BackboneSettings('resnet50', 'none').following(first).weights == 'none'
    assert BackboneSettings(output_stride=8).following(first).weights == first.weights


def small_network():
    "A convolution, batch norm, and again; with weights that differ from channel to channel."
    torch.manual_seed(0)
    layers = []
    for inputs in (3, 8):
        norm = SharedBatchNorm(nn.BatchNorm2d(8))
        nn.init.normal_(norm.weight, 1.)
        nn.init.normal_(norm.bias)
        layers += [nn.Conv2d(inputs, 8, 3, 2, 1, bias=False), norm, nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(8, 4, 1))


def step(network, images, pulls):
    "Forward and backward: the answer and the gradients."
    answer = network.train()(images)
    (answer * pulls).mean().backward()
    return answer.detach(), [parameter.grad for parameter in network.parameters()]


def take_share(rank, folder):
    "One of two processes that share a batch of six photos, as chapter 13 sets them up."
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank,
                                         world_size=2)
    network = small_network()
    images, pulls = (tensor[3 * rank:3 * rank + 3] for tensor in torch.load(folder/'batch.pt'))
    shared = nn.parallel.DistributedDataParallel(network, broadcast_buffers=False)
    found = step(shared, images, pulls)
    torch.save((*found, network.state_dict()), folder/f'{rank}.pt')
    torch.distributed.destroy_process_group()


def test_batch_norm_over_two_processes_is_that_of_the_whole_batch(tmp_path):
    torch.manual_seed(1)
    images = torch.randn(6, 3, 20, 28) * 3 + torch.arange(6.).view(6, 1, 1, 1)   # shares differ
    pulls = torch.randn(6, 4, 5, 7)
    torch.save((images, pulls), tmp_path/'batch.pt')
    torch.multiprocessing.spawn(take_share, (tmp_path,), nprocs=2)
    one = small_network()
    answer, gradients = step(one, images, pulls)
    first, second = (torch.load(tmp_path/f'{rank}.pt') for rank in range(2))
    torch.testing.assert_close(torch.cat([first[0], second[0]]), answer, rtol=1e-4, atol=1e-5)
    for found, wanted in zip(first[1], gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    for name, wanted in one.state_dict().items():
        torch.testing.assert_close(first[2][name], wanted)
        assert torch.equal(first[2][name], second[2][name]), name


def test_a_share_of_the_batch_alone_gives_another_answer():
    "The control of the test before."
    network = small_network()
    ordinary = copy.deepcopy(network)
    images = torch.randn(6, 3, 20, 28) + torch.arange(6.).view(6, 1, 1, 1)
    assert not torch.allclose(ordinary.train()(images[:3]), network.train()(images)[:3], atol=.1)
