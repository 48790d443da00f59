"""What upstream libraries make us change in their process, and how it is put back: one file per library.

Rules:
1. Where a subclass or a value of our own does, nothing of the library is changed.
2. Where it doesn't, a context manager changes it around one call, and puts back the very object that was there,
   whatever is raised in between.
3. Each names the version for which it is needed, and the reason.
4. Libraries are imported inside functions: a device has no torch and no exporting library.

What is changed in a process is changed for all its threads: two exports at the same time belong in two processes.
"""
