"""Traces inside the Python interpreter."""

import builtins
import decimal
import json
import locale
import logging
import sys
import types

import report
import syllables
from traces.trace import TAG, Trace, changed


def _attribute(name, of):
    return Trace(name, lambda: hasattr(of, TAG), lambda: setattr(of, TAG, True))


def _set_precision():
    decimal.getcontext().prec = 7


def _set_locale():
    locale.setlocale(locale.LC_TIME, "C.UTF-8")


def _add_log_handler():
    handler = logging.NullHandler()
    handler.set_name(TAG)
    logging.getLogger().addHandler(handler)


TRACES = (
    _attribute("module_attribute", report),
    _attribute("imported_module", json),
    _attribute("builtins", builtins),
    _attribute("class_attribute", Trace),
    # Nobody leaves this one on purpose: the report's own cache does.
    Trace("function_cache", lambda: syllables.syllables.cache_info().currsize > 0, lambda: None),
    changed("sys_path", lambda: list(sys.path), lambda: sys.path.append(f"/{TAG}")),
    Trace(
        "sys_modules",
        lambda: TAG in sys.modules,
        lambda: sys.modules.update({TAG: types.ModuleType(TAG)}),
    ),
    changed("recursion_limit", sys.getrecursionlimit, lambda: sys.setrecursionlimit(5000)),
    changed("decimal_context", lambda: decimal.getcontext().prec, _set_precision),
    changed("locale", lambda: locale.setlocale(locale.LC_TIME), _set_locale),
    Trace(
        "log_handler",
        lambda: any(handler.get_name() == TAG for handler in logging.getLogger().handlers),
        _add_log_handler,
    ),
)
