"""All domains by name: whoever needs their names, files or templates asks here."""

from __future__ import annotations

import importlib
import pkgutil

from megatron_probsft.data.text.named_templates import add_templates
from megatron_probsft.domains.domain import Domain
from megatron_probsft.runtime.errors import UserError


def domains() -> dict[str, Domain]:
    """Every domain by its name: the `DOMAIN` of each file of this folder that has one.

    Their templates are known by name from then on. Raises ValueError: two domains of one name, or a name of
    a template that stands for two texts.
    """
    package = importlib.import_module(str(__package__))
    files = [one.name for one in pkgutil.iter_modules(package.__path__) if not one.ispkg]
    modules = [importlib.import_module(f"{__package__}.{name}") for name in files]
    found = [module.DOMAIN for module in modules if isinstance(getattr(module, "DOMAIN", None), Domain)]
    by_name: dict[str, Domain] = {}
    for one in sorted(found, key=lambda one: (one.place, one.name)):
        if one.name in by_name:
            raise ValueError(f"two files of {package.__path__} hold a domain of the name {one.name}")
        by_name[one.name] = one
        add_templates(one.templates)
    return by_name


def get_domain(name: str) -> Domain:
    """The domain of that name. UserError: there is none."""
    known = domains()
    if name not in known:
        raise UserError(f"domain {name} is unknown: use one of {', '.join(known)}")
    return known[name]
