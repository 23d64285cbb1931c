"""A run knows its photos, tags and masks.

What has changed is said, nothing is mixed, and what is made anew is bit for bit what a run on the
changed data would have made."""
import json
import os
import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss_nb import fingerprints, pipeline
from wsss_nb import run as runs
from wsss_nb.backbones import BackboneSettings
from wsss_nb.cam import MultiScale
from wsss_nb.cli import main
from wsss_nb.commands import DataOptions, do_stage
from wsss_nb.corrections import CORRECTED
from wsss_nb.coco import write_coco
from wsss_nb.datasets import open_photos
from wsss_nb.export import export
from wsss_nb.files import InputError, read_json
from wsss_nb.fingerprints import Changes, Uses, fingerprints_of, mark, read_fingerprints
from wsss_nb.fingerprints import KINDS as MEASURED_AFTER, remade as made_again
from wsss_nb.import_masks import import_masks
from wsss_nb.methods import STAGES, System
from wsss_nb.new_photos import find_photos
from wsss_nb.photos import read_mask, write_mask
from wsss_nb.prediction import PredictionSettings
from wsss_nb.refiners import NoRefiner, TrueMasks
from wsss_nb.run import Config, Run, start_run
from wsss_nb.segmentation import DeepLab
from wsss_nb.shapes import make_shapes
from wsss_nb.systems import open_run
from wsss_nb.training import TrainingSettings
from wsss_nb.visual_words import VisualWords

GIVEN = Path(__file__).parents[2]/'shared'/'cases'
MADE = ('classifier', 'cams', 'pseudo', 'segmenter', 'predictions')
KINDS = ('cam', 'pseudo', 'segmentation')
RANDOM = BackboneSettings('resnet18', 'none', 16, True, 0, 'frozen')
SHORT = TrainingSettings(epochs=1, batch_size=4)
TINY = System('these tests', VisualWords(RANDOM, SHORT, num_words=8), MultiScale(scales=(1.,)),
              NoRefiner(), DeepLab(RANDOM, SHORT), PredictionSettings(scales=(1.,)))
SUPERVISED = System('these tests', None, None, TrueMasks(), DeepLab(RANDOM, SHORT),
                    PredictionSettings(scales=(1.,)))


def configured(data: Path, out: Path, system: System = TINY) -> Config:
    return Config(data, out, system, workers=0)


@pytest.fixture(scope='module')
def first(tmp_path_factory) -> Path:
    "A folder with a data set and a finished run on it, which no test changes."
    folder = tmp_path_factory.mktemp('first')
    make_shapes(folder/'data', train=5, val=3, size=48)
    pipeline.run(configured(folder/'data', folder/'run'))
    return folder


@pytest.fixture
def home(first, tmp_path) -> Path:
    "A copy of data and run, the data where the run will look for them."
    shutil.copytree(first, tmp_path/'home', copy_function=shutil.copy2)
    written = read_json(tmp_path/'home'/'run'/'config.json')
    written['data'] = str(tmp_path/'home'/'data')
    (tmp_path/'home'/'run'/'config.json').write_text(json.dumps(written))
    return tmp_path/'home'


def photo_path(data: Path, name: str) -> Path:
    return data/'JPEGImages'/f'{name}.jpg'


def mask_path(data: Path, name: str) -> Path:
    return data/'SegmentationClass'/f'{name}.png'


def tag_path(data: Path, name: str) -> Path:
    return data/'Annotations'/f'{name}.xml'


def replaced(path: Path) -> None:
    "Another photo under the same name, of the same size."
    photo = Image.open(path)
    Image.new('RGB', photo.size, 'purple').save(path)


def swapped_tags(data: Path) -> list[str]:
    "Give two photos each other's tags, which differ."
    photos = open_photos(data, 'train')
    one = photos.ids[0]
    other = next(name for i, name in enumerate(photos.ids)
                 if not photos.tags(i).equal(photos.tags(0)))
    texts = [tag_path(data, name).read_text() for name in (other, one)]
    for name, text in zip((one, other), texts):
        tag_path(data, name).write_text(text)
    return [one, other]


