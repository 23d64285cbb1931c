"""Everything about the package is said once, in settings.ini."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='])
parser.read(here/'settings.ini', encoding='utf-8')
settings = parser['DEFAULT']
onnx = settings['onnx_requirements'].split()
heic = settings['heic_requirements'].split()
lite = settings['lite_requirements'].split()
crf = settings['crf_requirements'].split()   # not in dev: it needs a C++ compiler
pythons = settings['python_versions'].split()

setup(
    name=settings['lib_name'],
    version=settings['version'],
    description=settings['description'],
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=settings['author'],
    author_email=settings['author_email'],
    url=settings['git_url'],
    license='Apache-2.0',
    keywords=settings['keywords'].split(),
    classifiers=[
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        *[f'Programming Language :: Python :: {number}' for number in pythons],
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=[settings['lib_name'], 'wsss_nb.data'],
    package_dir={'wsss_nb.data': 'data'},   # the published figures, for chapter 50
    package_data={'wsss_nb.data': ['*.csv']},
    python_requires=f">={settings['min_python']}",
    install_requires=settings['requirements'].split(),
    extras_require={'crf': crf, 'onnx': onnx, 'heic': heic, 'lite': lite,
                    'dev': settings['dev_requirements'].split() + onnx + heic},
    entry_points={'console_scripts': settings['console_scripts'].split(),
                  'nbdev': ['wsss_nb = wsss_nb._modidx:d']},
)
