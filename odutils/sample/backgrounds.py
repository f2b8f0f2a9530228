"""Backgrounds for the sample's scenes: colours, textures, landscapes, rooms; all drawn, nothing photographed.

Each painter takes (rng, height, width) and returns the image, (H, W, 3) float32 RGB 0…255, and the row of its
horizon, below which things can stand on the ground; None where there is no ground.
"""

import colorsys
import math
from collections.abc import Callable

import cv2
import numpy as np
from numpy.random import Generator

Background = tuple[np.ndarray, int | None]


def paint_background(rng: Generator, height: int, width: int) -> Background:
    """A random one of the painters below; landscapes and rooms come twice as often as the others."""
    painter = PAINTERS[rng.integers(len(PAINTERS))]
    image, horizon = painter(rng, height, width)
    image += rng.uniform(0.5, 2.5) * rng.standard_normal((height, width, 1), dtype=np.float32)  # a camera's grain
    return np.clip(image, 0, 255), horizon


def paint_gradient(rng: Generator, height: int, width: int) -> Background:
    hue = rng.random()
    first, second = _colour(rng, hue), _colour(rng, hue + rng.uniform(0.08, 0.3))
    return _mix(first, second, _ramp(rng, height, width)), None


def paint_lights(rng: Generator, height: int, width: int) -> Background:
    """Lamps far out of focus."""
    hue, small = rng.random(), (height // 4, width // 4)  # soft enough to be painted at a quarter of the size
    dark = rng.random() < 0.5
    value = (0.15, 0.4) if dark else (0.7, 0.95)
    image = _mix(_colour(rng, hue, value=value), _colour(rng, hue + 0.15, value=value), _ramp(rng, *small))
    for _ in range(rng.integers(8, 20)):
        light = image.copy()
        centre = (int(rng.integers(small[1])), int(rng.integers(small[0])))
        radius = max(2, int(rng.uniform(0.03, 0.14) * max(small)))
        cv2.circle(light, centre, radius, _colour(rng, hue + rng.normal(0, 0.1), value=(0.7, 1.0)).tolist(), -1)
        image += rng.uniform(0.2, 0.6) * (light - image)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.6, 2.5))
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC), None


def paint_stripes(rng: Generator, height: int, width: int) -> Background:
    hue = rng.random()
    first, second = _colour(rng, hue), _colour(rng, hue + rng.uniform(-0.06, 0.06))
    waves = np.sin(_ramp(rng, height, width) * 2 * np.pi * rng.uniform(3, 11))
    return _mix(first, second, np.clip(0.5 + 6 * waves, 0, 1)), None


def paint_wallpaper(rng: Generator, height: int, width: int) -> Background:
    """Dots or a chequered cloth."""
    hue, count, turn = rng.random(), rng.uniform(5, 12), rng.uniform(0, 0.8)
    rows, columns = np.mgrid[:height, :width].astype(np.float32) * np.float32(np.pi * count / max(height, width))
    across, down = columns * math.cos(turn) - rows * math.sin(turn), columns * math.sin(turn) + rows * math.cos(turn)
    if rng.random() < 0.5:
        pattern = 12 * (np.cos(across) * np.cos(down)) ** 2 - rng.uniform(5, 9)  # dots
    else:
        pattern = 0.25 * ((np.sin(across) > 0).astype(np.float32) + (np.sin(down) > 0)) + 0.1  # cloth
    return _mix(_colour(rng, hue), _colour(rng, hue + rng.uniform(-0.1, 0.1)), np.clip(pattern, 0, 1)), None


def paint_texture(rng: Generator, height: int, width: int) -> Background:
    """Clouds, marble, moss."""
    hue, clouds = rng.random(), _clouds(rng, height, width)
    image = _mix(_colour(rng, hue, value=(0.3, 0.7)), _colour(rng, hue + rng.normal(0, 0.06)), clouds)
    return _mix(image, _colour(rng, hue + rng.normal(0, 0.1)), np.clip(3 * clouds - 1.8, 0, 1)), None


