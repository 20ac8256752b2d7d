"""Files of codes: the name of each image, then mean and log-variance of its q(z|x)."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def _write_npz(
    path: Path, names: list[str], mean: "np.ndarray", log_variance: "np.ndarray"
) -> None:
    import numpy as np

    with path.open("wb") as file:  # a path would be given the ending .npz
        np.savez(file, names=np.array(names), mean=mean, log_variance=log_variance)


def _columns(names: list[str], mean: "np.ndarray", log_variance: "np.ndarray") -> dict[str, Any]:
    columns: dict[str, Any] = {"name": names}
    for title, values in (("mean", mean), ("log_variance", log_variance)):
        columns |= {f"{title}_{i}": values[:, i] for i in range(values.shape[1])}
    return columns


def _write_csv(
    path: Path, names: list[str], mean: "np.ndarray", log_variance: "np.ndarray"
) -> None:
    columns = _columns(names, mean, log_variance)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _write_parquet(
    path: Path, names: list[str], mean: "np.ndarray", log_variance: "np.ndarray"
) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(_columns(names, mean, log_variance)), path)


WRITERS = {".npz": _write_npz, ".csv": _write_csv, ".parquet": _write_parquet}
