"""Video in, detections drawn on every frame, video out."""
