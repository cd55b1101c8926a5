"""Every module beside this file is imported, so a trainer is registered by putting its file here."""

from dassl.utils.registry import import_modules

import_modules(__name__, __path__)
