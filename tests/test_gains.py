"What a gain depends on: a rate at which nothing learns, what is refused, and the command."
import csv
import shutil
from dataclasses import replace

import pytest

from wsss_nb import gains
from wsss_nb.backbones import BackboneSettings
from wsss_nb.cam import MultiScale
from wsss_nb.cli import main
from wsss_nb.doubts import Useless
from wsss_nb.files import InputError, write_rows
from wsss_nb.gains import diary_of, draw_gains, gains_before, gains_of, table_of_gains
from wsss_nb.methods import System
from wsss_nb.readers import rows_of
from wsss_nb.refiners import NoRefiner
from wsss_nb.run import Config
from wsss_nb.segmentation import DeepLab
from wsss_nb.shapes import make_shapes
from wsss_nb.systems import ABLATION, SYSTEMS, ablation
from wsss_nb.tables import read_rows, settings_of, table_b
from wsss_nb.training import TrainingSettings
from wsss_nb.visual_words import VisualWords

SMALL = BackboneSettings('timm/mobilenetv3_small_050', 'none', 16, False, 0, 'frozen')
SHORT = TrainingSettings(epochs=1, batch_size=4, crop=32)
PLAIN = VisualWords(SMALL, SHORT, pooling='gap', words=None)
DEFAULT = System('these tests', VisualWords(), MultiScale(), NoRefiner(), DeepLab())
BASELINE = System('these tests', PLAIN, MultiScale(scales=(1.,)), NoRefiner(), DeepLab(SMALL))


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    "Runs of the baseline, on photos that are there."
    folder = tmp_path_factory.mktemp('gains')
    make_shapes(folder/'shapes', train=8, val=2, size=64)
    return Config(folder/'shapes', folder/'table', BASELINE, workers=0)


def test_a_rate_at_which_nothing_learns_leaves_the_others(config, monkeypatch, capsys):
    def fragile(config, variants, seeds):
        if 'rate-9' in str(config.out):
            raise Useless('nothing was learned here')
        return table_b(config, variants, seeds)
    monkeypatch.setattr(gains, 'table_b', fragile)
    text = table_of_gains(config, {'baseline': config}, (0,), (9., .01), (None,))
    assert 'nothing was learned here' in capsys.readouterr().out
    assert '| 0.01 |' in text and '| 9 ' not in text
    alone = replace(config, out=config.out/'alone')
    with pytest.raises(InputError, match='none of these variants has learned anything'):
        table_of_gains(alone, {'baseline': alone}, (0,), (9.,), (None,))


def test_without_a_baseline_nothing_begins(config, tmp_path):
    with pytest.raises(InputError, match="variant 'baseline'; name it among the others"):
        table_of_gains(config, {'both': config}, (0,), (.01,), (1.,))


def test_a_rate_that_cannot_work_is_refused_before_anything_is_trained(config, tmp_path):
    fresh = replace(config, out=tmp_path/'table')
    with pytest.raises(InputError, match='learning_rate must be more than 0, not 0'):
        table_of_gains(fresh, {'baseline': fresh}, (0,), (.01, 0.), (1.,))
    assert not fresh.out.exists()


def test_rows_of_other_commands_stay_and_other_settings_are_refused(config, tmp_path):
    fresh = replace(config, out=tmp_path/'table')
    table_of_gains(fresh, {'baseline': fresh}, (0,), (.01,), (1.,))
    shutil.rmtree(fresh.out/'rate-0.01-epochs-1')   # its row is a result all the same
    table_of_gains(fresh, {'baseline': fresh}, (0,), (.02,), (1.,))
    rows = read_rows(fresh.out/'gains.csv')
    assert [row['rate'] for row in rows] == [.01, .02]
    assert {row['rate'] for row in rows_of(fresh.out/'gains_words.csv', ['rate'])} == {'0.02'}
    other = replace(fresh, longest=48)
    with pytest.raises(InputError, match=r'rows of other settings \(longest 48\).*--out'):
        table_of_gains(other, {'baseline': other}, (0,), (.03,), (1.,))
    assert read_rows(fresh.out/'gains.csv') == rows


def test_the_same_command_goes_on_where_nothing_but_rate_and_length_is_given(config, tmp_path):
    fresh = replace(config, out=tmp_path/'table', system=DEFAULT)
    assert settings_of(fresh) == ''
    row = {'variant': 'baseline', 'seed': 0, 'steps': 2, 'rate': .01, 'CAM train': 30.,
           'settings': '--classifier.learning-rate 0.01', 'run': 'rate-0.01-epochs-own/baseline-0'}
    fresh.out.mkdir()
    write_rows(fresh.out/'gains.csv', [row])
    assert list(gains_before(fresh)) == [(2, .01, 'baseline', 0)]


def test_rows_of_other_photos_are_refused(config, tmp_path):
    fresh = replace(config, out=tmp_path/'table')
    table_of_gains(fresh, {'baseline': fresh}, (0,), (.01,), (1.,))
    before = (fresh.out/'gains.csv').read_text()
    make_shapes(tmp_path/'others', train=8, val=2, size=64, seed=7)
    other = replace(fresh, data=tmp_path/'others')
    with pytest.raises(InputError, match='not the data that the run was made with'):
        table_of_gains(other, {'baseline': other}, (0,), (.02,), (1.,))
    assert (fresh.out/'gains.csv').read_text() == before
    assert not (fresh.out/'rate-0.02-epochs-1').exists()


