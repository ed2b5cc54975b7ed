"""A few hundred tokens of different kinds, for comparing models where the user gives no text."""

SAMPLE_TEXT = """\
All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience \
and should act towards one another in a spirit of brotherhood. Alle Menschen sind frei und gleich an Würde \
und Rechten geboren. Tous les êtres humains naissent libres et égaux en dignité et en droits. \
人人生而自由，在尊严和权利上一律平等。 Все люди рождаются свободными и равными в своём достоинстве и правах.

Water boils at 100 degrees Celsius at sea level; on a mountain of 3,000 m it boils at about 90. The capital \
of France is Paris, that of Japan is Tokyo.

def primes(limit: int) -> list[int]:
    found = []
    for n in range(2, limit):
        if all(n % p for p in found if p * p <= n):
            found.append(n)
    return found

Question: A train covers 150 km in 2 hours and then 90 km in 1.5 hours. What is its average speed?
Answer: It covers 150 + 90 = 240 km in 2 + 1.5 = 3.5 hours, so its average speed is 240 / 3.5 = 68.57 km/h, \
that is $\\frac{480}{7}$ km/h.

| drug        | dose   | interval |
|-------------|--------|----------|
| paracetamol | 500 mg | 6 h      |

Once upon a time, in 1897, a small engine pulled twelve cars uphill, and nobody at the station believed that \
it would ever reach the top.
"""
