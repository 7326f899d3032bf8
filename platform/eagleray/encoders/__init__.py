"""The encoders, one in each file."""
