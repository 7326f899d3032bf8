"""Trained encoders as files that others can load without Eagleray."""
