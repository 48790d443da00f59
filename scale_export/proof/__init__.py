"""The legs: each source of error measured apart."""
