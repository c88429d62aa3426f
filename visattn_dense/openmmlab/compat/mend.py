"""One mend: what is wrong upstream, for which versions, and how it is put right."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from types import ModuleType

from visattn_dense.openmmlab.imports import when_imported


@dataclass
class Mend:
    """A repair of somebody else's module, applied once that module has been imported.

    Attributes:
        name: short, unique.
        what: one sentence for the user: what would go wrong, and what happens instead.
        issue: the address of the discussion upstream.
        versions: for each distribution, the range of versions (PEP 440) that need the mend. Names
            separated by '|' are names of one package.
        module: the mend waits for the import of this module.
        repair: called with the module. Returns a sentence if there was nothing to do.
        needed: a further condition, checked first.
    """

    name: str
    what: str
    issue: str
    versions: dict[str, str]
    module: str
    repair: Callable[[ModuleType], str | None]
    needed: Callable[[], bool] = field(default=lambda: True)
    _status: str = 'not armed'

    def arm(self) -> None:
        """Wait for the module; a second call does nothing."""
        if self._status != 'not armed':
            return
        self._status = f'waits for {self.module}'
        when_imported(self.module, self._apply)

    def status(self) -> str:
        """'mended', 'not needed: why', 'failed: why', 'waits for MODULE' or 'not armed'."""
        return self._status

    def _apply(self, module: ModuleType) -> None:
        reason = self._outside()
        if reason:
            self._status = f'not needed: {reason}'
            return
        try:
            reason = self.repair(module)
        except Exception as error:
            # The package may well work without the mend: say so, and let the import go on.
            self._status = f'failed: {type(error).__name__}: {error}'
            warnings.warn(f"visattn_dense could not mend '{self.name}' ({self.what}): {error!r}",
                          RuntimeWarning, stacklevel=2)
            return
        self._status = f'not needed: {reason}' if reason else 'mended'

    def _outside(self) -> str:
        """Why the installed versions do not need this mend; empty if they need it."""
        # Slow to import and not needed before something is mended.
        from packaging.specifiers import SpecifierSet

        if not self.needed():
            return 'the problem does not exist here'
        for names, wanted in self.versions.items():
            installed = installed_version(*names.split('|'))
            if installed is None:
                return f'{names} is not installed'
            if not SpecifierSet(wanted, prereleases=True).contains(installed.split('+')[0]):
                return f'{names} {installed} is outside {wanted}'
        return ''


def installed_version(*names: str) -> str | None:
    """The version of the first of these distributions that is installed."""
    for name in names:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        # A damaged installation has metadata without a version.
        if version:
            return version
    return None
