"""Damaged and hostile files: every reader answers each with a value or a ``UserError``, in bounded time and memory."""
