"""`python -m pipeline.teacher.inspect`: the command of pipeline/teacher/cache_view.py.

A folder without __init__.py, because a module named inspect.py would hide the standard library's from every Python that
is started in pipeline/teacher/ or on a file of it.
"""

import sys

from pipeline.teacher.cache_view import main

if __name__ == "__main__":
    sys.exit(main())