def products(root: Path) -> dict[str, bytes]:
    "What the stages made; without what says when, and where the run is."
    found = {}
    for folder in MADE:
        for path in (root/folder).rglob('*'):
            if path.suffix in ('.safetensors', '.npz', '.png'):
                found[path.relative_to(root).as_posix()] = path.read_bytes()
    return found


def times(root: Path) -> dict[str, int]:
    "When files were written, by name; figures and records are left out."
    found = {}
    for folder in MADE:
        for path in (root/folder).rglob('*'):
            if path.is_file():
                found[path.relative_to(root).as_posix()] = path.stat().st_mtime_ns
    return found


def remade(before: dict[str, int], root: Path) -> set[str]:
    "Files that were written since, or are new or gone."
    after = times(root)
    return {name for name in before | after if before.get(name) != after.get(name)}


def assert_as_anew(home: Path, system: System = TINY) -> None:
    "The run is as one that is made anew on the data of today."
    anew = home.parent/'anew'
    wanted = pipeline.run(configured(home/'data', anew, system))
    ours = products(home/'run')
    assert ours == products(anew)
    found = Run(configured(home/'data', home/'run', system)).metrics
    for kind in KINDS:
        assert found.get(kind) == wanted.get(kind), kind
    assert (home/'run'/'figures'/'examples.png').exists()


def refused(config: Config, *said: str) -> None:
    "A run says what has changed, and changes nothing."
    before = {path: path.read_bytes() for path in config.out.rglob('*') if path.is_file()}
    with pytest.raises(InputError) as caught:
        pipeline.run(config)
    for words in (*said, '--accept-changes'):
        assert words in str(caught.value), str(caught.value)
    assert before == {path: path.read_bytes() for path in config.out.rglob('*') if path.is_file()}


def test_a_finished_run_is_still_finished(home, capsys):
    before = {path: path.read_bytes() for path in (home/'run').rglob('*') if path.is_file()}
    pipeline.run(configured(home/'data', home/'run'))
    assert 'nothing to do' in capsys.readouterr().out
    after = {path: path.read_bytes() for path in (home/'run').rglob('*') if path.is_file()}
    differ = {path.name for path in after if before.get(path) != after[path]}
    assert differ <= {fingerprints_file}   # its files were copied, and have other times


fingerprints_file = runs.FINGERPRINTS


def test_swapped_tags_after_classify(home, capsys):
    out = home/'short'
    config = configured(home/'data', out)
    pipeline.run(config, until='classify')
    old = (out/'classifier'/'model.safetensors').read_bytes()
    one, other = swapped_tags(home/'data')
    refused(config, 'train: 2 with other tags', repr(one), repr(other), 'made of them: classifier')
    capsys.readouterr()
    pipeline.run(config, accept_changes=True)
    shown = capsys.readouterr().out
    assert 'the data have changed' in shown and 'made anew: classifier' in shown
    assert (out/'classifier'/'model.safetensors').read_bytes() != old
    shutil.rmtree(home/'run')
    out.rename(home/'run')
    assert_as_anew(home)


def test_swapped_tags_of_a_finished_run_by_the_command(home, capsys):
    swapped_tags(home/'data')
    before = times(home/'run')
    for words in (['cams'], ['evaluate'], ['predict'], ['classify']):
        with pytest.raises(SystemExit) as leaving:
            main([*words, str(home/'run')])
        assert leaving.value.code == 2
        shown = capsys.readouterr().err
        assert 'with other tags' in shown and 'wsss_nb classify' in shown, shown
    main(['classify', str(home/'run'), '--accept-changes'])
    assert remade(before, home/'run') == set(before)
    assert_as_anew(home)


def test_what_shows_a_run_shows_it_with_its_own_photos(home, capsys):
    replaced(photo_path(home/'data', open_photos(home/'data', 'train').ids[0]))
    for name in ('contact', 'figures', 'report', 'storage', 'explore'):
        with pytest.raises(SystemExit):
            main([name, str(home/'run')])
        assert 'with another photo under the same name' in capsys.readouterr().err, name


