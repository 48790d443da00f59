"""What each command does once its words are parsed: call the project, show the result, return the exit code."""
