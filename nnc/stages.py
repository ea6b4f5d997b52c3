"""The contracts on one page: what flows between the stages, who may import whom.  Read this first.

    checkpoint > tensor > plane - prediction > CTU > levels > words > unit > container      (encoder)
    checkpoint < tensor < plane + prediction       < levels < words < unit < container      (decoder)

| arrow | type | rule |
|---|---|---|
| tensor > plane | float32 (rows, columns), a view where possible; `split` says how | partition/planes.py |
| plane - prediction | float32 (rows, columns) from the tensor of that name in a reference, or none | prediction/, alignment.py |
| plane > coefficients | float32 (rows, columns), groups of columns in another basis | transform/, bases.py |
| columns - memory | float32; each column less what those before foretell, in a closed loop, or less a centre that is coded beside the plane | prediction/memory.py, centres.py, memories.py, centre_choice.py |
| plane > CTU | tiles of a Grid in raster order; each is one stream, decodable alone | partition/grid.py |
| CTU > CU | cells of 8 x 8 in a tree, int16 codes that are added to scale indices, or skipped | partition/tree.py, splitting/ |
| CTU > weights | float32 (n,) in steps, down the columns; uint8 (n,) scale indices 1..36 | rdo.gather |
| weights > levels | int32 (n,), |level| < 2^22 | a Search: scalar or trellis |
| points > levels | int32, numbers of centroids, a point of several weights each; no trellis | points.py, codebooks.py, cluster/ |
| tensor > outliers | positions and values of single weights, put back last of all | outliers.py, cluster/ |
| tables of levels | of one model: by scale index and quantizer, or chosen by an integer network | entropy/, levels.py |
| levels > values | float32, the integer of the grid times the step of the row, one rounding | quantize/, kernels/streams.py |
| latents | int16 arrays of rows and columns, from which steps and scale indices follow; coded by a model that learns | latents.py, latent_choice.py |
| levels > words | uint32, coded with the table of (scale index, quantizer) of one model | coder.py, kernels/streams.py |
| words > unit | bytes with a Record that says how to read them, checksum, digest; small tensors share one stream | unit.py, packing.py, joined.py |
| plane > tiles | small tiles in raster order, pixels int32, predicted from those around; another way to code a plane | tiles/, tiling/ |
| unit > container | entries of a .safetensors file, the directory deflated or mixed | container.py, entropy/mixing.py |

What is asked for is a `config.Config`; what was chosen is a `unit.Coding`.  The two never meet: the decoder knows only the
latter.

A variant of a stage is one file (or one row of a table) and one id: STATES and LABELLINGS in quantize/trellis.py, MODES in
entropy/scales.py, the shapes in entropy/parametric.py, KINDS and ACTIVATIONS of networks in entropy/network.py, KINDS, FILTERS and DTYPES in unit.py, PREDICTORS in tiles/coding.py,
TRANSFORMS in tiles/transforms.py, MODES in points.py; the tools that a coded tensor may use are the fields of `tools.Tools`, what may
be asked for is config.TOOLS.  An id names one meaning for ever.
"""

from __future__ import annotations

# Modules by layer, from the bottom; a module imports only from layers below its own (tests/test_structure.py holds it).
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "pool"),
    ("bits", "buffers", "registry", "kernels", "selection", "stages", "storage", "workers"),
    ("coder", "partition", "prediction", "quantize", "transform"),
    ("entropy", "config", "checkpoint"),
    ("calibration", "fields"),
    ("outliers", "points", "bases"),
    ("codebooks", "tiles"),
    ("tools",),
    ("unit",),
    ("latents", "levels"),
    ("centres",),
    ("coded", "directory", "encoded", "kept"),
    ("side",),
    ("joined",),
    ("container", "decoder", "exact", "rdo", "sensitivity"),
    ("packing", "latent_choice", "powers", "centre_choice", "ctus"),
    ("feedback", "job", "learning", "memories", "pretrained_config", "splitting", "substitution"),
    ("encoder", "allocate", "reading"),
    ("vectors",),
    ("archive",),
    ("decoding",),
    ("alignment", "cluster", "tiling"),
    ("assembly", "siblings", "rebuilt", "inspection", "dissection", "restoration"),
    ("plan",),
    ("runtime",),
    ("encoding", "huggingface"),
    ("targets", "tuning"),
    ("compression",),
    ("evaluation",),
    ("distillation", "sources"),
    ("calibrated", "lookup"),
    ("runs",),
    ("commands", "__init__"),
    ("__main__",),
)

# What a decoder consists of: none of it may import any other module of the package.
DECODER = (
    "errors",
    "pool",
    "bits",
    "buffers",
    "registry",
    "kernels",
    "coder",
    "partition",
    "prediction",
    "quantize",
    "entropy",
    "checkpoint",
    "fields",
    "outliers",
    "points",
    "codebooks",
    "tools",
    "transform",
    "tiles",
    "unit",
    "latents",
    "levels",
    "centres",
    "coded",
    "side",
    "joined",
    "kept",
    "directory",
    "container",
    "decoder",
    "reading",
    "archive",
    "decoding",
    "pretrained_config",
    "restoration",
    "inspection",
    "dissection",
    "selection",
    "stages",
    "storage",
    "workers",
)