def test_a_replaced_photo(home):
    name = open_photos(home/'data', 'train').ids[1]
    replaced(photo_path(home/'data', name))
    config = configured(home/'data', home/'run')
    refused(config, f'train: 1 with another photo under the same name ({name!r})', 'predictions')
    before = times(home/'run')
    pipeline.run(config, accept_changes=True)
    assert remade(before, home/'run') == set(before)
    assert_as_anew(home)


def test_a_replaced_photo_to_measure_on(home):
    name = open_photos(home/'data', 'val').ids[1]
    replaced(photo_path(home/'data', name))
    config = configured(home/'data', home/'run')
    refused(config, 'val: 1 with another photo', 'predictions (1)', 'segmentation')
    before = times(home/'run')
    pipeline.run(config, accept_changes=True)
    assert remade(before, home/'run') == {f'predictions/{name}.png'}
    assert_as_anew(home)


def test_a_corrected_mask_to_measure_on(home):
    name = open_photos(home/'data', 'val').ids[0]
    write_mask(mask_path(home/'data', name), np.ones((48, 48), np.uint8)[:height(home, name)])
    config = configured(home/'data', home/'run')
    refused(config, f'val: 1 with another mask, or none any more ({name!r})', 'segmentation')
    before = times(home/'run')
    old = Run(config).metrics['segmentation']['val']
    pipeline.run(config, accept_changes=True)
    assert remade(before, home/'run') == set()
    assert Run(config).metrics['segmentation']['val'] != old
    assert_as_anew(home)


def height(home: Path, name: str) -> int:
    return Image.open(photo_path(home/'data', name)).height


def blank(path: Path, value: int = 0) -> None:
    "A mask of one value, of the same size."
    write_mask(path, np.full_like(read_mask(path), value))


def test_corrected_masks_that_leave_the_background_as_it_was(home):
    photos = open_photos(home/'data', 'train')
    path = mask_path(home/'data', photos.ids[0])
    labels = read_mask(path).copy()
    labels[0, 0] = 255
    write_mask(path, labels)
    config = configured(home/'data', home/'run')
    refused(config, 'train: 1 with another mask', 'what was measured of cam')
    before = times(home/'run')
    score = Run(config).background
    pipeline.run(config, accept_changes=True)
    assert Run(config).background == score
    assert remade(before, home/'run') == set()
    assert_as_anew(home)


def test_corrected_masks_that_change_the_background(home, capsys):
    photos = open_photos(home/'data', 'train')
    config = configured(home/'data', home/'run')
    before = times(home/'run')
    score = Run(config).background
    for name in photos.ids:     # all of it is what is tagged: the best background is the lowest
        label = int(photos.tags(photos.ids.index(name)).argmax()) + 1
        blank(mask_path(home/'data', name), label if score > 0 else 0)
    refused(config, 'train: 5 with another mask')
    pipeline.run(config, accept_changes=True)
    assert 'the score of the background is' in capsys.readouterr().out
    assert Run(config).background != score
    kept = {name for name in before if name.startswith(('classifier', 'cams'))}
    assert remade(before, home/'run') == set(before) - kept
    assert_as_anew(home)


def all_thing(home: Path, score: float) -> None:
    "Masks whose best score of the background is another one: all thing, or none where that is 0."
    photos = open_photos(home/'data', 'train')
    for i, name in enumerate(photos.ids):
        thing = int(photos.tags(i).argmax()) + 1
        blank(mask_path(home/'data', name), thing if score > 0 else 0)


def test_who_is_killed_while_another_background_is_taken_still_knows_it(home, monkeypatch):
    config = configured(home/'data', home/'run')
    all_thing(home, Run(config).background)
    unlink = Path.unlink

    def killed(path, **given):
        if path.parent.name == 'pseudo':
            raise KeyboardInterrupt
        unlink(path, **given)
    with monkeypatch.context() as patch:
        patch.setattr(Path, 'unlink', killed)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(config, accept_changes=True)
    pipeline.run(config)
    assert_as_anew(home)


