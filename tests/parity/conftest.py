"""Prints, after the tests beside other libraries, the table of the errors that they saw."""

from tests.parity import report


def pytest_terminal_summary(terminalreporter):
    outcomes = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    rows = [row for outcome in outcomes for name, row in outcome.user_properties if name == "row"]
    if rows:
        terminalreporter.write_line("")
        terminalreporter.write_line(report.HEADER)
        for row in sorted(rows):
            terminalreporter.write_line(row)
