"""`python -m data_prep.inspect`: the command of data_prep/sample_view.py.

A folder without __init__.py, because a module named inspect.py would hide the standard library's from every Python that
is started in data_prep/ or on a file of it.
"""

import sys

from data_prep.sample_view import main

if __name__ == "__main__":
    sys.exit(main())
