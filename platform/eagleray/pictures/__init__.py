"""Pictures by which a person checks a trained run, or a sweep, by eye: one a file.

The files of `of_runs/` and `of_sweeps/` are the pictures, and the file's name is the picture's name. Each has, beside
its docstring, whose first line is the caption:

    CHECK           what can be seen in it, and what cannot: sentences for the page
    draw(subject)   returns a matplotlib figure, or raises `Absent` with a sentence why there is nothing to show;
                    the subject is a `Trained` run or a `Swept` sweep
"""
