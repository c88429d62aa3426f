"""One registration serves everybody, whichever package is imported first."""
import subprocess
import sys
import textwrap

import pytest

from visattn_dense.errors import UserError
from visattn_dense.registry import BACKBONES, Registry


def run_python(code: str) -> str:
    """The output of a fresh interpreter that runs `code` without an error."""
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize('imports', [
    'import visattn_dense, mmengine.registry',
    'import mmengine.registry, visattn_dense',
    'import mmseg.registry, visattn_dense',
    'from visattn_dense.registry import BACKBONES; import mmengine.registry',
])
def test_mmengine_knows_the_backbones_in_any_order_of_import(imports):
    code = f"""
        {imports}
        from mmengine.registry import MODELS
        print(type(MODELS.build(dict(type='CSWin', arch='tiny'))).__module__)
    """
    assert run_python(code) == 'visattn_dense.backbones.cswin'


@pytest.mark.parametrize('project', ['mmseg', 'mmdet'])
def test_a_project_finds_them_from_its_own_scope(project):
    code = f"""
        import visattn_dense
        from {project}.registry import MODELS
        print(MODELS.build(dict(type='CSWin', arch='tiny', out_indices=(1,))).strides)
    """
    assert run_python(code) == '(8,)'


def test_the_registry_alone_knows_the_backbones():
    assert run_python("""
        from visattn_dense.registry import BACKBONES
        print('CSWin' in BACKBONES, BACKBONES.get('CSWin').__name__)
    """) == 'True CSWin'


def test_importing_the_package_is_cheap():
    code = """
        import sys, visattn_dense
        print(sorted({'torch', 'mmengine', 'mmcv', 'timm'} & sys.modules.keys()))
    """
    assert run_python(code) == '[]'


def test_a_wrong_name_gives_the_near_one():
    with pytest.raises(KeyError, match='CSWin'):
        BACKBONES.build(dict(type='CsWinTransformer'))


def test_a_wrong_name_gives_the_near_one_in_mmseg():
    from mmseg.registry import MODELS

    with pytest.raises(KeyError, match='CSWin'):
        MODELS.build(dict(type='CSWinn', arch='tiny'))


def test_a_config_without_type_is_refused():
    with pytest.raises(UserError, match='needs a type'):
        BACKBONES.build(dict(arch='tiny'))


def test_a_name_is_given_once():
    registry = Registry('thing')

    @registry.register_module()
    class VisattnTestThing:
        pass

    registry.register_module(module=VisattnTestThing)            # the same again: nothing happens
    with pytest.raises(KeyError, match='is taken by'):
        registry.register_module('VisattnTestThing', module=int)
    assert registry.build(dict(type='VisattnTestThing')).__class__ is VisattnTestThing
    assert list(registry) == ['VisattnTestThing']
