"Figures and reports: any run at any stage, and what is refused."
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from wsss_nb import figures, sheets
from wsss_nb.backbones import BackboneSettings
from wsss_nb.cam import MultiScale
from wsss_nb.classifier import WordClassifier
from wsss_nb.codebook import word_use
from wsss_nb.visual_words import VisualWords
from wsss_nb.figures import (draw_background, draw_curves, draw_faults, draw_masks,
                             draw_overview, draw_segmentations, draw_variants, read_log,
                             tagged_row, unseen_row)
from wsss_nb.files import InputError
from wsss_nb.methods import System
from wsss_nb.pipeline import evaluate, run
from wsss_nb.prediction import PredictionSettings
from wsss_nb.refiners import NoRefiner, TrueMasks
from wsss_nb.report import draw_all, measured_tables, write_report
from wsss_nb.run import Config, Run, start_run
from wsss_nb.segmentation import DeepLab
from wsss_nb.shapes import make_shapes
from wsss_nb.sheets import draw_contact
from wsss_nb.tables import table
from wsss_nb.training import TrainingSettings, save_model
from wsss_nb.word_figures import (FoundWords, WordSearch, draw_pooling, draw_words, find_words,
                                  has_words, pooling_network, telling_words, word_parts)

RANDOM = BackboneSettings('resnet18', 'none', 16, True, 4, 'frozen')
SHORT = TrainingSettings(epochs=1, batch_size=4)
BASELINE = System(
    'these tests', VisualWords(RANDOM, SHORT, pooling='gap', words=None), MultiScale(scales=(1.,)),
    NoRefiner(), DeepLab(RANDOM, SHORT), PredictionSettings(scales=(1.,)))
SUPERVISED = replace(BASELINE, classifier=None, cams=None, refiner=TrueMasks())
WORDS = replace(BASELINE, classifier=VisualWords(RANDOM, SHORT, num_words=8))


@pytest.fixture(scope='session')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('figures')/'shapes', train=6, val=2, size=64)


def made(shapes: Path, out: Path, system: System, until: str = 'evaluate') -> Run:
    config = Config(shapes, out, system, workers=0)
    run(config, until)
    return Run(config)


@pytest.fixture(scope='session')
def whole(shapes, tmp_path_factory) -> Run:
    "A finished run without words."
    return made(shapes, tmp_path_factory.mktemp('runs')/'whole', BASELINE)


@pytest.fixture
def begun(shapes, tmp_path) -> Run:
    "A run that has made nothing."
    return start_run(Config(shapes, tmp_path/'begun', WORDS, workers=0))


def test_a_run_without_words_has_no_figure_of_them(whole):
    assert not has_words(whole)
    for draw in (draw_words, find_words, WordSearch):
        with pytest.raises(InputError, match='this run has no visual words'):
            draw(whole)
    drawn, reasons = draw_all(whole)
    assert [figure.path.stem for figure in drawn] == [
        'segmentations', 'hardest', 'background', 'faults', 'pooling', 'curves']
    assert len(reasons) == 1 and reasons[0].startswith('Visual words: ')


@pytest.mark.parametrize('draw, folder', [
    (draw_background, 'cams'), (draw_faults, 'cams'), (draw_pooling, 'classifier'),
    (draw_words, 'classifier'), (has_words, 'classifier'),
    (lambda run: draw_variants([run], run.root/'never.png'), 'cams'),
    (lambda run: draw_overview([run], [0], [], run.root/'never.png'), 'cams'),
    (lambda run: draw_overview([run], [], [0], run.root/'never.png'), 'predictions'),
    (lambda run: draw_segmentations(run, 'val', [0], run.root/'never.png'), 'predictions')])
def test_what_is_not_there_is_named_with_the_command_to_begin_with(begun, draw, folder):
    said = f'begun/{folder}/.* this is not there yet.*`wsss_nb classify '
    with pytest.raises(InputError, match=said):
        draw(begun)
    assert not (begun.root/'never.png').exists() and not list((begun.root/'figures').iterdir())


