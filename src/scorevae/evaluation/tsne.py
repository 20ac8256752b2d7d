"""t-SNE in a process of its own: scikit-learn's code for it has ended processes by a signal.

python -m scorevae.evaluation.tsne PERPLEXITY SEED < vectors.npy > points.npy
"""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from jaxtyping import Float

from scorevae.errors import Unavailable

Vectors = Float[np.ndarray, "point feature"]
Points = Float[np.ndarray, "point 2"]
COMMAND = [sys.executable, "-m", "scorevae.evaluation.tsne"]


def tsne(vectors: Vectors, *, perplexity: float, seed: int) -> Points:
    """t-SNE of vectors in the plane (van der Maaten & Hinton 2008), started from their PCA.

    Raises:
        Unavailable: they have no plane to start from, or the process failed or was killed.
    """
    if vectors.shape[1] < 2:
        raise Unavailable(f"embedding: vectors of {vectors.shape[1]} number; 2 are the least")
    if (vectors == vectors[:1]).all():
        raise Unavailable("embedding: all vectors are equal")
    file = io.BytesIO()
    np.save(file, vectors)
    source = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(
        [*COMMAND, repr(perplexity), str(seed)],
        input=file.getvalue(),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise Unavailable(f"embedding: the process of t-SNE was ended by {name}")
    if done.returncode > 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise Unavailable(f"embedding: t-SNE failed ({' '.join(last)[:200]})")
    points: Points = np.load(io.BytesIO(done.stdout), allow_pickle=False)
    return points


def _main(perplexity: str, seed: str) -> None:
    from sklearn.manifold import TSNE

    vectors = np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False)
    method = TSNE(perplexity=float(perplexity), init="pca", random_state=int(seed))
    np.save(sys.stdout.buffer, method.fit_transform(vectors))


if __name__ == "__main__":
    _main(*sys.argv[1:])
