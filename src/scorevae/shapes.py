"""The shapes that tensors and arrays have at boundaries, each named once.

A name in capitals of one definition is bound within a call: two arguments of type ``Images`` hold
equally many images. ``_`` binds nothing.
"""

from jaxtyping import Float, Int64, UInt8
from numpy import ndarray
from torch import Tensor

Images = Float[Tensor, "batch channel height width"]
AnyImages = Float[Tensor, "_ channel height width"]  # sets of any size side by side
Groups = Float[Tensor, "batch member channel height width"]  # several images for each of a batch
Latents = Float[Tensor, "batch latent"]
PerSample = Float[Tensor, " batch"]

Data = Float[Tensor, "batch *shape"]  # what a forward process runs on: images, or anything else
Times = Float[Tensor, " batch"] | Float[Tensor, ""]

StoredImages = UInt8[ndarray, "_ height width channel"]
StoredBatch = UInt8[Tensor, "batch height width channel"]
Labels = Int64[ndarray, " count"] | Int64[ndarray, "count attribute"]
