"""SimCLR: its loss is held against others in test_losses.py."""

SMALL = ["method.hidden=16"]
