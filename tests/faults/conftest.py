from tests.language.conftest import policy
from tests.support.processes import KILLS

__all__ = ["policy"]


def pytest_terminal_summary(terminalreporter, config):
    """The kill points of the session, if there were any."""
    runs = config.stash.get(KILLS, [])
    if runs:
        terminalreporter.section(f"{sum(len(met) for _, met, _ in runs)} kill points")
    for name, met, missed in runs:
        terminalreporter.write_line(f"{name}; {len(met)} kill points")
        for point in met:
            terminalreporter.write_line(f"  {point}")
        for point in missed:
            terminalreporter.write_line(f"  {point} (missed: it was over)")
