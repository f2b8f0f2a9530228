"""What stands behind `python -m odutils`: options, then commands, which check their inputs."""
