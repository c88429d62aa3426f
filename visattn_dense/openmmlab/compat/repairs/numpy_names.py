"""Names that NumPy 1.24 removed and that OpenMMLab still uses, such as `np.float`."""

from __future__ import annotations

from types import ModuleType

#: What each removed name stood for. NumPy 2 has `bool` and `long` again, as types of its own.
_REMOVED = {'float': float, 'bool': bool, 'int': int, 'object': object, 'str': str,
            'complex': complex, 'long': int}


def give_removed_names(module: ModuleType) -> None:
    """Let `np` in this one module have the removed names; NumPy itself is left as it is.

    Args:
        module: one that has imported NumPy as `np`.
    """
    numpy = module.np
    names = ModuleType('numpy', f'NumPy as {module.__name__} knows it.')
    # A copy of everything, NumPy's own loader of late attributes included.
    vars(names).update({**_REMOVED, **vars(numpy)})
    module.np = names
