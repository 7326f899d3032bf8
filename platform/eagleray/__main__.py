"""The command line as a module: `python -m eagleray`."""

from eagleray.app.cli import main

if __name__ == "__main__":
    main()
