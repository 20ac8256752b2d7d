"""``python -m scorevae.commands.ui``: MLflow's pages, at the runs of this repository.

MLflow opens an experiment on pages for language models; a word in the address selects the view
for trainings.
"""

import os
import sys

import click

from scorevae.runtime.runs import (
    database_is_absent,
    find_experiment,
    load_mlflow,
    server_errors,
    tracking_uri,
    without_password,
)

HOST = "127.0.0.1"  # this machine only: whoever reaches the pages may delete runs


@click.command(help=__doc__)
@click.option("--port", type=int, default=5000, show_default=True)
@click.option("--address-only", is_flag=True, help="print the address, start nothing")
def main(port: int, address_only: bool) -> None:
    """Print the address, then become MLflow's server, unless the runs are on one already."""
    uri = tracking_uri()
    remote = uri.startswith(("http://", "https://"))
    base = without_password(uri).rstrip("/") if remote else f"http://{HOST}:{port}"
    click.echo(f"open {base}/{page(uri)}")
    if remote or address_only:
        return
    command = [sys.executable, "-m", "mlflow", "ui", "--host", HOST, "--port", str(port)]
    sys.stdout.flush()
    os.execv(sys.executable, [*command, "--backend-store-uri", uri])


def page(uri: str) -> str:
    """The path of the experiment's runs in the view for trainings; of all where there is none."""
    load_mlflow()
    from mlflow import MlflowClient

    with server_errors(uri):
        absent = database_is_absent(uri)
        experiment = None if absent else find_experiment(MlflowClient(tracking_uri=uri))
    if experiment is None:
        click.echo("no run is recorded yet: `dvc repro` records the first")
        return "#/experiments"
    return f"#/experiments/{experiment}/runs?workflowType=machine_learning"


if __name__ == "__main__":
    main()
