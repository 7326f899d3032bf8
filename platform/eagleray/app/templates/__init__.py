"""The files that `eagleray new` writes, one a kind; each works as it is."""
