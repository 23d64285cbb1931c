"What the page of `checks` does not show: masks against tags, what is not read, new folders."
import difflib
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from wsss_nb.checks import (Agreement, check, commoner_twins, examine, new_folder, photos_by_tag,
                            summarise, tag_notes)
from wsss_nb.files import InputError
from wsss_nb.photos import MOST_CLASSES, Annotation, write_mask


@pytest.fixture
def own(tmp_path):
    "Four photos of 6 x 4 with masks: 0 and 1 of cats, 2 and 3 of dogs."
    root = tmp_path/'own'
    for name in ('images', 'masks'):
        (root/name).mkdir(parents=True)
    for i in range(4):
        Image.new('RGB', (6, 4), (60 * i, 0, 0)).save(root/'images'/f'p{i}.png')
        write_mask(root/'masks'/f'p{i}.png', np.full((4, 6), i//2 + 1, np.uint8))
    (root/'tags.csv').write_text('file,tags\np0.png,cat\np1.png,cat\np2.png,dog\np3.png,dog\n')
    (root/'classes.txt').write_text('cat\ndog\n')
    assert check(root, progress=False) == []
    return root


# Masks and tags

@pytest.mark.parametrize('wrong, often', [(1, False), (2, False), (3, True), (4, True)])
def test_more_than_half_is_a_fault_and_less_a_note(own, wrong, often):
    for i in range(wrong):
        write_mask(own/'masks'/f'p{i}.png', np.full((4, 6), 255, np.uint8))
    found = examine(own, progress=False)
    said = [fault.problem for fault in found.faults] if often else found.notes
    assert said == [f"in {wrong} of 4 photos with a mask, the mask has none of the tagged classes, "
                    "such as 'p0': tagged cat, its mask holds 255"]
    assert len(found.faults) + len(found.notes) == 1


def test_a_class_that_is_not_tagged(own):
    for i in range(3):
        write_mask(own/'masks'/f'p{i}.png', np.array([[1, 2, 0, 255, 0, 0]] * 4, np.uint8))
    fault, = check(own, progress=False)
    assert fault.problem == ('in 3 of 4 photos with a mask, the mask has a class that is not '
                             "tagged, such as 'p0': its mask holds 'dog' (2)")
    assert fault.path == own/'masks'


def test_numbers_that_are_shifted_by_one(own):
    (own/'classes.txt').write_text('ant\ncat\ndog\n')
    assert len(check(own, progress=False)) == 2


def test_photos_whose_tags_or_masks_are_wrong_are_not_compared():
    found = Agreement(Path('masks'), ('cat',))
    found.add('a', (), np.zeros((2, 2), np.uint8))
    assert found.faults == found.notes == []


@pytest.mark.parametrize('split, faults', [('val', 1), ('test', 1), ('fold', 1), ('train', 0)])
def test_a_list_to_measure_on_needs_all_masks(own, split, faults):
    (own/f'{split}.txt').write_text('p0\np1\np2\n')
    assert check(own, progress=False) == []
    (own/'masks'/'p1.png').unlink()
    found = check(own, progress=False)
    assert len(found) == faults
    for fault in found:
        assert fault.path.name == f'{split}.txt'
        assert fault.problem.startswith(f"1 of 3 photos of {split!r} have no mask, such as 'p1'")
    for i in (0, 2):
        (own/'masks'/f'p{i}.png').unlink()
    assert check(own, progress=False) == []   # nothing to measure, and nobody said so


def test_a_photo_that_exif_turns_by_half(own):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    Image.new('RGB', (6, 4)).save(own/'images'/'p0.png', exif=exif)
    note, = examine(own, progress=False).notes
    assert note.startswith('photos that a note in them (EXIF) turns, and that have a mask: 1')
    Image.fromarray(np.full((4, 6), 1, np.uint8)).save(own/'masks'/'p0.png', exif=exif)
    assert examine(own, progress=False).notes == []   # the mask is turned, too


# Tags

def free_text(count):
    "Different tags as of people who write what they see."
    letters = random.Random(0)
    found = {}
    while len(found) < count:
        words = [''.join(letters.choices('aeiklmnorst', k=4)) for _ in range(2)]
        found[' '.join(words)] = None
    return list(found)


def test_likeness_is_asked_of_the_commonest_only(monkeypatch):
    asked = []

    def matches(word, words, *options):
        asked.append(len(words))
        return []

    monkeypatch.setattr(difflib, 'get_close_matches', matches)
    tags = free_text(1_000)
    rows = [Annotation(Path('tags.csv'), str(i), (tag,)) for i, tag in enumerate(tags)]
    assert commoner_twins(photos_by_tag(rows)) == {}
    assert len(asked) == 1_000 and max(asked) == MOST_CLASSES


def test_capital_letters_are_seen_in_any_tag():
    tags = [*free_text(400), 'zebra', 'Zebra']
    rows = [Annotation(Path('tags.csv'), str(i), (tag,)) for i, tag in enumerate(tags)]
    assert commoner_twins(photos_by_tag(rows))['zebra'] == 'Zebra'


def test_a_tag_with_a_comma():
    note = next(tag_notes([Annotation(Path('tags.csv'), 'a.jpg', ('dog, cat',))]))
    assert note == ("the tag 'dog, cat' (1, such as 'a.jpg') has a comma in it; if these are "
                    "several tags, write ';' between them")


# What is there

def test_what_is_not_read_is_named(own):
    (own/'notes.docx').touch()
    (own/'labels.txt').write_text('cat\ndog\n')
    (own/'images'/'raw').mkdir()
    (own/'images'/'p9.cr2').touch()
    (own/'masks'/'p0.npy').touch()
    for name in ('.DS_Store', 'Thumbs.db', 'desktop.ini'):
        (own/'images'/name).touch()
    notes = [note for note in summarise(own).notes if note.startswith('not read')]
    assert notes == [
        "not read, .txt: 1, such as 'labels.txt'",
        "not read, .docx: 1, such as 'notes.docx'",
        "not read in images, .cr2: 1, such as 'p9.cr2'",
        "not read in images, folders: 1, such as 'raw'",
        "not read in masks, .npy: 1, such as 'p0.npy'"]   # the PNG is


def test_letters_that_had_to_be_guessed_are_noted(own):
    text = (own/'tags.csv').read_text().replace('dog', 'b\u00e4r')
    (own/'tags.csv').write_bytes(text.encode('latin-1'))
    (own/'classes.txt').write_bytes('cat\nb\u00e4r'.encode('latin-1'))
    notes = [note for note in summarise(own).notes if 'UTF-8' in note]
    assert len(notes) == 2
    assert notes[0] == ("tags.csv is not in UTF-8, and taken for Windows-1252 (Latin-1): "
                        "'p2.png,b\u00e4r'; if this is wrong, save it as UTF-8")


def test_a_guessed_letter_that_is_only_a_blank_at_the_end_of_a_line_is_no_note(own):
    text = (own/'tags.csv').read_text().splitlines()
    text[-1] += '\xa0'
    (own/'tags.csv').write_bytes('\n'.join(text).encode('cp1252'))
    assert not [note for note in summarise(own).notes if 'UTF-8' in note]


def test_one_photo_in_two_folders_of_classes(tmp_path):
    for tag in ('cat', 'dog'):
        (tmp_path/'images'/tag).mkdir(parents=True)
        Image.new('RGB', (6, 4)).save(tmp_path/'images'/tag/'1.png')
    assert any('photos in folders of two classes: 1, such as cat/1.png and dog/1.png' in note
               for note in summarise(tmp_path).notes)


# New folders

def folder_with(root, *names):
    (root/'images').mkdir(parents=True)
    for name in names:
        Image.new('RGB', (6, 4)).save(root/'images'/name, 'PNG')
    return root


@pytest.mark.parametrize('names, words', [
    (('a.png', 'a.jpg'), "'a.jpg' has the same name but for the ending"),
    ((' a.png', 'a.png'), "images/ a.png has the same name"),
    (('cafe\u0301.png', 'caf\u00e9.png'), 'has the same name'),
    ((' .png',), "images: no table can name ' .png'. Rename it")])
def test_new_lists_no_name_that_check_refuses(tmp_path, names, words):
    root = folder_with(tmp_path, *names)
    with pytest.raises(InputError, match=words):
        new_folder(root)
    assert not (root/'tags.csv').exists()


def test_new_lists_no_photo_that_can_not_be_opened(tmp_path, monkeypatch):
    root = folder_with(tmp_path, 'good.png')
    (root/'images'/'bad.jpg').write_bytes(b'no photo')
    with pytest.raises(InputError, match='bad.jpg: this is not an image'):
        new_folder(root)
    monkeypatch.setitem(sys.modules, 'pillow_heif', None)
    (root/'images'/'bad.jpg').unlink()
    (root/'images'/'phone.heic').write_bytes(b'\0\0\0\x18ftypheic' + b'\0' * 90)
    with pytest.raises(InputError, match='pillow-heif.*is not installed'):
        new_folder(root)
    assert os.listdir(root) == ['images']


@pytest.mark.skipif(sys.platform != 'linux', reason='names of other bytes')
def test_new_lists_no_name_that_is_no_text(tmp_path):
    root = folder_with(tmp_path, 'good.png')
    (root/'images'/'good.png').rename(os.fsdecode(os.fsencode(root/'images') + b'/b\xe4r.png'))
    with pytest.raises(InputError, match='is no text in UTF-8. Rename it'):
        new_folder(root)


def test_whatever_photos_are_called_check_takes_the_table(tmp_path):
    letters = 'ab .,;"\'()\u00e9\u0301\u4e2d#=&%$\t\u00a0'
    draw = random.Random(0)
    stems = {''.join(draw.choices(letters, k=draw.randint(1, 6))) for _ in range(300)}
    root = tmp_path/'mine'
    for place, stem in enumerate(stems):
        folder_with(root/str(place), f'{stem}.png')
        try:
            count = new_folder(root/str(place))
        except InputError:
            continue   # said at once, and nothing written
        problems = [fault.problem for fault in check(root/str(place), progress=False)]
        if count:   # 0 where the file is hidden
            assert len(problems) == 1 and 'has no tags' in problems[0]


def own_photos(root: Path, names: list[str], lines: list[str]) -> Path:
    "A folder of photos with a table."
    (root/'images').mkdir(parents=True)
    for name in names:
        Image.new('RGB', (16, 12)).save(root/'images'/name)
    (root/'tags.csv').write_text('\n'.join(['file,tags', *lines]))
    return root


def test_a_table_without_lines_is_made_again_by_new(tmp_path):
    root = own_photos(tmp_path/'mine', ['a.jpg', 'b.jpg'], [])
    said = '\n'.join(map(str, check(root, progress=False)))
    assert f'`wsss_nb new {root}` lists them here' in said and 'one photo a line' not in said
    assert new_folder(root) == 2


def test_a_line_with_another_ending_is_told_the_right_one(tmp_path):
    lines = ['IMG_1070.JPG,cow', 'b.jpg,horse']
    root = own_photos(tmp_path/'mine', ['IMG_1070.jpg', 'b.jpg', 'c.jpg'], lines)
    said = '\n'.join(map(str, check(root, progress=False)))
    assert 'Write IMG_1070.jpg, or take out the line' in said and 'Put the photo there' not in said
    notes = '\n'.join(summarise(root).notes)
    assert "without a line in tags.csv, so left out: 1, such as 'c'" in notes


def test_who_names_the_folder_of_the_photos_is_told_of_the_one_around_it(tmp_path):
    root = own_photos(tmp_path/'mine', ['a.jpg', 'b.jpg'], ['a.jpg,cow', 'b.jpg,horse'])
    said = '\n'.join(map(str, check(root/'images', progress=False)))
    assert f'You mean the folder around it, with tags.csv: {root}.' in said