def test_a_run_that_made_nothing_has_a_report_all_the_same(begun):
    with pytest.raises(InputError, match='this run has not begun to train yet'):
        draw_curves(begun)
    page = write_report(begun).read_text()
    assert 'Nothing was measured' in page and 'this run has no visual words' not in page
    assert 'data:image' not in page and 'Not drawn' in page and '<h2>Time</h2>' not in page


def test_runs_of_other_photos_are_not_compared(whole, tmp_path):
    make_shapes(tmp_path/'others', train=2, val=1, size=64)
    other = start_run(Config(tmp_path/'others', tmp_path/'other', BASELINE, workers=0))
    with pytest.raises(InputError, match='this run has other photos than'):
        draw_variants([whole, other], tmp_path/'never.png')
    assert not (tmp_path/'never.png').exists()


def test_a_supervised_run_has_the_figures_of_its_stages(shapes, tmp_path):
    this = made(shapes, tmp_path/'run', SUPERVISED)
    drawn, reasons = draw_all(this)
    assert [figure.path.stem for figure in drawn] == ['segmentations', 'hardest', 'curves']
    assert sum('trains no classifier' in reason for reason in reasons) == 2
    assert sum("no stage 'cams'" in reason for reason in reasons) == 2
    page = write_report(this).read_text()
    assert 'pseudo mask' in page and 'system.refiner.method' in page
    assert '<th>CAM' not in page and '<td>CAM' not in page


def test_photos_without_truths_are_drawn_without_them(whole, shapes, tmp_path):
    bare = make_shapes(tmp_path/'bare', train=6, val=2, size=64)
    for mask in (bare/'SegmentationClass').iterdir():
        mask.unlink()
    this = Run(replace(whole.config, data=bare))
    name = this.root.name
    titles = [title for title, _ in tagged_row([this, this], 0)][1:]
    assert titles == [f'{name}: map', f'{name}: map', f'{name}: mask', f'{name}: mask']
    assert [title for title, _ in unseen_row([this], 'val', 0)] == ['never seen', name]
    widths = []
    for run_of in (whole, this):
        with Image.open(draw_overview([run_of], [0, 3], [1], tmp_path/'overview.png')) as picture:
            widths.append(picture.width)
        with Image.open(draw_segmentations(run_of, 'val', [0], tmp_path/'masks.png')) as picture:
            widths.append(picture.width)
        draw_variants([run_of], tmp_path/'variants.png', photos=2)
    assert widths == [4 * 216, 3 * 240, 3 * 216, 2 * 240]
    for draw in (draw_background, draw_faults):
        with pytest.raises(InputError, match='not every photo has a mask'):
            draw(this)


@dataclass(frozen=True)
class Plain(VisualWords):
    "A classifier whose network says nothing of poolings or words."
    name = 'plain'

    def network(self, classes, first=False):
        return Untold(super().network(classes, first))


class Untold(torch.nn.Module):
    def __init__(self, network: WordClassifier):
        super().__init__()
        self.inner = network


def test_a_network_is_asked_what_it_has(begun):
    plain = replace(begun.config.system, classifier=Plain(RANDOM, SHORT))
    this = Run(replace(begun.config, system=plain))
    save_model(this.system.classifier.network(len(this.classes)), this.root/'classifier')
    assert not has_words(this)
    with pytest.raises(InputError, match='its classifier has no pooling'):
        pooling_network(this)
    with pytest.raises(InputError, match='this run has no visual words'):
        draw_words(this)


def test_words_are_parts_of_shapes_alone(begun, shapes, tmp_path):
    save_model(begun.system.classifier.network(len(begun.classes)), begun.root/'classifier')
    path, found = draw_words(begun, words=3, patches=4, photos=5)
    assert found.counts.shape == (5, 8)
    with Image.open(path) as picture:
        assert picture.width == 190 + 4 * 68
    assert all(0 < word.share <= 1 for word in word_parts(begun, found, least=1))
    other = make_shapes(tmp_path/'no shapes', train=6, val=2, size=64)
    (other/'shapes.json').unlink()
    elsewhere = Run(replace(begun.config, data=other))
    elsewhere.networks |= begun.networks
    with pytest.raises(InputError, match='shapes'):
        word_parts(elsewhere, found)


