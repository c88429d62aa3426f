"""One file per mend: functions that take the module to repair. `compat.mends` lists them with
their reason, upstream issue and version range."""
