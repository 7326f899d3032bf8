"""Commands that help: pages to read offline, and a look at this machine."""