def test_a_background_that_is_chosen_again_counts_for_all_lists(home):
    config = configured(home/'data', home/'run')
    run = Run(config)
    run.record(cam={'val': dict(run.metrics['cam']['train'])})   # as a table has measured it
    all_thing(home, run.background)
    pipeline.run(config, accept_changes=True)
    assert 'val' not in Run(config).metrics['cam']


def test_a_corrected_mask_of_a_run_that_learns_from_true_masks(first, tmp_path):
    home = tmp_path/'home'
    shutil.copytree(first/'data', home/'data')
    config = configured(home/'data', home/'run', SUPERVISED)
    pipeline.run(config)
    name = open_photos(home/'data', 'train').ids[2]
    blank(mask_path(home/'data', name))
    refused(config, f'train: 1 with another mask, or none any more ({name!r})', 'pseudo (1)')
    before = times(config.out)
    pipeline.run(config, accept_changes=True)
    changed = remade(before, config.out)
    assert {n for n in changed if n.startswith('pseudo')} == {f'pseudo/{name}.png'}
    assert {n for n in before if n.startswith('predictions')} <= changed
    assert_as_anew(home, SUPERVISED)


def test_a_photo_that_is_new_in_the_list(home):
    listed = home/'data'/'ImageSets'/'Segmentation'/'train.txt'
    val = open_photos(home/'data', 'val').ids
    for kind in (photo_path, mask_path, tag_path):
        path = kind(home/'data', val[0])
        shutil.copy(path, path.with_name(f'more{path.suffix}'))
    listed.write_text(listed.read_text() + 'more\n')
    config = configured(home/'data', home/'run')
    refused(config, "train: 1 new in the list ('more')")
    pipeline.run(config, accept_changes=True)
    assert read_json(home/'run'/'config.json')['photos'] == {'train': 6, 'val': 3}
    assert_as_anew(home)


def test_a_photo_that_is_no_longer_in_a_list(home):
    listed = home/'data'/'ImageSets'/'Segmentation'/'val.txt'
    *kept, gone = open_photos(home/'data', 'val').ids
    listed.write_text('\n'.join(kept))
    config = configured(home/'data', home/'run')
    refused(config, f'val: 1 no longer in the list ({gone!r})')
    before = times(home/'run')
    pipeline.run(config, accept_changes=True)
    assert remade(before, home/'run') == {f'predictions/{gone}.png'}
    assert_as_anew(home)


def test_another_order_of_the_list_is_another_training(home):
    listed = home/'data'/'ImageSets'/'Segmentation'/'train.txt'
    listed.write_text('\n'.join(reversed(listed.read_text().split())))
    config = configured(home/'data', home/'run')
    refused(config, 'at another place of the list')
    pipeline.run(config, accept_changes=True)
    assert_as_anew(home)


def test_data_that_have_moved(home, capsys):
    before = products(home/'run')
    (home/'data').rename(home/'elsewhere')
    run = str(home/'run')
    for words in (['export', run, '--format', 'png', '--out', str(home/'png')], ['compare', run]):
        main(words)
    assert len(list((home/'png'/'masks').glob('*.png'))) == 8
    with pytest.raises(SystemExit):
        main(['evaluate', run])
    shown = capsys.readouterr().err
    assert 'no longer here' in shown and '--data DIR' in shown and 'Traceback' not in shown
    main(['cams', run, '--data', str(home/'elsewhere')])
    assert 'are the same' in capsys.readouterr().out
    assert read_json(home/'run'/'config.json')['data'] == str(home/'elsewhere')
    main(['evaluate', run])
    pipeline.run(configured(home/'elsewhere', home/'run'))
    assert products(home/'run') == before


def test_other_photos_are_no_moved_ones(home, capsys):
    make_shapes(home/'other', train=5, val=3, size=48, seed=7)
    config = configured(home/'other', home/'run')
    refused(config, 'train: 5 with another photo', f'--data {home/"other"}')


