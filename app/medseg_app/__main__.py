"""`python -m medseg_app` is the `medseg` command."""

from medseg_app.cli import main

if __name__ == "__main__":
    main()
