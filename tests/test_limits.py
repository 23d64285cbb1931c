"Values that nobody can mean are refused before anything is built, and names are shown as text."
import dataclasses
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from wsss_nb.cli import main
from wsss_nb.explorer_columns import in_html
from wsss_nb.settings import all_faults
from wsss_nb.shapes import make_shapes
from wsss_nb.systems import SYSTEMS, known_methods
from wsss_nb.training import Machine, TrainingSettings

SMALL = ('--classifier.epochs', 2, '--classifier.batch-size', 4, '--classifier.num-words', 16,
         '--cams.scales', 1, '--segmenter.batch-size', 4, '--segmenter.epochs', 2,
         '--prediction.scales', 1, '--workers', 0)


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('data')/'shapes', train=8, val=2, size=64)


@pytest.fixture(scope='module')
def finished(shapes, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('runs')/'run'
    main([str(word) for word in ('run', '--data', shapes, '--out', root, *SMALL)])
    return root


@pytest.fixture
def refused(capsys):
    "Call a command that has to be refused; what it said."
    def call(*words) -> str:
        with pytest.raises(SystemExit) as leaving:
            main([str(word) for word in words])
        assert leaving.value.code == 2
        return capsys.readouterr().err
    return call


@pytest.mark.parametrize('option, value, said', [
    ('--classifier.epochs', 'inf', 'epochs must be more than 0, not inf'),
    ('--classifier.epochs', '1e300', 'epochs must be 100000 at most, not 1e+300'),
    ('--classifier.epochs', 'nan', 'epochs'),
    ('--segmenter.learning-rate', '1e300', 'learning_rate must be less than 9,223'),
    ('--classifier.crop', 10 ** 5, 'crop must be 8192 at most'),
    ('--classifier.crop', 0, 'crop must be more than 0'),
    ('--classifier.num-words', 10 ** 9, 'num_words must be less than 1,000,000'),
    ('--classifier.batch-size', 10 ** 12, 'batch_size must be less than 1,000,000'),
    ('--seed', '12345678901234567890123', 'seed must be less than 9,223'),
    ('--seed', -1, 'seed must be 0 or more'),
    ('--cams.scales', '0.001', 'scales must be numbers from 0.0625 to 4'),
    ('--prediction.likely', 1, 'likely must be from 0 to below 1'),
    ('--prediction.scales', 'nan', 'scales must be numbers from 0.0625 to 4'),
    ('--workers', 100_000, 'workers must be 256 at most'),
    ('--longest', 10 ** 9, 'longest must be less than 1,000,000'),
    ('--minutes', 'inf', '--minutes must be a number of minutes, not inf'),
    ('--minutes', 'nan', '--minutes must be a number of minutes, not nan'),
])
def test_a_run(option, value, said, refused, shapes, tmp_path):
    begin = time.perf_counter()
    shown = refused('run', '--data', shapes, '--out', tmp_path/'run', option, value)
    assert said in shown
    assert not (tmp_path/'run').exists()
    assert time.perf_counter() - begin < 20


def numbers_of(settings) -> list[str]:
    "Fields that hold a number."
    found = []
    for part in dataclasses.fields(settings):
        value = getattr(settings, part.name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append(part.name)
    return found


KINDS = set()
for methods in known_methods().values():
    KINDS |= set(methods.values())


@pytest.mark.parametrize('kind', sorted(KINDS, key=lambda kind: kind.__name__))
def test_no_setting_of_any_method_takes_what_is_no_number(kind):
    parts = [kind(), TrainingSettings(), TrainingSettings().optimiser, Machine(),
             SYSTEMS['words'].prediction]
    for settings in parts:
        for name in numbers_of(settings):
            for wrong in (float('nan'), float('inf'), 1e300, 10 ** 30):
                changed = dataclasses.replace(settings, **{name: wrong})
                sentences = all_faults(changed)
                assert [said for said in sentences if said.startswith(name)], (name, wrong)


def test_places_that_cannot_be_written_to_are_told_before_the_work(
        refused, finished, shapes, tmp_path):
    begin = time.perf_counter()
    nowhere = tmp_path/'no'
    said = refused('onnx', finished, '--network', 'segmenter', '--out', nowhere/'a.onnx')
    assert 'its folder is not there' in said or 'onnx' in said
    said = refused('evaluate', finished, '--data', shapes, '--out', nowhere/'a.json')
    assert 'its folder is not there' in said
    (tmp_path/'file').write_text('mine')
    for out in (tmp_path/'file', tmp_path/'file'/'deeper'):
        refused('export', finished, '--format', 'png', '--out', out)
        refused('predict', finished, shapes/'JPEGImages', '--out', out)
        refused('shapes', out)
    assert (tmp_path/'file').read_text() == 'mine' and not nowhere.exists()
    assert time.perf_counter() - begin < 60


def test_other_numbers(refused, finished, shapes, tmp_path):
    photos = shapes/'JPEGImages'
    out = tmp_path/'out'
    for workers in (-1, 10 ** 6):
        said = refused('predict', finished, photos, '--out', out, '--workers', workers)
        assert 'workers must be' in said
    assert 'scales' in refused('predict', finished, photos, '--out', out, '--scales', '.001')
    assert 'background' in refused('branch', finished, out, '--background', 'inf', 'refiner:none')
    assert not out.exists()
    for port in (-1, 0, 10 ** 6):
        refused('explore', finished, '--port', port)


# Names are text

TAG = '<script>alert(1)</script>$a_^b$'   # what matplotlib would take for a formula


class Scripts(HTMLParser):
    "Counts what a browser would run."
    def __init__(self, text: str):
        super().__init__()
        self.count = 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.count += tag == 'script' or any(name.startswith('on') for name, _ in attributes)


def test_a_tag_and_a_file_name_that_are_html(shapes, tmp_path):
    root = tmp_path/'mine'
    (root/'images').mkdir(parents=True)
    lines = ['file,tags']
    for i, photo in enumerate(sorted((shapes/'JPEGImages').iterdir())[:6]):
        name = '<img src=x onerror=alert(1)>.jpg' if i == 0 else f'photo{i}.jpg'
        shutil.copy(photo, root/'images'/name)
        lines.append(f"{name},{TAG if i % 2 else 'cat'}")
    (root/'tags.csv').write_text('\n'.join(lines))
    run = tmp_path/'<script>run'
    main([str(word) for word in ('run', '--data', root, '--out', run, *SMALL)])
    main(['report', str(run)])
    page = (run/'report.html').read_text(encoding='utf-8')
    assert Scripts(page).count == 0
    assert '&lt;script&gt;' in page
    assert '<script>' not in in_html(f'the tag {TAG}')


@pytest.mark.parametrize('words, said', [
    (('shapes', 'new', '--seed', '-1'), 'a seed from 0'),
    (('words', '--data', 'DATA', '--sizes', '0'), '--sizes must name a number from 1 to'),
    (('words', '--data', 'DATA', '--photos', '0'), 'must be 1 or more, not 0'),
    (('table', 'b', '--data', 'DATA', '--out', 'new', '--system', 'seam'),
     'name one such as words')])
def test_numbers_and_systems_that_can_not_be_meant(words, said, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = make_shapes(tmp_path/'data', train=20, val=1, size=48)
    assert said in refused(*[data if word == 'DATA' else word for word in words])