def test_masks_that_came_later_measure_and_choose_nothing(home, capsys):
    masks = home/'data'/'SegmentationClass'
    masks.rename(home/'aside')
    config = configured(home/'data', home/'late')
    metrics = pipeline.run(config)
    assert 'cam' not in metrics
    before = times(home/'late')
    (home/'aside').rename(masks)
    capsys.readouterr()
    main(['evaluate', str(home/'late')])
    assert 'train: 5 with a mask now' in capsys.readouterr().out
    found = Run(config).metrics
    assert found['cam']['train']['background'] == .5
    assert found['cam']['train']['best_background'] != .5
    assert found['pseudo']['train']['background'] == .5
    assert found['segmentation']['val']['images'] == 3
    assert remade(before, home/'late') == set()
    assert Run(config).background == .5
    (home/'late'/'pseudo'/f'{open_photos(home/"data", "train").ids[0]}.png').unlink()
    pipeline.run(config)
    pipeline.refine(start_run(config))    # the lost one is made as the others were
    assert {name for name in remade(before, home/'late') if 'pseudo' in name} != set()


def test_the_case_C15(tmp_path):
    if not (GIVEN/'C15').exists():
        pytest.skip('the cases are not here')
    shutil.copytree(GIVEN/'C15', tmp_path/'data', copy_function=shutil.copy)
    (tmp_path/'data'/'masks').rename(tmp_path/'masks')
    # at a low rate a random classifier stays one, and its maps aren't empty
    slow = replace(SHORT, optimiser=replace(SHORT.optimiser, learning_rate=1e-4))
    classifier = replace(TINY.classifier, training=slow)
    config = configured(tmp_path/'data', tmp_path/'run', replace(TINY, classifier=classifier))
    pipeline.run(config)
    (tmp_path/'masks').rename(tmp_path/'data'/'masks')
    classes = Run(config).classes
    (tmp_path/'data'/'masks'/'classes.txt').write_text('\n'.join(classes))
    metrics = pipeline.run(config)   # without any option: it goes on, and measures
    assert metrics['cam']['train']['background'] == .5
    assert metrics['pseudo']['train']['background'] == .5


def test_the_case_C01(tmp_path):
    if not (GIVEN/'C01').exists():
        pytest.skip('the cases are not here')
    shutil.copytree(GIVEN/'C01', tmp_path/'data', copy_function=shutil.copy)
    config = configured(tmp_path/'data', tmp_path/'run')
    pipeline.run(config, until='classify')
    table = tmp_path/'data'/'tags.csv'
    rows = [line.split(',') for line in table.read_text().split()]
    tags = [row[1] for row in rows[1:]]
    swap = dict(zip(sorted(set(tags)), sorted(set(tags), reverse=True)))
    lines = [f'{name},{swap.get(tag, tag)}' for name, tag in rows]
    table.write_text('\n'.join(lines))
    refused(config, 'train: 8 with other tags')


def test_a_run_whose_fingerprints_are_gone_is_taken_as_it_is(home):
    root = home/'run'
    (root/'fingerprints.json').unlink()
    written = read_json(root/'config.json')
    del written['made_by']
    (root/'config.json').write_text(json.dumps(written))
    before = times(root)
    config = configured(home/'data', root)
    pipeline.run(config)
    assert remade(before, root) == set()
    assert set(read_fingerprints(root/'fingerprints.json')) == {'train', 'val'}
    replaced(photo_path(home/'data', open_photos(home/'data', 'train').ids[0]))
    refused(config, 'another photo')


def test_files_that_did_not_change_are_not_read_again(home, monkeypatch):
    config = configured(home/'data', home/'run')
    start_run(config)
    read = []
    whole = Path.read_bytes

    def noted(path: Path) -> bytes:
        read.append(path.suffix)
        return whole(path)

    monkeypatch.setattr(Path, 'read_bytes', noted)
    start_run(config)
    assert not {'.jpg', '.png'} & set(read)
    photo = photo_path(home/'data', open_photos(home/'data', 'train').ids[0])
    os.utime(photo)
    start_run(config)
    assert read.count('.jpg') == 1
    start_run(config)
    assert read.count('.jpg') == 1


