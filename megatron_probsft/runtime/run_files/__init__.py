"""One place says which keys the files have that runs leave for programs and people.

`training` and `scoring` have a dataclass for each file, `schema` writes and checks them. All writers and
readers go through them. A reader takes a file without `schema_version` for version 1, and refuses one of a
newer version than its own; SCHEMA_VERSION goes up when a key goes or changes its meaning, not when one comes.
"""
