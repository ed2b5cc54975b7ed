"""Reads runs from disk, compares them, and shows them side by side as an HTML page and as Markdown."""