def test_two_photos_with_one_size_and_time_are_told_apart(home):
    data = home/'data'
    a, b, *_ = open_photos(data, 'train').ids
    paths = [photo_path(data, name) for name in (a, b)]
    longest = max(path.stat().st_size for path in paths)
    for path in paths:
        path.write_bytes(path.read_bytes().ljust(longest, b'\0'))
        os.utime(path, ns=(0, 0))
    config = configured(data, home/'fresh')
    pipeline.run(config, until='classify')
    for source, to in ((paths[0], 'aside'), (paths[1], a), (data/'JPEGImages'/'aside.jpg', b)):
        source.rename(photo_path(data, to))
    refused(config, 'train: 2 with another photo')


def test_who_is_killed_while_changes_are_accepted_still_knows_them(home, monkeypatch):
    swapped_tags(home/'data')
    config = configured(home/'data', home/'run')

    def killed(*_, **__):
        raise KeyboardInterrupt

    for name in ('rmtree', 'write_fingerprints'):
        with monkeypatch.context() as patch:
            where = fingerprints.shutil if name == 'rmtree' else runs
            patch.setattr(where, name, killed)
            with pytest.raises(KeyboardInterrupt):
                pipeline.run(config, accept_changes=True)
    pipeline.run(config, accept_changes=True)
    assert_as_anew(home)


def test_a_branch_begins_with_maps_of_these_very_photos(home):
    replaced(photo_path(home/'data', open_photos(home/'data', 'train').ids[0]))
    with pytest.raises(InputError, match='another photo'):
        pipeline.branch(open_run(home/'run'), home/'branch', NoRefiner(), workers=0)
    assert not (home/'branch').exists()


def test_regions_of_a_coco_file_are_masks(tmp_path):
    data = tmp_path/'data'
    data.mkdir()
    ring = [{'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [0, 0, 8, 8], 'area': 64,
             'iscrowd': 0, 'segmentation': [[0, 0, 8, 0, 8, 8, 0, 8]]}]
    Image.new('RGB', (16, 16)).save(data/'a.png')
    write_coco(data/'train.json', ['a.png'], [(16, 16)], ['cat'], ring)
    before = fingerprints_of(open_photos(data/'train.json', 'train'))
    content = read_json(data/'train.json')
    content['annotations'][0]['segmentation'][0][2] = 9
    (data/'train.json').write_text(json.dumps(content))
    after = fingerprints_of(open_photos(data/'train.json', 'train'))
    found = fingerprints.compare(before, after)
    assert (found.masks, found.photos, found.tags) == (('a',), (), ())


def test_some_masks_of_a_list_to_measure_on_are_a_fault(first, tmp_path):
    shutil.copytree(first/'data', tmp_path/'data')
    name = open_photos(tmp_path/'data', 'val').ids[1]
    mask_path(tmp_path/'data', name).unlink()
    with pytest.raises(InputError, match=f"1 of 3 photos of 'val' have no mask, such as '{name}'"):
        start_run(configured(tmp_path/'data', tmp_path/'run'))
    assert not (tmp_path/'run').exists()
    with pytest.raises(InputError, match="no split 'test'"):
        start_run(replace(configured(tmp_path/'data', tmp_path/'run'), val='test'))


def test_what_computed_a_run_is_written_down(first):
    config = read_json(first/'run'/'config.json')
    written = config['made_by']
    metrics = read_json(first/'run'/'metrics.json')
    assert written['precision'] == config['precision'] in ('no', 'bf16')
    assert written['threads'] >= 1 and written['device']
    assert {'python', 'torch', 'wsss_nb'} <= written['versions'].keys() and 'revision' in written
    for stage in ('classify', 'cams', 'refine', 'segment', 'predict', 'evaluate'):
        entry = metrics['stages'][stage]
        assert entry['start'] <= entry['end'] and entry['versions'] == written['versions']


