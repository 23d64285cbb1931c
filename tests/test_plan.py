"What a run says before it begins, and what it makes of the time that it is given."
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from wsss_nb import pipeline
from wsss_nb.backbones import BackboneSettings
from wsss_nb.cam import MultiScale
from wsss_nb.files import InputError
from wsss_nb.methods import System
from wsss_nb.plan import (
    Planned, begin, describe_plan, found_in_words, plan_of, planned, planned_minutes, print_plan,
    undecided, within)
from wsss_nb.refiners import NoRefiner, TrueMasks
from wsss_nb.run import Config, Run, start_run
from wsss_nb.segmentation import DeepLab
from wsss_nb.shapes import make_shapes
from wsss_nb.systems import known_methods
from wsss_nb.training import TrainingSettings
from wsss_nb.visual_words import VisualWords

RANDOM = BackboneSettings('resnet18', 'none', 16, False, 0, 'learned')
SYSTEM = System('these tests', VisualWords(RANDOM, num_words=8), MultiScale(scales=(1.,)),
                NoRefiner(), DeepLab())


@pytest.fixture
def config(tmp_path: Path) -> Config:
    make_shapes(tmp_path/'shapes', train=6, val=2, size=48)
    return Config(tmp_path/'shapes', tmp_path/'run', system=SYSTEM, workers=0)


def test_too_little_time_is_refused_with_what_is_enough(config):
    said = r'0 minutes are too few .* Give --minutes \d+'
    with pytest.raises(InputError, match=said) as refused:
        within(config, 0, known_methods())
    assert not config.out.exists()
    enough = int(str(refused.value).split('--minutes ')[1].split(',')[0])
    assert within(config, enough, known_methods()).system.classifier.training.epochs > 0


def with_plan(config: Config, minutes: float | None) -> Config:
    "A run that was planned for so many minutes, and has made something."
    first = within(config, minutes, known_methods())
    this = start_run(first)
    begin(this, minutes)
    (this.root/'classifier'/'model.json').write_text('{}')
    return first


def test_a_run_that_is_begun_keeps_its_epochs(config):
    first = with_plan(config, 500)
    assert within(config, 500, known_methods()) == first
    assert within(config, None, known_methods()) == first
    given = replace(SYSTEM.classifier, training=TrainingSettings(epochs=3))
    other = replace(config, system=replace(SYSTEM, classifier=given))
    again = within(other, 500, known_methods()).system
    assert again.classifier.training.epochs == 3          # what is asked for isn't overruled
    assert again.segmenter.training.epochs == first.system.segmenter.training.epochs


@pytest.mark.parametrize('minutes', (500, None))
def test_minutes_that_come_too_late_are_refused(config, minutes):
    with_plan(config, minutes)
    with pytest.raises(InputError, match='has its plan already.* counts for a new --out'):
        within(config, 400, known_methods())


def test_a_run_that_has_made_nothing_is_planned_anew(config):
    begin(start_run(within(config, 500, known_methods())), 500)
    assert within(config, None, known_methods()) == config
    begin(start_run(config), None)
    assert planned_minutes(Run(config)) is None


def test_a_run_without_a_classifier_has_a_plan(config, capsys):
    system = replace(SYSTEM, classifier=None, cams=None, refiner=TrueMasks(),
                     segmenter=DeepLab(RANDOM))
    this = Run(replace(config, system=system))
    assert [part.stage for part in plan_of(this)] == ['refine', 'segment', 'predict', 'evaluate']
    assert undecided(system) == ['segmenter']
    print_plan(this)
    said = capsys.readouterr().out
    assert '6 photos of' in said and 'sees each photo' in said and 'in all' in said


def test_a_classifier_that_cannot_be_timed_has_no_plan(config, capsys):
    class Other:
        name = 'other'
        role = 'classifier'
        backbone = RANDOM
        training = TrainingSettings(epochs=1, crop=32)

        def following(self, lead):
            return self

    print_plan(Run(replace(config, system=replace(SYSTEM, classifier=Other()))))
    assert capsys.readouterr().out == ''


def test_the_plan_says_when_it_will_be_over(config):
    this = Run(config)
    last = describe_plan(this, plan_of(this)).splitlines()[-1]
    assert 'until ' in last and 'a time with --minutes, for a new --out' in last


def test_a_busy_machine_is_said_to_be_busy(config, monkeypatch):
    this = Run(config)
    plan = [Planned('classify', 'learns', 3.)]
    monkeypatch.setattr('os.cpu_count', lambda: 2)
    assert 'machine is busy' not in describe_plan(this, plan, load=2.5)
    last = describe_plan(this, plan, load=12.).splitlines()[-1]
    assert 'this machine is busy (load 12 on 2 cores)' in last


def test_what_is_there_is_said_before_anything_is_timed(tmp_path, capsys, monkeypatch):
    (tmp_path/'own'/'images').mkdir(parents=True)
    tags = ['cow', 'cow;horse', 'horse', 'cow', 'horze', '']
    for number in range(len(tags)):
        Image.new('RGB', (32, 24)).save(tmp_path/'own'/'images'/f'{number}.png')
    lines = [f'{number}.png,{tag}' for number, tag in enumerate(tags[:5])]
    (tmp_path/'own'/'tags.csv').write_text('\n'.join(['file,tags', *lines]))

    def stop(this):
        raise KeyboardInterrupt

    monkeypatch.setattr('wsss_nb.plan.plan_of', stop)
    own = Config(tmp_path/'own', tmp_path/'run', system=SYSTEM, workers=0)
    with pytest.raises(KeyboardInterrupt):
        planned(own, 20, known_methods())
    said = capsys.readouterr().out
    assert 'own: 5 photos: cow 3, horse 2, horze 1' in said
    assert "'horze' (1, such as '4.png') looks like 'horse'" in said
    assert "without a line in tags.csv, so left out: 1, such as '5'" in said
    assert said.splitlines()[-1].startswith('measuring how fast this machine is')
    config, begun = planned(own, None, known_methods())
    assert config == own and not own.out.exists()
    with pytest.raises(KeyboardInterrupt):
        begun(start_run(own))


class Alike:
    "Three photos with twenty tags each."
    def __len__(self):
        return 3

    def tags(self, i):
        return torch.ones(20)


def test_only_some_classes_are_named(config):
    classes = [f'class{number}' for number in range(20)]
    this = Run(config)
    this.photos = Alike()
    this.classes = classes
    assert found_in_words(this).endswith('class7 3, and 12 more')


def test_a_run_that_goes_on_is_not_announced_again(config, capsys):
    with_plan(config, None)
    capsys.readouterr()
    planned(config, None, known_methods())
    assert capsys.readouterr().out == ''


def test_a_run_whose_data_have_changed_keeps_its_plan(config, monkeypatch):
    with_plan(config, 500)
    photo = next((Path(config.data)/'JPEGImages').glob('*.jpg'))
    Image.new('RGB', Image.open(photo).size, 'purple').save(photo)

    def interrupted(this):
        (this.root/'classifier'/'log.csv').write_text('')
        raise KeyboardInterrupt

    monkeypatch.setitem(pipeline.STAGE, 'classify', interrupted)
    asked, begun = planned(config, None, known_methods())
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(asked, 'evaluate', True, begun)
    assert planned_minutes(Run(config)) == 500
    again, _ = planned(config, None, known_methods())
    assert again.system.classifier.training.epochs == asked.system.classifier.training.epochs
