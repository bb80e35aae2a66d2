"""The matrix: what this was tried on, in which versions, and how that went.

A test is of a row by ``pytest.mark.matrix(row, *distributions)``. At the end of a run the rows of its tests are printed.
With ``--matrix`` every row of `ROWS` must have tests, all of which have run and passed; else the run fails, so that nothing
is left out in silence: no test that is skipped, no row that has gone, no name that is spelled in two ways.
"""

import platform
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import pytest

FRAMEWORKS = ("Starlette", "FastAPI", "Litestar", "Quart", "Django", "Channels", "asgiref", "MCP")
SERVERS = (
    "uvicorn, asyncio, h11, wsproto",
    "uvicorn, asyncio, h11, websockets",
    "uvicorn, asyncio, httptools, websockets-sansio",
    "uvicorn, uvloop, h11, wsproto",
    "uvicorn, uvloop, httptools, websockets",
    "uvicorn, uvloop, httptools, websockets-sansio",
    "uvicorn, 2 workers, Redis",
    "hypercorn, HTTP/1.1",
    "hypercorn, HTTP/2",
    "hypercorn, 2 workers, Redis",
    "granian, asyncio, HTTP/1.1",
    "granian, uvloop, HTTP/2",
    "granian, 2 workers, Redis",
    "daphne",
    "daphne, 2 processes, Redis",
)
BROWSERS = ("Chromium",)
ROWS = FRAMEWORKS + SERVERS + BROWSERS
"""All that there must be."""


class Row:
    """What is known of a row."""

    def __init__(self) -> None:
        self.distributions: dict[str, None] = {}
        """Their names, in order."""
        self.tests: set[str] = set()
        self.outcomes: dict[str, str] = {}
        """Of each test that has ended."""

    def versions(self) -> str:
        """As they are installed."""
        return ", ".join(f"{name} {_version(name) or 'ABSENT'}" for name in self.distributions)

    def problems(self) -> list[str]:
        """What keeps it from having been shown."""
        counts = Counter(self.outcomes.values())
        left = len(self.tests) - len(self.outcomes)
        return [
            *([] if self.tests else ["has no tests"]),
            *(f"{counts[outcome]} {outcome}" for outcome in ("failed", "skipped") if counts[outcome]),
            *([f"{left} not run"] if left else []),
            *(f"{name} is not installed" for name in self.distributions if _version(name) is None),
        ]


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


class _Line(NamedTuple):
    row: str
    passed: str
    failed: str
    skipped: str
    versions: str


class Matrix:
    """A plugin that collects the rows of a run.

    Args:
        rows: the names that there must be.
        demanded: whether the run fails where a row was not shown, or is not one of these.
    """

    def __init__(self, rows: tuple[str, ...], *, demanded: bool) -> None:
        self._expected = rows
        self._demanded = demanded
        self._rows: dict[str, Row] = {name: Row() for name in rows} if demanded else {}
        self._rows_of: dict[str, list[Row]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note the rows of what is to run."""
        for item in session.items:
            for mark in item.iter_markers("matrix"):
                name, *distributions = mark.args
                row = self._rows.setdefault(name, Row())
                row.distributions |= dict.fromkeys(distributions)
                row.tests.add(item.nodeid)
                self._rows_of.setdefault(item.nodeid, []).append(row)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how a test, its setup or its teardown has ended: the worst of these counts."""
        for row in self._rows_of.get(report.nodeid, ()):
            if report.failed or (report.skipped and row.outcomes.get(report.nodeid) != "failed"):
                row.outcomes[report.nodeid] = report.outcome
            elif report.when == "call":
                row.outcomes.setdefault(report.nodeid, "passed")

    def problems(self) -> list[str]:
        """What is missing, by row."""
        unknown = [f"{name}: is not listed in tests/matrix.py" for name in self._rows if name not in self._expected]
        return [f"{name}: {problem}" for name, row in self._rows.items() for problem in row.problems()] + unknown

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Let the run fail where rows are demanded and were not shown."""
        if self._demanded and session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED if self.problems() else pytest.ExitCode.OK

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table."""
        if not self._rows:
            return
        write = terminalreporter.write_line
        terminalreporter.section(f"matrix on {platform.python_implementation()} {platform.python_version()}")
        lines = [_Line("row", "passed", "failed", "skipped", "versions")]
        for name, row in self._rows.items():
            counts = Counter(row.outcomes.values())
            numbers = [str(counts[outcome]) for outcome in ("passed", "failed", "skipped")]
            lines.append(_Line(name, *numbers, row.versions() if row.tests else "NOT SHOWN"))
        first = max(len(line.row) for line in lines)
        for line in lines:
            numbers = [f"{number:>7}" for number in (line.passed, line.failed, line.skipped)]
            write(f"{line.row:<{first}} {' '.join(numbers)}  {line.versions}")
        if self._demanded:
            problems = self.problems()
            for problem in problems:
                write(f"NOT SHOWN  {problem}", red=True)
            shown = sum(not row.problems() for row in self._rows.values())
            write(f"{shown} of {len(self._rows)} rows shown", green=not problems, red=bool(problems))


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that demands all rows."""
    parser.addoption(
        "--matrix", action="store_true", help="fail unless every row of the matrix is there and has passed"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Collect the rows of this run."""
    config.pluginmanager.register(Matrix(ROWS, demanded=config.getoption("matrix")), "asgi_context matrix")
