"Exercise sheets: they fail at what is to be written, say so, and pass when it is written."
import ast
import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from wsss_nb.exercises import (chapter_of, emptied, failure_in, functions_of, make_sheets, marks,
                               print_marks, read_notebook, sheet_of, source_of, to_write,
                               with_definitions)
from wsss_nb.files import InputError
from wsss_nb.pictures import flags_of, without_flagged

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT/'nbs').glob('*.ipynb'))
CORE = ('14_pooling', '15_codebook', '16_losses', '20_cam', '21_metrics', '25_random_walk',
        '28_pamr')


def chapter(name: str) -> dict:
    return read_notebook(ROOT/'nbs'/f'{name}.ipynb')


def code(notebook: dict) -> list[str]:
    cells = [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']
    return [source_of(cell).rstrip() for cell in cells]


def names_to_write(notebook: dict) -> list[str]:
    return sum(map(to_write, notebook['cells']), [])


@pytest.fixture(scope='session')
def sheets(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp('sheets')
    return {path.stem: read_notebook(path) for path in make_sheets(ROOT/'nbs', folder)}


def test_the_core_chapters_have_sheets_with_several_functions(sheets):
    assert sheets.keys() == set(CORE)
    for sheet in sheets.values():
        assert 3 <= len(names_to_write(sheet)) <= 6


@pytest.mark.parametrize('name', CORE)
def test_a_sheet_has_signatures_docstrings_and_asserts_but_no_solution(name, sheets):
    original = chapter(name)
    for cell, before in zip(without_task(sheets[name]), original['cells'], strict=True):
        for function in to_write(cell):
            left = functions_of(source_of(cell))[function]
            whole = functions_of(source_of(before))[function]
            assert ast.unparse(left.args) == ast.unparse(whole.args)
            assert ast.get_docstring(left) == ast.get_docstring(whole)
            assert ast.unparse(left.body[1:]) == (
                f"raise NotImplementedError('your turn: {function}')")
        if cell['cell_type'] == 'code' and not to_write(cell):
            assert source_of(cell) == source_of(before)
    words = json.dumps(sheets[name])
    assert 'Answer</summary>' not in words and 'Your answer' in words
    assert 'image/png' not in words


def without_task(sheet: dict) -> list[dict]:
    return [cell for cell in sheet['cells'] if cell['id'] != 'task']


@pytest.mark.parametrize('name', CORE)
def test_a_sheet_fails_at_the_first_function_and_names_it(name, sheets):
    failure = failure_in(sheets[name], ROOT/'nbs')
    first = names_to_write(sheets[name])[0]
    assert failure.what == f'NotImplementedError: your turn: {first}'
    codes = code(sheets[name])
    failed = [i for i, source in enumerate(codes) if failure.line in source][0]
    written = [i for i, source in enumerate(codes) if f'#| exercise {first}' in source][0]
    assert written < failed


@pytest.mark.parametrize('name', CORE)
def test_with_its_solutions_a_sheet_is_its_chapter(name, sheets):
    assert code(with_definitions(sheets[name], chapter(name))) == code(chapter(name))


def test_a_solved_sheet_runs_to_its_end_and_a_wrong_function_costs_only_itself(sheets):
    sheet = sheets['16_losses']
    solved = with_definitions(sheet, chapter('16_losses'))
    assert failure_in(solved, ROOT/'nbs') is None
    for cell in solved['cells']:
        if to_write(cell) == ['decov']:
            cell['source'] = [line.replace('/ 2', '') for line in cell['source']]
    found = marks(chapter('16_losses'), solved, ROOT/'nbs')
    assert found.pop('decov').startswith('AssertionError')
    assert found == {'word_loss': 'right', 'entropy': 'right'}


def test_a_page_uses_what_is_written_on_it():
    for name in CORE:
        for source in code(chapter(name)):
            assert not re.search(rf'wsss_nb\.{name[3:]}\b|wsss_nb import', source)


def test_a_sheet_that_is_there_is_left_alone(tmp_path, capsys):
    (tmp_path/'nbs').mkdir()
    shutil.copy(ROOT/'nbs'/'16_losses.ipynb', tmp_path/'nbs')
    sheet, = make_sheets(tmp_path/'nbs', tmp_path/'mine')
    sheet.write_text('half done')
    assert make_sheets(tmp_path/'nbs', tmp_path/'mine') == []
    assert sheet.read_text() == 'half done'
    assert 'stays as it is' in capsys.readouterr().out


def test_sheets_are_no_part_of_the_repository():
    ignored = subprocess.run(['git', 'check-ignore', 'exercises/14_pooling.ipynb'], cwd=ROOT)
    assert ignored.returncode in (0, 128)   # 128: not a git checkout


def test_what_is_no_notebook_is_refused(tmp_path):
    for text in ('', '{}', '{"cells": [{}]}', '[]'):
        (tmp_path/'a.ipynb').write_text(text)
        with pytest.raises(InputError, match='a.ipynb'):
            read_notebook(tmp_path/'a.ipynb')


def test_functions_of_one_cell_are_emptied_in_any_order():
    source = source_of(next(cell for cell in chapter('20_cam')['cells'] if to_write(cell)))
    both = emptied(source, ['to_labels', 'save'])
    assert both == emptied(source, ['save', 'to_labels'])
    assert both.count('your turn') == 2
    compile(both, 'cell', 'exec')


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_run_all_meets_no_cell_that_is_not_run_with_the_page(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    is_minding = False
    for source in code(read_notebook(path)):
        lines = source.splitlines(keepends=True)
        flags = flags_of(lines)
        is_minding = is_minding or 'leave_out_flagged()' in lines[-1]
        if flags.get('eval') == 'false':
            assert is_minding, 'call leave_out_flagged() at the top'
            assert 'needs' in flags or 'reads' in flags, 'say what the cell needs'
            line, = without_flagged(lines)
            assert line.startswith("print('Not run: ") or line.startswith('print("Not run: ')


def test_a_sheet_of_a_chapter_without_functions_to_write_is_the_chapter():
    sheet = sheet_of(chapter('18_work'))
    assert code({'cells': without_task(sheet)}) == code(chapter('18_work'))


def notebook_of(*sources: str) -> dict:
    cells = [{'cell_type': 'code', 'id': f'cell{i}', 'metadata': {}, 'execution_count': None,
              'source': source.splitlines(keepends=True), 'outputs': []}
             for i, source in enumerate(sources)]
    return {'nbformat': 4, 'nbformat_minor': 5, 'metadata': {}, 'cells': cells}


DIVIDE = '''#| exercise half
def half(number):
    "Half of a number."
    try:
        return number / 0
    except ZeroDivisionError:
        raise ValueError('no Traceback (most recent call last): here')
'''


@pytest.mark.parametrize('sources, line', (
    (('#| hide\nassert 1 == 1\n\nassert (2 ==\n        3)\nassert 4 == 4',), 'assert (2 =='),
    ((DIVIDE, 'assert half\n\n    # what it gives\n\nassert half(4) == 2'), 'assert half(4) == 2'),
    (('one = 1\n\ndef half(number)\n    return number',), 'def half(number)'),
    (('import json\nassert json\njson.loads("{")',), 'json.loads("{")'),
    (('#| hide\nassert True\nimport os\nos._exit(1)',), 'assert True'),   # no traceback
), ids=('an assert of several lines', 'called, after another error', 'syntax', 'library', 'killed'))
def test_a_failure_names_the_line_that_failed(sources, line, tmp_path):
    assert failure_in(notebook_of(*sources), tmp_path).line == line


def test_marks_name_the_assert_of_a_chapter_that_failed(tmp_path):
    page = notebook_of(DIVIDE.replace('/ 0', '/ 2'), 'assert half(0) == 0\nassert half(4) == 2')
    filled = notebook_of(DIVIDE.replace('/ 0', '/ 4'))
    assert marks(page, filled, tmp_path) == {'half': 'AssertionError, at `assert half(4) == 2`'}


@pytest.mark.parametrize('ids', ('absent', 'others'))
def test_cells_without_their_ids_are_told_by_what_is_to_be_written(ids, sheets):
    solved = with_definitions(sheets['14_pooling'], chapter('14_pooling'))
    for i, cell in enumerate(solved['cells']):
        del cell['id']
        if ids == 'others':
            cell['id'] = f'new-{i}'
    assert code(with_definitions(sheets['14_pooling'], solved)) == code(chapter('14_pooling'))
    assert code(with_definitions(solved, sheets['14_pooling'])) == code(sheets['14_pooling'])


def test_an_id_counts_more_than_a_copy_of_its_cell():
    page = notebook_of('#| exercise half\nfirst', 'second')
    moved = notebook_of('#| exercise half\ndone', '#| exercise half\ncopied')
    moved['cells'].reverse()
    assert code(with_definitions(page, moved)) == ['#| exercise half\ndone', 'second']


@pytest.mark.parametrize('name', (
    '14_pooling', 'Ada_14_pooling', '14_pooling-ada', '14_pooling (1)', 'ADA_14_Pooling',
    'Ada Byron_4711_assignsubmission_file_14_pooling'))
def test_the_name_of_a_chapter_is_found_in_that_of_a_file(name):
    assert chapter_of(Path(f'15_codebook/{name}.ipynb'), NOTEBOOKS).stem == '14_pooling'
    assert chapter_of(Path(f'14_pooling/{name[:5]}.ipynb'), NOTEBOOKS) is None


def test_a_class_is_marked_although_some_files_are_damaged(tmp_path, capsys):
    page = notebook_of(DIVIDE.replace('/ 0', '/ 2'), 'assert half(4) == 2')
    (tmp_path/'nbs').mkdir()
    (tmp_path/'in'/'bob').mkdir(parents=True)
    whole = json.dumps(page)
    (tmp_path/'nbs'/'14_pooling.ipynb').write_text(whole)
    for name, text in {'Ada_14_pooling': whole, 'bob/14_pooling': whole.replace('/ 2', '/ 4'),
                       'Cyd_14_pooling': whole[:200], 'Abe_homework': whole,
                       '._Ada_14_pooling': 'of an archive'}.items():
        (tmp_path/'in'/f'{name}.ipynb').write_text(text)
    faults = print_marks(tmp_path/'nbs', tmp_path/'in')
    assert [fault.path.name for fault in faults] == ['Abe_homework.ipynb', 'Cyd_14_pooling.ipynb']
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ['Ada_14_pooling.ipynb: 1 of 1 right', 'bob/14_pooling.ipynb: 0 of 1 right']
    assert 'no chapter' in lines[-2] and 'no whole notebook' in lines[-1]
    with open(tmp_path/'in'/'marks.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['sheet'] for row in rows] == ['Ada_14_pooling.ipynb', 'bob/14_pooling.ipynb']
    assert rows[0]['14_pooling half'] == 'right'
    assert rows[1]['14_pooling half'].endswith('at `assert half(4) == 2`')
    assert f"The table is {tmp_path/'in'/'marks.csv'}" in lines


@pytest.mark.parametrize('name, problem', (('absent', 'no such folder'), ('empty', 'no notebook')))
def test_a_folder_without_sheets_is_a_sentence(name, problem, tmp_path, capsys):
    (tmp_path/'empty').mkdir()
    fault, = print_marks(ROOT/'nbs', tmp_path/name)
    assert problem in str(fault) and 'SHEETS=folder' in str(fault)
    assert capsys.readouterr().out == f'Not marked: {fault}\n'
    assert not (tmp_path/name/'marks.csv').exists()


def test_make_marks_ends_with_a_status_and_without_a_traceback(tmp_path):
    (tmp_path/'bin').mkdir()
    (tmp_path/'installed').touch()   # and newer than what it is made of
    python = tmp_path/'bin'/'python'
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')   # a link would lose its packages
    python.chmod(0o755)
    made = subprocess.run(['make', 'marks', f'VENV={tmp_path}', f'SHEETS={tmp_path}/none'],
                          cwd=ROOT, capture_output=True, text=True)
    assert made.returncode != 0 and 'no such folder' in made.stdout
    assert 'Traceback' not in made.stdout + made.stderr


def test_the_page_for_teachers_names_what_there_is():
    page = (ROOT/'docs'/'reading.md').read_text()
    teaching = page.split('## You teach')[1].split('\n## ')[0]
    sections = {'17_classifier': 'What it learns from', '20_cam': 'A trained network'}
    for stem, section in sections.items():
        assert f'../nbs/{stem}.ipynb' in teaching and f'*{section}*' in teaching
        assert any(f'## {section}' in source_of(cell) for cell in chapter(stem)['cells'])
    for target in re.findall(r'\]\((\.\./[^)#]+)', teaching):
        assert (ROOT/'docs'/target).exists()
    assert '## Other ways to install' in (ROOT/'README.md').read_text()
    makefile = (ROOT/'Makefile').read_text()
    for call in ("make_sheets('nbs', 'exercises')", "print_marks('nbs', 'folder')"):
        assert call in teaching and call.replace('folder', '$(SHEETS)') in makefile


@pytest.mark.parametrize('page', ('README.md', 'docs/reading.md'))
def test_the_paper_is_linked_where_it_is_first_named(page):
    words = ' '.join((ROOT/page).read_text().split())
    title = 'Learning Visual Words for Weakly-Supervised Semantic Segmentation*'
    link = '](https://www.ijcai.org/proceedings/2021/0136)'
    assert words[words.index(title):].startswith(title + link)