def test_the_same_command_goes_on_where_the_machine_would_choose_another_precision(home):
    config = configured(home/'data', home/'run')
    path = home/'run'/'config.json'
    begun = read_json(path)['precision']
    chosen = 'no' if begun == 'bf16' else 'bf16'
    path.write_text(path.read_text().replace(f'"precision": "{begun}"', f'"precision": "{chosen}"'))
    assert start_run(config).precision == chosen
    with pytest.raises(InputError, match=f"precision: '{chosen}' there, '{begun}' asked for"):
        start_run(replace(config, precision=begun))


def test_masks_that_went_out_before_a_change_are_known_again(home):
    export(open_run(home/'run', workers=0), 'png', home/'out')
    name = open_photos(home/'data', 'train').ids[0]
    blank(home/'out'/'masks'/f'{name}.png', 3)
    swapped_tags(home/'data')
    pipeline.run(configured(home/'data', home/'run'), accept_changes=True)
    assert import_masks(open_run(home/'run', workers=0), home/'out').new == [name]


def cut(*_):
    raise KeyboardInterrupt


def test_the_same_command_goes_on_when_accepting_was_cut_off(home, monkeypatch):
    path = mask_path(home/'data', open_photos(home/'data', 'train').ids[0])
    labels = read_mask(path).copy()
    labels[0, 0] = 255
    write_mask(path, labels)
    before = times(home/'run')
    accepted = DataOptions(accept_changes=True)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, 'measure_cams', cut)
        with pytest.raises(KeyboardInterrupt):
            do_stage('classify', home/'run', accepted, workers=0)
    do_stage('classify', home/'run', accepted, workers=0)
    assert remade(before, home/'run') == set()


def test_settings_that_follow_the_photos_follow_those_of_today(tmp_path, monkeypatch):
    make_shapes(tmp_path/'data', train=12, val=3, size=48)
    listed = tmp_path/'data'/'ImageSets'/'Segmentation'/'train.txt'
    names = listed.read_text().split()
    listed.write_text('\n'.join(names[:9]))
    usual = replace(TINY, classifier=replace(TINY.classifier, training=TrainingSettings()))
    config = configured(tmp_path/'data', tmp_path/'run', usual)
    start_run(config)
    (tmp_path/'run'/'classifier'/'log.csv').touch()
    listed.write_text('\n'.join(names))
    monkeypatch.setattr(pipeline, 'do_stage', lambda this, name: None)
    do_stage('classify', tmp_path/'run', DataOptions(accept_changes=True), workers=0)
    (tmp_path/'run'/'classifier'/'log.csv').touch()
    new = Run(replace(config, out=tmp_path/'new')).system
    assert start_run(config).system == new == open_run(tmp_path/'run').system


def test_what_was_measured_with_other_settings_goes(home):
    for folder in [path for path in (home/'run').iterdir() if path.is_dir()]:
        shutil.rmtree(folder)
    start_run(replace(configured(home/'data', home/'run'), seed=5))
    assert Run(configured(home/'data', home/'run')).metrics == {}


def test_a_branch_that_is_there_gets_no_masks_that_have_not_taught_it(home):
    pipeline.branch(open_run(home/'run', workers=0), home/'new', NoRefiner(), workers=0,
                    background=.4)
    run = open_run(home/'run', workers=0)
    name = run.photos.ids[0]
    (home/'run'/CORRECTED).mkdir()
    write_mask(home/'run'/CORRECTED/f'{name}.png', run.photos.truth(0))
    pipeline.branch(run, home/'new', NoRefiner(), workers=0, background=.4)
    assert not (home/'new'/CORRECTED/f'{name}.png').exists()


DAMAGED = {
    'metrics.json': ('[]', 'null', '{"cam": []}', '{"cam": {"train": 3}}', '{', '"a"', '1e999',
                     '{"cam": {"train": {"miou": NaN, "iou": {}, "images": 3}}}',
                     '{"cam": {"train": {"miou": 7, "iou": {}, "images": 3}}}',
                     '{"seconds": {"cams": "long"}}', '{"made_with": {"pseudo": {}}}',
                     '[' * 100_000, '\x00\x01'),
    'config.json': ('[]', 'null', '3', '{}', '{"format": 2, "data": "", "classes": 3, '
                    '"photos": {}}', '[' * 100_000, '\xff'),
    'fingerprints.json': ('[]', 'null', '{"train": []}', '{"train": {"a": []}}',
                          '{"train": {"a": ["a", [1, 2, 3], [], null, ""]}}', '{"train": 1e999}'),
}


