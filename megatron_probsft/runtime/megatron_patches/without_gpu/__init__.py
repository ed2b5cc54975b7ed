"""Patches that are in place only where there is no GPU: of what would raise there."""