def paint_landscape(rng: Generator, height: int, width: int) -> Background:
    """A sky, a sun, hills, and grass, sand or snow."""
    horizon = int(rng.uniform(0.35, 0.6) * height)
    sky_hue = rng.choice([0.55, 0.58, 0.6, 0.04, 0.08, 0.75])  # day, day, day, evening, evening, dusk
    top, low = _colour(rng, sky_hue, (0.35, 0.65), (0.75, 0.95)), _colour(rng, sky_hue + 0.03, (0.05, 0.3), (0.9, 1.0))
    image = _mix(top, low, np.repeat(np.linspace(0, 1, height, dtype=np.float32)[:, None] ** 0.7, width, 1))
    image = _mix(image, np.float32([255, 255, 255]), 0.8 * np.clip(2 * _clouds(rng, height, width) - 1, 0, 1))
    sun = (int(rng.integers(width)), int(rng.uniform(0.1, 0.9) * horizon))
    cv2.circle(image, sun, int(rng.uniform(0.03, 0.08) * width), (255, 240, 190), -1, cv2.LINE_AA)
    ground_hue, saturation = ((0.27, (0.35, 0.6)), (0.12, (0.3, 0.5)), (0.58, (0.02, 0.1)))[
        rng.choice(3, p=(0.6, 0.25, 0.15))
    ]
    rows, columns = (np.arange(length, dtype=np.float32) for length in (height, width))
    band = slice(int(horizon - 0.3 * height), horizon)  # of rows, that the hills fit into
    for distance in (0.9, 0.5):  # the farther hills are paler
        hills = sum(rng.uniform(-1, 1) * np.sin(6.3 * k * columns / width + rng.uniform(0, 6.3)) / k for k in (1, 2, 4))
        ridge = horizon - height * (0.06 + 0.12 * distance * (0.5 + 0.3 * hills))  # (W,)
        hill = _colour(rng, ground_hue + 0.08, saturation, (0.45, 0.7))
        hill += distance * 0.6 * (low - hill)
        image[band] = _mix(image[band], hill, np.clip(rows[band, None] - ridge, 0, 1))
    near, far = _colour(rng, ground_hue, saturation, (0.5, 0.75)), _colour(rng, ground_hue, saturation, (0.75, 0.95))
    below = height - horizon
    ground = _mix(far, near, np.repeat((np.arange(below) / below)[:, None], width, 1))
    image[horizon:] = ground * (0.88 + 0.24 * _clouds(rng, below, width))[..., None]
    return image, horizon


def paint_room(rng: Generator, height: int, width: int) -> Background:
    """A wall, a skirting board, and a floor of planks that run away from us."""
    horizon, hue = int(rng.uniform(0.45, 0.65) * height), rng.random()
    wall = paint_stripes if rng.random() < 0.3 else paint_gradient
    image = wall(rng, height, width)[0] * 0.4 + 0.6 * _colour(rng, hue, (0.1, 0.4), (0.75, 1.0))
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    depth = np.clip((rows - horizon) / (height - horizon), 0, 1)
    planks = (columns / width - rng.uniform(0.2, 0.8)) / (0.25 + depth) * rng.uniform(4, 9)
    board = np.floor(planks).astype(int)
    shade = rng.uniform(0.88, 1.06, 256).astype(np.float32)[board % 256] * (0.75 + 0.25 * depth)
    shade *= np.where(np.abs(planks - board - 0.5) > 0.47, 0.8, 1.0)
    wood = _colour(rng, rng.uniform(0.03, 0.12), (0.1, 0.6), (0.45, 0.95))
    image = np.where((rows >= horizon)[..., None], wood * shade[..., None], image)
    skirting = slice(horizon - max(2, height // 40), horizon)
    image[skirting] = 0.3 * image[skirting] + 0.7 * np.float32([245, 243, 238])
    return image.astype(np.float32), horizon


PAINTERS: tuple[Callable[[Generator, int, int], Background], ...] = (
    *(paint_gradient, paint_lights, paint_stripes, paint_wallpaper, paint_texture),
    *(paint_landscape, paint_landscape, paint_room, paint_room),
)


def _colour(rng: Generator, hue: float, saturation=(0.15, 0.55), value=(0.65, 1.0)) -> np.ndarray:
    return np.float32(colorsys.hsv_to_rgb(hue % 1.0, rng.uniform(*saturation), rng.uniform(*value))) * 255  # (3,)


def _mix(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`first` where the weight (H, W) is 0, `second` where it is 1; each is a colour (3,) or an image (H, W, 3)."""
    weight = weight.astype(np.float32)
    if first.ndim == second.ndim == 1:  # plane by plane: three times as fast
        return cv2.merge([weight * (end - start) + start for start, end in zip(first, second, strict=True)])
    first, second = (np.array(np.broadcast_to(layer, (*weight.shape, 3)), np.float32) for layer in (first, second))
    return cv2.blendLinear(first, second, 1 - weight, weight)  # (H, W, 3)


def _ramp(rng: Generator, height: int, width: int) -> np.ndarray:
    """0 to 1 across the image, in a random direction."""
    direction = rng.uniform(0, 2 * math.pi)
    rows = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None] * math.sin(direction)
    ramp = rows + np.linspace(-0.5, 0.5, width, dtype=np.float32)[None] * math.cos(direction)  # (H, W)
    return (ramp - ramp.min()) / np.ptp(ramp)


def _clouds(rng: Generator, height: int, width: int) -> np.ndarray:
    """Noise of several sizes, 0 to 1."""
    noise = np.zeros((height, width), np.float32)
    for cells in (3, 6, 12, 24, 48):
        grid = rng.random((cells, cells), dtype=np.float32) / cells**0.8
        noise += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return (noise - noise.min()) / np.ptp(noise)