@pytest.mark.parametrize('name', DAMAGED)
def test_a_damaged_record_is_one_sentence(name, home, capsys):
    for text in DAMAGED[name]:
        (home/'run'/name).write_text(text, encoding='latin-1')
        with pytest.raises(SystemExit) as leaving:
            main(['evaluate', str(home/'run')])
        shown = capsys.readouterr().err
        assert leaving.value.code == 2 and name in shown, shown
        assert len(shown.strip().splitlines()) == 1 and 'Traceback' not in shown


def test_no_single_change_of_a_record_is_a_traceback(first, tmp_path):
    shutil.copytree(first/'run', tmp_path/'run')
    draw = np.random.default_rng(0)
    values = [None, [], {}, '', 'x', -1, 0, 1e300, 10**29, 10**400, True, [1], {'a': 1}, ['a', 'a']]
    for name in ('config.json', 'metrics.json'):
        path = tmp_path/'run'/name
        whole = json.loads(path.read_text())
        for _ in range(300):
            content = json.loads(json.dumps(whole))
            at = content
            while True:
                key = list(at)[draw.integers(len(at))]
                if not isinstance(at[key], dict) or not at[key] or draw.random() < .2:
                    break
                at = at[key]
            at[key] = values[draw.integers(len(values))]
            path.write_text(json.dumps(content))
            try:
                run = open_run(tmp_path/'run')
                assert run.classes and run.stages
            except InputError as error:
                assert str(path) in str(error), (key, at[key], error)
        path.write_text(json.dumps(whole))


def test_a_pseudo_mask_of_a_wrong_size_names_the_stage_that_makes_it(home):
    name = open_photos(home/'data', 'train').ids[0]
    root = home/'run'
    shutil.rmtree(root/'segmenter')
    write_mask(root/'pseudo'/f'{name}.png', np.zeros((3, 3), np.uint8))
    with pytest.raises(InputError, match='Remove .*, then make it again with `wsss_nb refine'):
        pipeline.do_stage(start_run(configured(home/'data', root)), 'segment')
    metrics = read_json(root/'metrics.json')
    del metrics['pseudo']
    (root/'metrics.json').write_text(json.dumps(metrics))
    with pytest.raises(InputError, match='is wrong. Remove .*, then make it again with'):
        pipeline.do_stage(start_run(configured(home/'data', root)), 'refine')


def test_names_in_two_forms_are_one(tmp_path):
    for form in ('NFC', 'NFD'):
        folder = tmp_path/form
        folder.mkdir()
        Image.new('RGB', (4, 4)).save(folder/f'{unicodedata.normalize(form, "é")}.png')
    assert list(find_photos([tmp_path/'NFD'])) == [unicodedata.normalize('NFC', 'é')]
    with pytest.raises(InputError, match='same name'):
        find_photos([tmp_path/'NFC', tmp_path/'NFD'])


@pytest.mark.parametrize('changes, stays', [
    (Changes(masks=('a',)), ()), (Changes(photos=('a',)), ()),
    (Changes(tags=('a',)), ('segmentation', 'without CRF', 'with CRF'))])
def test_all_that_is_measured_of_predictions_goes_with_what_it_was_measured_on(changes, stays):
    metrics = {kind: {'val': {'miou': .5}} for kind in MEASURED_AFTER['predict']}
    uses = Uses(True, False, False)
    found = made_again({'train': Changes(), 'val': changes}, 'train', STAGES, uses)
    mark(metrics, found, {})
    assert {kind for kind in MEASURED_AFTER['predict'] if 'val' in metrics[kind]} == set(stays)
