"""The processes of one run: how they find each other, wait for each other, and notice that one is gone."""
