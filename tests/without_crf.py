"Says which chapters `nbdev_test` has to leave out where there is no dense CRF."
import json
import re
import sys
from pathlib import Path

from wsss_nb.crf import ABSENT, has_crf

NAMES = ('refine_labels', 'refine_probabilities', 'mean_field', 'softmax_energies', 'DenseCRF',
         'MaskCRF', 'IRN', 'Affinity', 'StaticSSDD', 'DynamicSSDD')
COMPUTES = re.compile(rf'\b({"|".join(NAMES)})\(|crf=True')
NOT_RUN = re.compile(r'#\| *(eval: *false|export)')


def computes_crf(notebook: Path) -> bool:
    "Whether a cell that is run on the page computes one."
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    code = [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code']
    return any(COMPUTES.search(text) for text in code if not NOT_RUN.search(text))


def main() -> None:
    if has_crf():
        return
    notebooks = sorted((Path(__file__).parents[1]/'nbs').glob('*.ipynb'))
    left_out = [notebook.name for notebook in notebooks if computes_crf(notebook)]
    print(f'{ABSENT}. Left out: {", ".join(left_out)}', file=sys.stderr)
    print(f"--skip_file_re {'|'.join(left_out)}")


if __name__ == '__main__':
    main()
