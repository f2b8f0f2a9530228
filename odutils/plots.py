"""How figures look in the notebooks: small JPEGs, plain axes, and colours that everybody can tell apart."""

import cv2
import numpy as np

# Okabe and Ito's palette (2008), made for colour-blind readers: plots take them in this order.
COLOURS = {
    "blue": "#0072b2",
    "orange": "#e69f00",
    "green": "#009e73",
    "red": "#d55e00",
    "purple": "#cc79a7",
    "sky": "#56b4e9",
    "yellow": "#f0e442",
    "black": "#000000",
}
JPEG_QUALITY = 70


def set_style() -> None:
    """Figures of this notebook from now on: JPEG, readable at half a page's width, in COLOURS. Call it once, on top."""
    import matplotlib.pyplot as plt
    from cycler import cycler

    plt.rcParams |= {
        "axes.prop_cycle": cycler(color=list(COLOURS.values())),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "axes.labelsize": 11,
        "figure.constrained_layout.use": True,
        "figure.dpi": 90,
        "figure.figsize": (8, 3.2),
        "legend.frameon": False,
    }
    if "inline" in plt.get_backend():
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("jpeg", bbox_inches="tight", pil_kwargs={"quality": JPEG_QUALITY, "optimize": True})


def overlay(image: np.ndarray, values: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """A map of values laid over an image as heat: dark purple is low, yellow is high, each cell a flat square.

    image: (H, W, 3) uint8 RGB.   values: (rows, columns), stretched over the whole image.   low, high: the values
    at the ends of the colours, by default the smallest and the largest.   Returns a new (H, W, 3) uint8 image.
    """
    low, high = (values.min() if low is None else low), (values.max() if high is None else high)
    share = np.clip((np.asarray(values, np.float32) - low) / max(float(high - low), 1e-9), 0, 1)
    height, width = image.shape[:2]
    stretched = cv2.resize(np.uint8(share * 255), (width, height), interpolation=cv2.INTER_NEAREST)
    heat = cv2.applyColorMap(stretched, cv2.COLORMAP_INFERNO)[..., ::-1]
    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2)  # colour is for the values alone
    return np.uint8(0.45 * grey + 0.55 * heat)
