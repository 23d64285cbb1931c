"Sphinx's settings. `make docs` copies this file beside the sources that prepare.py makes."
import importlib.util
from pathlib import Path

mathjax = Path(importlib.util.find_spec('sphinx-mathjax-offline').origin).parent

project = 'wsss_nb'
author = 'wsss_nb contributors'
copyright = '2026 onwards, wsss_nb contributors'
html_title = 'wsss_nb'
extensions = ['myst_nb', 'sphinx.ext.mathjax']

html_theme = 'furo'
html_static_path = ['_static', str(mathjax/'static'/'mathjax'/'tex-svg-full.js')]
html_css_files = ['style.css']
html_copy_source = False
html_show_sphinx = False
mathjax_path = 'tex-svg-full.js'         # one file with every formula's glyphs: nothing is fetched
toc_object_entries_show_parents = 'hide'

nb_execution_mode = 'off'                # the stored outputs are shown
nb_render_markdown_format = 'myst'       # with tables
nb_code_prompt_show = 'Imports'          # nothing else is folded
nb_code_prompt_hide = 'Imports'
myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence', 'fieldlist', 'deflist']
myst_heading_anchors = 4

add_module_names = False
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
highlight_language = 'text'              # commands; Python is said where it is
pygments_style = 'tango'
pygments_dark_style = 'monokai'
