"""COCO's format: get it, judge it, read and write it."""
