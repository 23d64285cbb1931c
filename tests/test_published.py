"Published networks: what is refused, and how."
import pytest
import torch
from torch import nn

from wsss_nb.files import InputError
from wsss_nb.published import PUBLISHED_NAMES, WideResNet38, load_weights, read_weights, rename


def test_a_file_that_is_absent_is_named(tmp_path):
    with pytest.raises(InputError, match='missing.pth: there is no such file of weights'):
        read_weights(tmp_path/'missing.pth')


def test_a_pickled_object_is_not_read(tmp_path):
    torch.save({'network': nn.Linear(2, 3)}, tmp_path/'code.pth')   # reading it would run code
    with pytest.raises(InputError, match='code.pth: this is no whole file of weights'):
        read_weights(tmp_path/'code.pth')


@pytest.mark.parametrize('name', ['cut.pth', 'cut.safetensors'])
def test_a_file_that_is_cut_off_is_not_read(name, tmp_path):
    (tmp_path/name).write_bytes(b'PK\x03\x04 no more')
    with pytest.raises(InputError, match=f'{name}: this is no whole file of weights'):
        read_weights(tmp_path/name)


@pytest.mark.parametrize('content', [{}, [torch.zeros(1)], {'weight': torch.zeros(1), 'epoch': 3}])
def test_a_file_without_a_table_of_tensors_is_refused(content, tmp_path):
    torch.save(content, tmp_path/'other.pth')
    with pytest.raises(InputError, match='other.pth: holds no table of tensors'):
        read_weights(tmp_path/'other.pth')


def test_weights_of_another_network_are_refused_whole():
    small = nn.Linear(2, 3)
    large = nn.Linear(4, 3)
    before = large.weight.clone()
    with pytest.raises(InputError) as found:
        load_weights(large, small.state_dict(), 'small.pth')
    assert str(found.value) == ('small.pth: weights of another network; tensors\n  '
                                '1 of another shape: weight (3, 2) instead of (3, 4). Give the '
                                'weights of this network.')
    assert torch.equal(large.weight, before)


def test_many_tensors_that_do_not_fit_are_counted():
    eight = {f'layer{i}.bias': torch.zeros(i) for i in range(8)}
    with pytest.raises(InputError, match=r'2 absent: weight \(3, 4\), bias \(3,\)') as found:
        load_weights(nn.Linear(4, 3), eight, 'many.pth')
    assert '8 too many: layer0.bias (0,), ' in str(found.value)
    assert 'and 2 more' in str(found.value)


def test_two_tensors_of_one_name_are_refused():
    names = ('b5_1.conv_branch2a.weight', 'module.b5_1.conv_branch2a.weight')
    state = {name: torch.zeros(1) for name in names}
    with pytest.raises(InputError, match='two tensors are called b5.1.convolutions.0.weight'):
        rename(state, PUBLISHED_NAMES['wideresnet38'])


def test_half_of_wideresnet38_is_not_loaded():
    state = WideResNet38(width=2).state_dict()
    del state['b6.0.convolutions.1.weight']
    state['b2.0.convolutions.0.weight'] = torch.zeros(4, 2, 5, 5)
    with pytest.raises(InputError) as found:
        load_weights(WideResNet38(width=2), state, 'res38_cls.pth', head=('fc',))
    said = str(found.value)
    assert '1 absent: b6.0.convolutions.1.weight (32, 16, 3, 3)' in said
    wrong = '1 of another shape: b2.0.convolutions.0.weight (4, 2, 5, 5) instead of (4, 2, 3, 3)'
    assert wrong in said
