"""docs/models.md says what the code is."""
from pathlib import Path

import pytest

from benchmarks.model_table import PUBLISHED, measure_variant
from visattn_dense.registry import BACKBONES

TABLE = Path(__file__).resolve().parents[1] / 'docs' / 'models.md'


def rows() -> dict[tuple[str, str], list[str]]:
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith('| ')][2:]
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
    return {(row[0], row[1]): row[2:] for row in cells}


def test_every_variant_has_its_row():
    assert rows().keys() == {(family, arch) for family in BACKBONES
                             for arch in BACKBONES.get(family).archs}


@pytest.mark.parametrize('family, arch', [('CSWin', 'tiny'), ('BiFormer', 'small'),
                                          ('FLattenCSWin', 'tiny'), ('EfficientViT', 'b2'),
                                          ('T2TViT', '14')])
def test_rows_are_up_to_date(family, arch):
    found = measure_variant(family, arch)
    assert rows()[family, arch][:5] == [
        f'{found.backbone / 1e6:.1f}', f'{found.classifier / 1e6:.1f}',
        f'{PUBLISHED[family, arch][1]}', f'{found.macs[512] / 1e9:.1f}',
        f'{found.macs[1024] / 1e9:.1f}']


def test_counts_with_the_classifier_equal_the_published_ones():
    for key, (_, millions, _) in PUBLISHED.items():
        assert float(rows()[key][1]) == pytest.approx(millions, abs=.75), key


def test_operations_hold_the_attention():
    """Known counts at 512×512 with attention, in 10⁹."""
    known = {('CSWin', 'tiny'): 24.6, ('CSWin', 'small'): 38.7, ('BiFormer', 'small'): 27.7,
             ('EfficientViT', 'b2'): 8.0, ('EfficientViT', 'l2'): 35.8}
    for key, macs in known.items():
        assert float(rows()[key][3]) == pytest.approx(macs, abs=.06), key
