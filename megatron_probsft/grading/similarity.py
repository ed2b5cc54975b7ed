"""Jaro-Winkler similarity of two words, as arXiv 2510.00526 measures figlet answers."""

from __future__ import annotations

_PREFIX_WEIGHT, _PREFIX = 0.1, 4


def jaro_winkler(one: str, two: str) -> float:
    """Return the similarity, 0 to 1, of the texts in lower case without white space around them.

    It is computed as in the paper's code: the common prefix always counts, and so does half a transposition.
    rapidfuzz
    counts a prefix only above a Jaro similarity of 0.7 and whole transpositions only, so that on random words
    of up to seven letters it differs in 8 of 100 pairs.
    """
    one, two = one.lower().strip(), two.lower().strip()
    if one == two:
        return 1.0
    reach = max(max(len(one), len(two)) // 2 - 1, 0)
    free = list(range(len(two)))
    pairs = []  # places of equal letters, each of `two` used once
    for place, letter in enumerate(one):
        near = (other for other in free if abs(other - place) <= reach and two[other] == letter)
        if (other := next(near, None)) is not None:
            free.remove(other)
            pairs.append((place, other))
    if not pairs:
        return 0.0
    met = len(pairs)
    in_order = zip(pairs, sorted(other for _, other in pairs), strict=True)
    swapped = sum(one[place] != two[other] for (place, _), other in in_order)
    jaro = (met / len(one) + met / len(two) + (met - swapped / 2) / met) / 3
    prefix = next(
        (place for place, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two))
    )
    return jaro + min(prefix, _PREFIX) * _PREFIX_WEIGHT * (1 - jaro)
