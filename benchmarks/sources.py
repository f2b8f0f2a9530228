"""How a part of the images is called in a table."""


def short(source: str) -> str:
    """coco2017_val -> COCO."""
    return source.split("_")[0].rstrip("0123456789").upper()
