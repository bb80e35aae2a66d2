"""The table of what this was tried on: it leaves nothing out in silence."""

import platform
from importlib.metadata import version

import pytest

pytest_plugins = ["pytester"]

GOOD = """
import pytest

@pytest.mark.matrix("Good", "pytest", "pluggy")
@pytest.mark.parametrize("number", [1, 2])
def test_good(number): ...
"""


@pytest.fixture(autouse=True)
def configured(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeini(
        """
        [pytest]
        addopts = --strict-markers -p no:cacheprovider
        markers = matrix
        """
    )


def ran(pytester: pytest.Pytester, source: str, *rows: str, demanded: bool = True) -> tuple[int, list[str]]:
    """How a run ends whose matrix must have these rows, and what it prints of it."""
    pytester.makeconftest(
        "from matrix import Matrix\n"
        "def pytest_configure(config):\n"
        f"    config.pluginmanager.register(Matrix({rows!r}, demanded={demanded}))\n"
    )
    pytester.makepyfile(source)
    result = pytester.runpytest_inprocess("-q")
    lines = [" ".join(line.split()) for line in result.outlines]
    begins = [number for number, line in enumerate(lines) if " matrix on " in line]
    return int(result.ret), lines[begins[0] :] if begins else []


def test_a_row_tells_its_tests_and_the_versions_of_what_they_tried(pytester: pytest.Pytester) -> None:
    status, lines = ran(pytester, GOOD, "Good")

    assert status == pytest.ExitCode.OK
    assert platform.python_version() in lines[0]
    assert f"Good 2 0 0 pytest {version('pytest')}, pluggy {version('pluggy')}" in lines
    assert "1 of 1 rows shown" in lines


def test_a_row_that_has_no_tests_fails_the_run(pytester: pytest.Pytester) -> None:
    status, lines = ran(pytester, GOOD, "Good", "Gone")

    assert status == pytest.ExitCode.TESTS_FAILED
    assert "Gone 0 0 0 NOT SHOWN" in lines
    assert "NOT SHOWN Gone: has no tests" in lines
    assert "1 of 2 rows shown" in lines


def test_where_no_test_is_left_the_run_fails(pytester: pytest.Pytester) -> None:
    status, lines = ran(pytester, "", "Gone")

    assert status == pytest.ExitCode.TESTS_FAILED
    assert "NOT SHOWN Gone: has no tests" in lines


def test_a_module_that_is_skipped_as_a_whole_takes_its_row_with_it(pytester: pytest.Pytester) -> None:
    status, lines = ran(pytester, "import pytest\npytest.importorskip('no_such_module')\n" + GOOD, "Good")

    assert status == pytest.ExitCode.TESTS_FAILED
    assert "NOT SHOWN Good: has no tests" in lines


@pytest.mark.parametrize(
    "skipping",
    [
        "@pytest.mark.skip",
        "@pytest.mark.skipif(True, reason='no reason')",
        "@pytest.mark.xfail(run=False, reason='no reason')",
        "@pytest.mark.usefixtures('skipping')",
    ],
)
def test_a_test_that_is_skipped_fails_the_run(pytester: pytest.Pytester, skipping: str) -> None:
    source = f"""
    import pytest

    @pytest.fixture
    def skipping():
        pytest.skip()

    @pytest.mark.matrix("Row", "pytest")
    def test_good(): ...

    {skipping}
    @pytest.mark.matrix("Row", "pytest")
    def test_skipped(): ...
    """

    status, lines = ran(pytester, source, "Row")

    assert status == pytest.ExitCode.TESTS_FAILED
    assert f"Row 1 0 1 pytest {version('pytest')}" in lines
    assert "NOT SHOWN Row: 1 skipped" in lines


def test_a_test_that_fails_in_the_end_counts_as_failed_alone(pytester: pytest.Pytester) -> None:
    source = """
    import pytest

    @pytest.fixture
    def failing():
        yield
        assert False

    @pytest.mark.matrix("Row", "pytest")
    def test_failing(failing): ...
    """

    status, lines = ran(pytester, source, "Row")

    assert status == pytest.ExitCode.TESTS_FAILED
    assert f"Row 0 1 0 pytest {version('pytest')}" in lines
    assert "NOT SHOWN Row: 1 failed" in lines


def test_a_test_that_was_not_reached_fails_the_run(pytester: pytest.Pytester) -> None:
    source = """
    import pytest

    def test_first():
        pytest.exit("enough", 0)

    @pytest.mark.matrix("Row", "pytest")
    def test_second(): ...
    """

    status, lines = ran(pytester, source, "Row")

    assert status == pytest.ExitCode.TESTS_FAILED
    assert "NOT SHOWN Row: 1 not run" in lines


def test_a_row_that_nobody_has_listed_fails_the_run(pytester: pytest.Pytester) -> None:
    status, lines = ran(pytester, GOOD)

    assert status == pytest.ExitCode.TESTS_FAILED
    assert "NOT SHOWN Good: is not listed in tests/matrix.py" in lines


def test_a_distribution_that_is_not_installed_fails_the_run(pytester: pytest.Pytester) -> None:
    status, lines = ran(pytester, GOOD.replace("pluggy", "no-such-distribution"), "Good")

    assert status == pytest.ExitCode.TESTS_FAILED
    assert f"Good 2 0 0 pytest {version('pytest')}, no-such-distribution ABSENT" in lines
    assert "NOT SHOWN Good: no-such-distribution is not installed" in lines


def test_a_test_can_be_of_several_rows(pytester: pytest.Pytester) -> None:
    status, lines = ran(pytester, GOOD + "\npytestmark = pytest.mark.matrix('All', 'pytest')\n", "Good", "All")

    assert status == pytest.ExitCode.OK
    assert f"All 2 0 0 pytest {version('pytest')}" in lines
    assert "2 of 2 rows shown" in lines


def test_where_it_is_not_demanded_only_what_has_run_is_told(pytester: pytest.Pytester) -> None:
    status, lines = ran(pytester, GOOD, "Good", "Gone", demanded=False)

    assert status == pytest.ExitCode.OK
    assert any(line.startswith("Good 2 0 0 ") for line in lines)
    assert not any("Gone" in line or "NOT SHOWN" in line for line in lines)


def test_without_rows_there_is_no_table(pytester: pytest.Pytester) -> None:
    assert ran(pytester, "def test_other(): ...", "Gone", demanded=False) == (pytest.ExitCode.OK, [])
