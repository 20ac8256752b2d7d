"""The trained model as MLflow reads it: this file is stored as it is, and run when it is loaded.

MLflow's "models from code": nothing is pickled, and the weights beside it are safetensors.
"""

from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

OUTPUTS = ("reconstructions", "latents")


class Served(PythonModel):  # type: ignore[misc] # (mlflow is not followed)
    """``predict``: images as uint8 (N, H, W, C) to reconstructions in [0, 1], or to codes."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the weights that lie beside this file."""
        from scorevae import ScoreVAE

        self._model = ScoreVAE.load(context.artifacts["weights"])

    # MLflow takes a type of model_input for the signature, which is given, and warns of this one.
    def predict(  # type: ignore[no-untyped-def]
        self,
        context: PythonModelContext,
        model_input,  # noqa: ANN001
        params: dict[str, Any] | None = None,
    ) -> np.ndarray:
        """Reconstructions float32 (N, H, W, C), or the means of q(z|x) (N, latent).

        ``params``: ``output``, one of OUTPUTS, and ``seed``, of what is drawn.
        """
        del context
        wanted: dict[str, Any] = {"output": OUTPUTS[0], "seed": 0} | (params or {})
        if wanted["output"] not in OUTPUTS:
            raise ValueError(f"output: got {wanted['output']!r}; choose {' or '.join(OUTPUTS)}")
        images = np.asarray(model_input)
        if wanted["output"] == "latents":
            return np.asarray(self._model.encode(images).mean)
        found = self._model.reconstruct(images, seed=int(wanted["seed"]))
        return np.asarray(found.permute(0, 2, 3, 1).contiguous())


set_model(Served())
