"""Whatever a checkpoint holds, reading and loading give a message of this project, or work."""
import io
import zipfile
from pathlib import Path

import pytest
import torch

from tests.hostile_files import write_zip
from visattn_dense.backbones import CSWin
from visattn_dense.checkpoints import load_pretrained, read_checkpoint
from visattn_dense.errors import UserError

pytest.importorskip('hypothesis')
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

ARCH = dict(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(2, 2, 4, 4), stripe_widths=(1, 2, 7, 7))
MODEL = CSWin(ARCH)
STATE = MODEL.state_dict()
MANY = settings(max_examples=150, deadline=None, derandomize=True,
                suppress_health_check=[HealthCheck.function_scoped_fixture])

scalars = (st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
           | st.binary(max_size=8))
tensors = st.sampled_from([
    torch.zeros(0), torch.tensor(1.), torch.full((8,), torch.nan),
    torch.zeros(2, 3, dtype=torch.int8), torch.ones(8, dtype=torch.bfloat16),
    torch.zeros(1).expand(1000), torch.arange(9)[::2], torch.zeros(3, dtype=torch.complex64),
    torch.nn.Parameter(torch.ones(8))])
keys = st.text(max_size=8) | st.sampled_from(
    ['state_dict', 'model', 'meta', 'state_dict_ema', 'module', *list(STATE)[:4]])
values = st.recursive(scalars | tensors, lambda inner: (
    st.lists(inner, max_size=4) | st.dictionaries(keys | scalars, inner, max_size=4)
    | st.tuples(inner, inner)), max_leaves=12)


def load(path: Path) -> None:
    """Load into a backbone; after an error it is as it was."""
    model = CSWin(ARCH)
    model.load_state_dict(STATE)
    try:
        load_pretrained(model, path)
    except UserError:
        assert all(torch.equal(value, STATE[name]) for name, value in model.state_dict().items())
    else:
        assert all(value.isfinite().all() for value in model.state_dict().values())


@MANY
@given(values)
def test_any_contents(contents):
    path = Path(load.folder) / 'x.pth'
    torch.save(contents, path)
    load(path)


@MANY
@given(st.dictionaries(st.sampled_from(list(STATE)), values, max_size=6),
       st.dictionaries(keys | scalars, values, max_size=3))
def test_any_value_at_any_place_of_the_right_contents(changed, beside):
    path = Path(load.folder) / 'x.pth'
    torch.save({**beside, 'state_dict': {**STATE, **changed}}, path)
    load(path)


@MANY
@given(st.data())
def test_any_bytes_in_the_pickle_of_a_file_with_right_checksums(data):
    whole, records = _parts()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        kind = data.draw(st.sampled_from(['change', 'insert', 'cut']))
        if kind == 'change':
            damaged[at] = data.draw(st.integers(0, 255))
        elif kind == 'insert':
            damaged[at:at] = data.draw(st.binary(min_size=1, max_size=6))
        else:
            del damaged[at:at + data.draw(st.integers(1, 9))]
    path = Path(load.folder) / 'x.pth'
    write_zip(path, bytes(damaged), records)
    load(path)


@MANY
@given(st.binary(max_size=400))
def test_any_bytes_as_a_file(content):
    path = Path(load.folder) / 'x.pth'
    for begin in (b'', b'\x80\x02', b'PK\x03\x04', len(content).to_bytes(8, 'little') + b'{'):
        path.write_bytes(begin + content)
        with pytest.raises(UserError):
            read_checkpoint(path)


def _parts() -> tuple[bytes, dict[str, bytes]]:
    buffer = io.BytesIO()
    torch.save({'state_dict': STATE, 'meta': {'epoch': 3}}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        found = {name.partition('/')[2]: archive.read(name) for name in archive.namelist()}
    return found['data.pkl'], {name.removeprefix('data/'): content
                               for name, content in found.items() if name.startswith('data/')}


@pytest.fixture(autouse=True)
def folder(tmp_path):
    """Hypothesis calls a test many times within one fixture."""
    load.folder = tmp_path