def test_a_training_that_is_asked_for_in_two_ways_is_counted_once(config, tmp_path):
    fresh = replace(config, out=tmp_path/'table')
    text = table_of_gains(fresh, {'baseline': fresh}, (0,), (.01,), (1., 1.1))   # 2 steps each
    assert len(text.splitlines()) == 3
    assert [row['seed'] for row in read_rows(fresh.out/'gains.csv')] == [0]


def test_rows_of_an_ablation_with_other_settings_or_photos_are_not_lost(config, tmp_path):
    fresh = replace(config, out=tmp_path/'table')
    table_b(fresh, {'baseline': fresh}, (0,))
    before = (fresh.out/'table_b.csv').read_text()
    shorter = replace(fresh, longest=48)
    with pytest.raises(InputError, match=r'rows of other settings \(longest 48\).*--out'):
        table_b(shorter, {'baseline': shorter}, (1,))
    make_shapes(tmp_path/'others', train=8, val=2, size=64, seed=7)
    other = replace(fresh, data=tmp_path/'others')
    with pytest.raises(InputError, match='not the data that the run was made with'):
        table_b(other, {'baseline': other}, (1,))
    assert (fresh.out/'table_b.csv').read_text() == before
    assert not (fresh.out/'baseline-1').exists()


def test_colours_mean_the_same_in_all_panels(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(gains, 'plot_gains', lambda axis, own, across, lines, values: drawn.append(
        (across, values)) or axis.plot([], [], label=lines))
    rows = []
    for variant, rates in (('baseline', (.003, .01)), ('+ words', (.003, .01)), ('both', (.01,))):
        for rate in rates:
            rows.append({'variant': variant, 'seed': 0, 'rate': rate, 'steps': 9, 'CAM train': 30.})
    draw_gains(tmp_path/'gains.png', rows, 'CAM train')
    assert drawn == 2 * [('steps', [.003, .01]), ('rate', [9])]


def test_seeds_that_the_baseline_lacks_are_in_no_gain():
    def row(variant, seed, score, rate=.01):
        return {'steps': 9, 'rate': rate, 'variant': variant, 'seed': seed, 'CAM val': score}
    rows = [row('baseline', 0, 30.), row('both', 0, 31.), row('both', 1, 60.), row('both', 2, None)]
    (gain,) = gains_of(rows, 'CAM val')
    assert gain.same == gain.best == (1.,)
    alone = [row('baseline', 0, 30.), row('both', 0, 32., rate=.02)]   # a rate of its own
    (gain,) = gains_of(alone, 'CAM val')
    assert gain.same == () and gain.best == (2.,)
    assert gains_of([row('both', 0, 31.)], 'CAM val') == []


def test_a_diary_has_a_line_every_500_steps(tmp_path):
    lines = ['step,epoch,rate,image,word,total']
    lines += [f'{step},1,0.1,{step / 1000},nan,1' for step in range(10, 1101, 10)]
    (tmp_path/'log.csv').write_text('\n'.join(lines))
    (tmp_path/'words.csv').write_text('step,used\n500,12\n1100,7\n')
    found = diary_of(tmp_path)
    assert [row['step'] for row in found] == ['500', '1000', '1100']
    assert [row.get('used') for row in found] == ['12', None, '7']
    assert [row['image loss'] for row in found] == ['0.255', '0.755', '1.055']
    (tmp_path/'words.csv').write_bytes(b'\x00\xff')
    with pytest.raises(InputError, match='words.csv.*Remove it, and train again'):
        diary_of(tmp_path)


def test_the_command_measures_rates_and_lengths(config, tmp_path, capsys):
    options = ['--classifier.backbone.name', SMALL.name, '--classifier.backbone.weights', 'none',
               '--classifier.backbone.output-stride', '16', '--classifier.batch-size', '4',
               '--classifier.crop', '32', '--cams.scales', '1', '--workers', '0']
    main(['table', 'b', '--data', str(config.data), '--out', str(tmp_path/'table'), '--seeds', '0',
          '--variants', 'baseline', '+ HSPP', '--rates', '0.01', '0.02', '--epochs', '1', '2',
          *options])
    assert 'CAM val, over the best baseline' in capsys.readouterr().out
    with (tmp_path/'table'/'gains.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2
    assert {(row['rate'], row['steps']) for row in rows} == {
        ('0.01', '2'), ('0.02', '2'), ('0.01', '4'), ('0.02', '4')}
    for name in ('gains.md', 'gains_words.csv', 'gains_train.png', 'gains_val.png'):
        assert (tmp_path/'table'/name).stat().st_size > 0


def test_only_one_row_of_the_ablation_has_words_that_are_kept_apart(config):
    apart = replace(config, system=SYSTEMS['vwl-voc'])
    assert apart.system.classifier.decov == 1
    found = ablation(apart, tuple(ABLATION))
    assert [name for name, one in found.items() if one.system.classifier.decov] == ['VWL-L']
