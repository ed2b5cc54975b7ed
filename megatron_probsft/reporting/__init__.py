"""Runs side by side: read from disk, compared, and shown as one HTML page and as Markdown."""
