"""One run: built from its file, recorded in its directory, saved, restored, evaluated, exported."""
