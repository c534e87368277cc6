"""The `persyn` command: what DVC cannot show. Each command imports what it needs, so that `--help` is quick."""

from typing import Any

import typer
from typer.core import TyperGroup

from persyn.cli.diff import diff
from persyn.cli.export import export
from persyn.cli.generate import generate
from persyn.cli.new import new
from persyn.cli.params import params
from persyn.cli.pin import pin
from persyn.cli.plan import ledger, plan
from persyn.cli.report import report
from persyn.cli.show import show
from persyn.cli.store import store
from persyn.errors import ending_in_one_line, stopping_in_one_line


class Commands(TyperGroup):
    """The commands. Typer alone would end silently, and with 130 after SIGTERM too."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with stopping_in_one_line():
            return super().invoke(ctx)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="PerSyn: what DVC cannot show. `dvc repro` runs all.",
)
for command in (new, params, pin, plan, generate, ledger, report, show, diff, export):
    app.command()(command)
app.add_typer(store, name="store")


def main() -> None:
    """The console script."""
    with ending_in_one_line():
        app()
