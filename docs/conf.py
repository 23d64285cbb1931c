"Sphinx's settings. `make docs` copies this file beside the sources that prepare.py makes."
import importlib.util
from pathlib import Path

project, author, html_title = 'wsss_nb', 'wsss_nb contributors', 'wsss_nb'
copyright = '2026 onwards, wsss_nb contributors'
extensions = ['myst_nb', 'sphinx.ext.mathjax']
html_theme = 'furo'
html_static_path = ['_static', str(Path(importlib.util.find_spec('sphinx-mathjax-offline').origin).parent/'static'/'mathjax'/'tex-svg-full.js')]
html_css_files = ['style.css']
mathjax_path = 'tex-svg-full.js'   # one file with every formula's glyphs: nothing is fetched
html_copy_source = html_show_sphinx = False
nb_execution_mode = 'off'          # the stored outputs are shown
myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence', 'fieldlist', 'deflist']
myst_heading_anchors = 4
python_maximum_signature_line_length = 80
add_module_names = False
toc_object_entries_show_parents = 'hide'
highlight_language = 'text'          # commands; Python is said where it is
pygments_style, pygments_dark_style = 'tango', 'monokai'
nb_render_markdown_format = 'myst'  # with tables
nb_code_prompt_show, nb_code_prompt_hide = 'Imports', 'Imports'   # nothing else is folded
