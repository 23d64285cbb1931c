"What the page of `files` does not show: what is refused, and odd files."
import os
import pickle

import pytest

from wsss_nb.files import (
    Fault, InputError, collecting, files_by_stem, one_form, read_csv, read_json, read_list,
    read_text, whole_file, write_json)


# Errors

def test_errors_travel_between_processes():
    error = InputError(Fault('a.jpg', 'broken', 'Mend it'))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is InputError
    assert str(again) == 'a.jpg: broken. Mend it.'


def test_an_error_of_input_is_a_value_error_and_others_are_not_collected():
    assert issubclass(InputError, ValueError)
    faults = []
    with pytest.raises(ValueError, match='of the program'):
        with collecting(faults):
            raise ValueError('a mistake of the program')
    assert faults == []


# Whole files

def test_whole_file_names_the_file(tmp_path):
    path = tmp_path/'missing'/'x.png'
    with pytest.raises(FileNotFoundError) as caught:
        with whole_file(path) as aside:
            aside.write_text('x')
    assert caught.value.filename == str(path)

    path = tmp_path/'x.png'
    with pytest.raises(OSError) as caught:
        with whole_file(path):
            raise OSError(28, 'No space left on device')
    assert caught.value.errno == 28
    assert str(path) in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_whole_file_leaves_other_errors_alone(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with whole_file(tmp_path/'x.png') as aside:
            aside.write_text('x')
            1/0
    other = str(tmp_path/'other.txt')
    with pytest.raises(FileNotFoundError) as caught:
        with whole_file(tmp_path/'x.png'):
            open(other)
    assert caught.value.filename == other   # not the file that was to be written
    assert os.listdir(tmp_path) == []


def test_whole_file_takes_long_names(tmp_path):
    name = 'x'*250 + '.png'
    with whole_file(tmp_path/name) as aside:
        assert aside.parent == tmp_path
        assert aside.suffix == '.png'
        aside.write_text('x')
    assert os.listdir(tmp_path) == [name]


# Text

@pytest.mark.parametrize('content', [
    b'a\nb b\n', b'\xef\xbb\xbfa\r\nb b\r\n', b'\n\n  a  \n\t\nb b', b'a\rb b\r'])
def test_read_list(tmp_path, content):
    path = tmp_path/'list.txt'
    path.write_bytes(content)
    assert read_list(path) == ['a', 'b b']


@pytest.mark.parametrize('read', [read_list, read_text, read_csv])
@pytest.mark.parametrize('content, words', [
    ('caf\u00e9 b\u00e4r'.encode() + b' \xe9 ', 'the text is not in UTF-8. Save it as UTF-8'),
    (b'\xef\xbb\xbfb\xe4r', 'the text is not in UTF-8'),          # says that it is, and isn't
    (b'b\x81r', 'the text is not in UTF-8'),                      # no letter of Windows-1252
    (b'\xff\xfea\0\x3d\xd8', 'the text is not in UTF-8'),         # half a pair of UTF-16
    (b'PK\x03\x04\x14\x00\x06', 'this is no text. Save it as text; a spreadsheet as "CSV'),
    (b'a\nb\0c\n', 'this is no text')])
def test_text_that_cannot_be_read(tmp_path, read, content, words):
    path = tmp_path/'list.txt'
    path.write_bytes(content)
    with pytest.raises(InputError, match=f'list.txt: {words}'):
        read(path)
    with pytest.raises(InputError, match='nowhere.txt: the file cannot be read'):
        read(tmp_path/'nowhere.txt')
    with pytest.raises(InputError, match='cannot be read'):
        read(tmp_path)


@pytest.mark.parametrize('encoding', [
    'utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'cp1252', 'latin-1'])
def test_text_of_any_editor(tmp_path, encoding):
    path = tmp_path/'list.txt'
    path.write_bytes('B\u00e4r auf Sofa\r\nL\u00f6we\r\n'.encode(encoding))
    assert read_list(path) == ['B\u00e4r auf Sofa', 'L\u00f6we']


def test_names_have_one_form(tmp_path):
    path = tmp_path/'list.txt'
    for written in ('caf\u00e9', 'cafe\u0301'):
        path.write_text(f' {written} \n', encoding='utf-8')
        assert read_list(path) == read_csv(path)[0] == ['caf\u00e9']
        assert one_form(written) == 'caf\u00e9'
        (tmp_path/f' {written} .jpg').touch()
    assert [*files_by_stem(tmp_path, ('.jpg',))] == ['caf\u00e9']
    assert len(files_by_stem(tmp_path, ('.jpg',))['caf\u00e9']) == 2


def test_read_csv(tmp_path):
    path = tmp_path/'tags.csv'
    path.write_bytes(b'a, b\r"c, d","e ""f"""\r\r')
    assert read_csv(path) == [['a', 'b'], ['c, d', 'e "f"'], []]
    path.write_text('a\t"b\tc"\n')
    assert read_csv(path, '\t') == [['a', 'b\tc']]
    path.write_text('a,"b\nc,d\n')
    with pytest.raises(InputError, match='tags.csv: the table is broken .*Save it again as CSV'):
        read_csv(path)


# JSON

def test_json_comes_back(tmp_path):
    content = {'miou': .1 + .2, 'classes': ['caf\u00e9'], 'none': None}
    write_json(tmp_path/'a.json', content)
    assert read_json(tmp_path/'a.json') == content
    with pytest.raises(TypeError):
        write_json(tmp_path/'a.json', {'a': {1, 2}})
    assert read_json(tmp_path/'a.json') == content
    assert os.listdir(tmp_path) == ['a.json']


def test_json_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match='a.json: there is no such file. Name the folder of a run'):
        read_json(tmp_path/'a.json')
    for content in (b'', b'{"a": 1', b'\xff\xfe'):
        (tmp_path/'a.json').write_bytes(content)
        with pytest.raises(InputError, match='a.json: the file cannot be read .*Put it back from'):
            read_json(tmp_path/'a.json')
    with pytest.raises(InputError, match='the file cannot be read'):
        read_json(tmp_path)


# Folders

def test_files_by_stem(tmp_path):
    for name in ('b.PNG', 'b.jpg', '.hidden.jpg', 'a.txt'):
        (tmp_path/name).touch()
    found = files_by_stem(tmp_path, ('.jpg', '.png'))
    assert found == {'b': [tmp_path/'b.PNG', tmp_path/'b.jpg']}
    assert files_by_stem(tmp_path/'b.jpg', ('.jpg',)) == {}   # no folder
