"""The sources of images, one in each file."""