def test_an_empty_log_has_no_curves(tmp_path):
    (tmp_path/'log.csv').write_text('step,epoch,rate,total\n')
    assert read_log(tmp_path/'log.csv') == ([], {})


def test_a_figure_of_a_run_is_written_whole_or_not_at_all(whole, monkeypatch):
    path = draw_curves(whole)
    before = path.read_bytes()
    monkeypatch.setattr('wsss_nb.figures.plot_log', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        draw_curves(whole)
    assert path.read_bytes() == before


def test_what_was_not_measured_is_a_dash(begun):
    assert measured_tables(begun).startswith('<p>Nothing')
    begun.metrics = {'cam': {'train': {'images': 3, 'miou': None, 'background': .4, 'iou': {}}}}
    assert '<td>-</td><td>0.40</td>' in measured_tables(begun)


def test_masks_of_systems_say_how_well_they_fit_where_there_is_a_truth(
        whole, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(figures, 'show', lambda axis, picture, title: titles.append(title))
    photos = whole.photos
    places = [0, 3]
    truths = [photos.truth(i) for i in places]
    masks = {'right': truths, 'nothing': [truth * 0 for truth in truths]}
    path = draw_masks(photos, places, masks, tmp_path/'masks.png')
    assert path.stat().st_size > 1000
    for column in (titles[:4], titles[4:]):   # a photo and what is below it
        assert column[1:3] == ['truth', 'right, mIoU 100']
        assert int(column[3].removeprefix('nothing, mIoU ')) < 60
    titles.clear()
    monkeypatch.setattr(type(photos), 'has_truth', False)
    monkeypatch.setattr(type(photos), 'truth', lambda self, i: None)
    draw_masks(photos, places, masks, path)
    assert titles[1:3] == titles[4:] == ['right', 'nothing']


def test_sheets_that_were_cut_off_between_two_pages_are_drawn_again(whole, monkeypatch):
    drawn = sheets.contact_page
    pages = []

    def interrupted(*given):
        pages.append(given)
        if len(pages) == 2:
            raise KeyboardInterrupt
        return drawn(*given)

    for path in (whole.root/'figures').glob('contact*'):
        path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(sheets, 'contact_page', interrupted)
        with pytest.raises(KeyboardInterrupt):
            draw_contact(whole, columns=2, rows=2)
    first = whole.root/'figures'/'contact-1.png'
    assert not first.exists()      # which says that all are there
    assert draw_contact(whole, columns=2, rows=2)[0] == first and first.exists()


def test_a_mean_is_of_all_runs_and_counts_each_once(whole):
    other = Run(replace(whole.config, seed=1))
    other.root = whole.root.parent/'other'
    other.metrics = {kind: found for kind, found in whole.metrics.items() if kind != 'segmentation'}
    line = table([whole, whole, other]).splitlines()[-1]
    assert line == table([whole, other]).splitlines()[-1]
    cells = [cell.strip() for cell in line.strip('|').split('|')]
    assert cells[0] == 'mean of 2' and cells[7] == '-' and '±' in cells[4]


def test_a_sheet_of_some_photos_gives_way_to_one_of_all(whole, tmp_path):
    run = Run(replace(whole.config, out=shutil.copytree(whole.root, tmp_path/'run')))
    figures = run.root/'figures'
    shutil.rmtree(figures)
    figures.mkdir()
    draw_contact(run, photos=1)
    before = Image.open(figures/'contact.png').size
    evaluate(run)
    assert Image.open(figures/'contact.png').size != before


@pytest.mark.parametrize('photos', [4, 49, 98, 103, 253])
def test_a_word_of_as_many_photos_as_it_takes_is_told(photos):
    counts = torch.zeros(photos, 2, dtype=torch.long)
    counts[:4, 0] = 1
    counts[3:, 1] = 1
    tags = torch.zeros(photos, 1)
    tags[:4] = 1
    found = FoundWords(word_use(counts), [[], []], counts, tags)
    assert telling_words(found, ['dog'], least=4)[0][0] == 0
