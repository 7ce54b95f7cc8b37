"""The suite runner's own arithmetic: what cmocka's versions print is counted alike."""
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from run import count_cmocka  # noqa: E402

# As cmocka 1.1.5 (Debian 12) and 1.1.7 (Debian 13) print them.
SKIPPED_ALL = """[==========] {group}Running 1 test(s).
[ RUN      ] t_skip
[  SKIPPED ] t_skip
[==========] {group}1 test(s) run.
[  PASSED  ] 0 test(s).
[  SKIPPED ] {group}1 test(s), listed below:
[  SKIPPED ] t_skip

 1 SKIPPED TEST(S)
"""
MIXED = """[ RUN      ] t_ok
[       OK ] t_ok
[  FAILED  ] t_bad
[==========] {group}34 test(s) run.
[  PASSED  ] 31 test(s).
[  SKIPPED ] {group}2 test(s), listed below:
[  SKIPPED ] t_skip
[  SKIPPED ] t_skip_12 test(s)
[  FAILED  ] {group}1 test(s), listed below:
[  FAILED  ] t_bad

 1 FAILED TEST(S)
"""


@pytest.mark.parametrize("group", ["", "tests: ", "a name: with a colon: "])
def test_run_counts_what_each_cmocka_prints(group):
    assert count_cmocka(SKIPPED_ALL.format(group=group)) == (0, 0, 1)
    assert count_cmocka(MIXED.format(group=group)) == (31, 1, 2)
    assert count_cmocka(SKIPPED_ALL.format(group=group) + MIXED.format(group=group)) == (31, 1, 3)
    assert count_cmocka("nothing at all") == (0, 0, 0)
