"""Shared by all folders of Python tests."""
import pty

import pytest


@pytest.fixture
def terminal():
    """(leader, follower) of a new pseudo-terminal; a chroot without /dev/pts has none."""
    try:
        return pty.openpty()
    except OSError as problem:
        pytest.skip(f"no pseudo-terminals here: {problem}")
