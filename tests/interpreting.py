"""Triton's interpreter, without what it does again and again.

For every call of one jit function by another, Triton's interpreter replaces the members of
triton.language, and never puts them back. The replacement takes milliseconds, many times as long as
the call. Once for each module is enough. It also checks every sum and product of integers for
overflow, in 64 bits.
"""
import os

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'


def interpret_quickly() -> None:
    """Speed up the interpreter for the rest of this process, if it is on and of a known kind."""
    if not INTERPRETED:
        return
    from triton.runtime import interpreter
    replace = getattr(interpreter, '_patch_lang', None)
    if replace is None:
        return
    done = set()

    def call(self, *args, **kwargs):
        module = self.fn.__globals__['__name__']
        if module not in done:
            done.add(module)
            replace(self.fn)
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call
    object.__setattr__(interpreter.interpreter_builder.options, 'sanitize_overflow', False)
