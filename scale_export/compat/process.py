"""Attributes, log levels and warnings that are changed around a call and put back after it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def replaced(owner: object, **values: object) -> Iterator[None]:
    """Give a module or class other attributes; those of its own come back, and others that it had not are taken away.

    Args:
        owner: what is changed within, and is as it was after.
        values: attribute → what it is within.
    """
    own = {name: vars(owner)[name] for name in values if name in vars(owner)}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name in values:
            if name in own:
                setattr(owner, name, own[name])
            elif name in vars(owner):
                delattr(owner, name)


@contextmanager
def quiet(*loggers: str, level: int = logging.ERROR) -> Iterator[None]:
    """Nothing below ``level`` from these loggers, and no warnings: what a user can't act on."""
    levels = {logger: logger.level for logger in map(logging.getLogger, loggers)}
    try:
        for logger in levels:
            logger.setLevel(level)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, before in levels.items():
            logger.setLevel(before)
