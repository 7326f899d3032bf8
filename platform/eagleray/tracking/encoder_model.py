"""The encoder as MLflow loads it: MLflow copies this file next to the weights.

It needs mlflow, torch, numpy and Pillow, and nothing of Eagleray.

    encoder = mlflow.pyfunc.load_model("models:/NAME@best")
    features = encoder.predict(["photo.png", ...])  # float32 [N, dim]
"""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from PIL import Image


class ImageEncoder(PythonModel):
    """Turns images into features."""

    def load_context(self, context: Any) -> None:
        """Load the network and the functions that read images."""
        script = Path(context.artifacts["loader"])
        self.functions = runpy.run_path(str(script))
        self.encoder = self.functions["load"](script.parent)

    # Of all annotations MLflow leaves that of an array alone; it neither converts nor refuses other input for it.
    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> Any:
        """Encode images: float32 [N, dim].

        Args:
            context: of MLflow, unused.
            model_input: paths of image files (a list, a series or the first column of a table), or an array uint8
                [N, H, W, C] or [N, H, W].
            params: unused.
        """
        given = np.asarray(model_input)  # a table of pandas has its paths in its first column
        size = self.functions["BATCH"]
        with torch.no_grad():
            parts = [self.encoder(self._prepared(given[start : start + size])) for start in range(0, len(given), size)]
        return torch.cat(parts).numpy()

    def _prepared(self, given: np.ndarray) -> torch.Tensor:
        if given.dtype == np.uint8:
            return self.functions["prepare"]([Image.fromarray(each.squeeze()) for each in given])
        return self.functions["read"]([str(path) for path in given.reshape(len(given), -1)[:, 0]])


set_model(ImageEncoder())
