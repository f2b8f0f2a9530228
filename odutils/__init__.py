"""Single-shot object detection, small enough to read: see the notebooks in `nbs/`.

Importing the package loads nothing heavy; import the module you need, for example
`from odutils.inference import Predictor`.
"""

__version__ = "0.2.0"
