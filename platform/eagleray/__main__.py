"""The command line as a module: `python -m eagleray`."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the working directory, which Python puts first: nothing in it is to be imported
    from eagleray.app.cli import main

    main()
