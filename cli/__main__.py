"""``python -m cachekd_cli``: what accelerate launch and torchrun start."""

from .main import main

main()
